"""`clvr train` on Ray Train: it fits, repeats as a no-op, and rejects invalid data and recipes."""

import json

from clvr_model.checkpoint import load_checkpoint
from clvr_model.synthetic.body import STYLES
from index.lock import acquire
from index.outputs import list_outputs
from infra.errors import Locked
from infra.settings import Settings
from infra.store import open_store

# Two epochs on cached features and none of the whole network take seconds.
SHORT = ["--recipe", "demo", "--weights", "random", "--set", "warmup.epochs=2", "--set", "target.epochs=0"]


def arguments(archive, to, *more: str) -> list[str]:
    data = [str(archive / "labels/labels.parquet"), "--root", str(archive / "archive"), "--split", "train"]
    return ["train", *data, "--to", str(to), *SHORT, *more]


def test_checkpoint_records_its_training_and_a_repetition_is_a_no_op(clvr, archive, tmp_path) -> None:
    done = clvr(*arguments(archive, tmp_path / "model", "--workers", "2", "--json"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    checkpoint = load_checkpoint(str(tmp_path / "model"))
    assert result["fingerprint"] == checkpoint.fingerprint
    assert result["classes"] == len(checkpoint.label_ids) == 3
    assert result["pictures"] + result["held_out"] == 24
    assert checkpoint.card.recipe["name"] == "demo"
    # The drawn archive labels colors and body types, which are learned unless they are refused.
    assert set(checkpoint.card.attributes) == {"color", "body_type"} == set(result["attributes"])
    assert set(checkpoint.card.attributes["body_type"]) <= set(STYLES)
    assert all(0 <= epoch["held_color"] <= 1 for epoch in checkpoint.card.metrics["history"])
    assert result["attributes"]["color"]["pictures"] == result["held_out"]
    assert "vehicle models, colors, body types" in (tmp_path / "model" / "report.html").read_text()
    assert [epoch["stage"] for epoch in checkpoint.card.metrics["history"]] == ["warmup", "warmup"]
    assert checkpoint.card.unstated["feature_relu"] is True

    # Nothing was embedded here before, and a purge finds the training all the same.
    (recorded,) = list_outputs(open_store(str(tmp_path / Settings().runs)))
    assert (recorded.kind, recorded.uri) == ("training", str(tmp_path / "model"))
    assert "is not recorded" not in done.stderr

    before = {item.key: item.etag for item in open_store(str(tmp_path / "model")).list()}
    again = clvr(*arguments(archive, tmp_path / "model", "--workers", "2", "--json"))
    assert json.loads(again.stdout) == result
    assert {item.key: item.etag for item in open_store(str(tmp_path / "model")).list()} == before

    other = clvr(*arguments(archive, tmp_path / "model", "--set", "seed=9"))
    assert other.returncode == 4
    assert "other data or another recipe" in other.stderr

    # Two commands at once would write each other's states.
    (tmp_path / "model" / "card.json").unlink()
    (folder,) = (tmp_path / "model" / "training").iterdir()
    with acquire(open_store(str(folder)), "training", "a training of this test"):
        second = clvr(*arguments(archive, tmp_path / "model", "--workers", "2"))
    assert second.returncode == Locked.exit_code
    assert "a training of this test" in second.stderr


def test_unreadable_images_are_named_and_fail_above_the_budget(clvr, archive, tmp_path) -> None:
    folders = tmp_path / "cars"
    for model, key in enumerate(sorted(item.key for item in open_store(str(archive / "archive")).list())[:6]):
        path = folders / f"model-{model % 2}" / f"{model}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(open_store(str(archive / "archive")).get(key))
    (folders / "model-0" / "broken.jpg").write_bytes(b"not a picture")
    done = clvr("train", str(folders), "--to", str(tmp_path / "model"), *SHORT)
    assert done.returncode == 9
    assert "broken.jpg" in done.stderr.replace("\n", "")
    assert not (tmp_path / "model" / "card.json").exists()


def test_unknown_field_of_the_recipe_is_rejected_by_name(clvr, archive, tmp_path) -> None:
    done = clvr(*arguments(archive, tmp_path / "model", "--set", "target.epoch=3"))
    assert done.returncode == 3
    assert "epoch" in done.stderr
