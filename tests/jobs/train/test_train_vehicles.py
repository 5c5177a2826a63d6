"""`clvr train` on vehicle labels: CCL and MixedDiff fit, and give checkpoints that the archive takes."""

import json

import pytest

from clvr_model.checkpoint import Card, load_checkpoint, save_checkpoint
from clvr_model.network import Architecture, Clvr
from infra.store import open_store

# Nine training vehicles of four images; a frozen backbone runs once, so that the epochs take no time.
SETS = ["batch=8", *(f"stage{number}.images_per_vehicle=2" for number in (1, 2, 3))]
SHORT = {
    "ccl": [
        "stage1.trainable=head",
        "stage1.margin=3",
        "stage1.epochs=3",
        "batch=8",
        "stage1.images_per_vehicle=2",
    ],
    "mixeddiff": [
        *SETS,
        *(f"stage{number}.epochs=1" for number in (1, 2, 3)),
        "stage1.trainable=head",
        "stage2.trainable=head",
        "network=inception_v3",
        "feature_dim=1024",
    ],
}


def arguments(archive, to, recipe: str, *more: str) -> list[str]:
    data = [str(archive / "labels/labels.parquet"), "--root", str(archive / "archive")]
    overrides = [part for override in SHORT[recipe] for part in ("--set", override)]
    return ["train", *data, "--output", str(to), "--recipe", recipe, *overrides, *more]


def test_ccl_learns_from_vehicles_alone_at_its_own_image_size(clvr, archive, tmp_path) -> None:
    done = clvr(*arguments(archive, tmp_path / "model", "ccl", "--json"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["labels_used"], result["classes"], result["accuracy"]) == ("vehicle", 0, None)
    assert (result["pictures"], result["held_out"]) == (36, 12)
    assert 0 <= result["rank1"] <= 1
    checkpoint = load_checkpoint(str(tmp_path / "model"))
    assert (checkpoint.label_ids, checkpoint.network.architecture.image_size) == ((), 224)
    history = checkpoint.card.metrics["history"]
    assert len(history) == 3
    assert history[-1]["loss"] < history[0]["loss"]
    assert all("held_rank1" in epoch and "held_accuracy" not in epoch for epoch in history)
    assert "constant" in checkpoint.card.unstated["center"]["clusters"]
    page = open_store(str(tmp_path / "model")).get("report.html").decode()
    assert "labels used: vehicles" in page
    assert "Accuracy by vehicle model" not in page

    again = clvr(*arguments(archive, tmp_path / "model", "ccl", "--json"))
    assert json.loads(again.stdout) == result


@pytest.mark.slow
def test_archive_is_embedded_and_evaluated_by_a_network_without_a_classifier(clvr, archive, tmp_path) -> None:
    network = Clvr.of(Architecture(classes=0, backbone="vgg_m"), seed=1)
    save_checkpoint(str(tmp_path / "model"), network, Card(label_ids=(), labels_used="vehicle"))
    # The archive is embedded and evaluated by it as by any other: vehicles are found, and no model is named.
    runs = {"CLVR_RUNS": str(tmp_path / "runs")}
    labels, model = str(archive / "labels/labels.parquet"), str(tmp_path / "model")
    embedded = clvr(
        "embed", str(archive / "archive"), "--checkpoint", model, "--labels", labels, "--json", env=runs
    )
    assert embedded.returncode == 0, embedded.stderr
    run = json.loads(embedded.stdout)["run_id"]
    html = tmp_path / "page.html"
    evaluated = clvr("evaluate", run, "--labels", labels, "--html", str(html), env=runs)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "rank-1" in evaluated.stdout.lower() or "rank 1" in evaluated.stdout.lower()
    assert "labels used" in html.read_text()
    assert "model -1" not in html.read_text()


@pytest.mark.slow  # the test of `clvr reproduce` trains the same recipe
def test_mixeddiff_learns_from_both_labels_in_three_stages(clvr, archive, tmp_path) -> None:
    done = clvr(*arguments(archive, tmp_path / "model", "mixeddiff", "--workers", "2", "--json"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["labels_used"], result["classes"]) == ("both", 3)
    assert result["accuracy"] is not None
    checkpoint = load_checkpoint(str(tmp_path / "model"))
    assert checkpoint.network.architecture.head == "mixed"
    history = checkpoint.card.metrics["history"]
    assert [epoch["stage"] for epoch in history] == ["models", "vehicles", "fusion"]
    assert all({"held_rank1", "held_accuracy"} <= epoch.keys() for epoch in history)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--set", "batch=20"], 3, "takes 10 vehicles of 2 images"),
        (["--set", "batch=6", "--workers", "2"], 3, "2 workers cannot share a batch of 6"),
    ],
)
def test_batches_that_the_data_or_the_workers_cannot_fill_are_refused(
    clvr, archive, tmp_path, more: list[str], code: int, message: str
) -> None:
    done = clvr(*arguments(archive, tmp_path / "model", "ccl", *more))
    assert message in " ".join(done.stderr.split())
    assert done.returncode == code


def test_labels_without_vehicles_are_refused(clvr, archive, tmp_path) -> None:
    folder = tmp_path / "cars"
    for number, item in enumerate(list(open_store(str(archive / "archive")).list())[:4]):
        path = folder / f"model-{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(open_store(str(archive / "archive")).get(item.key))
    done = clvr("train", str(folder), "--output", str(tmp_path / "model"), "--recipe", "ccl")
    assert done.returncode == 3
    assert "which vehicle it shows" in " ".join(done.stderr.split())
