"""Everything that the first release wrote is opened, continued and verified by the present code.

`first_release.tar.xz` has all folders of a first user, made by `make_formats.py`. Its documents
refer to each other by absolute paths, so every test unpacks them to the same folder.
"""

import fcntl
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from json_documents import read_document
from typer.testing import CliRunner

from clvr_model.checkpoint import load_checkpoint, read_card
from clvr_model.normalization import to_input
from clvr_model.preprocessing import decode
from clvr_model.recipe import recipe_of
from clvr_model.training_state import TrainingState
from index.archive.labels import read_label_table
from index.archive.manifest import crop_id_of
from index.evaluation.splits import read_splits
from index.generations.receipt import read_receipt
from index.lock import ROWS, acquire
from index.milvus.client import connect
from index.runs.accounting import count_causes
from index.runs.lineage import lineage
from index.runs.run import Run, list_runs, vanished_uris
from index.runs.shards import read_shards, vectors_of
from index.runs.timings import read_timings, sum_timings
from index.runs.tombstones import erasure_ids, read_tombstones
from index.search.calibration import calibration_of
from index.search.scan_source import ScanSource
from infra.store import Store, open_store
from jobs.cli.app import app
from jobs.embed.discovery import CropSelection, discover
from jobs.reindex.state import ReindexRun, list_reindex_runs
from jobs.search.search import RulesRequest, make_rules
from jobs.sweep.audit import AuditLog
from jobs.sweep.part import SweepWorker
from jobs.sweep.state import Sweep
from jobs.train.log import cost_of, read_log

PACKED = Path(__file__).with_name("first_release.tar.xz")
ROOT = Path("/tmp/clvr-formats")
WEIGHTS = ".safetensors"

FINGERPRINT = "a2d0d642a3045e47"
STRONG = "7dc92d196c6cbcaf"
JOB = "dae19412bbd95f9fcf06fa2a8fba91a3f066b1c34ed02cca228b5bd79f7de409"
OLDER, LIVE = "vehicles_a2d0d642_20261129T085257", "vehicles_a2d0d642_20261129T085348"
DONE_ERASURE, BEGUN_ERASURE = "20261129T085258-52ed90", "20261129T085515-e44129"

ARCHIVE = f"{ROOT}/archive"
BLUE = "dt=2026-01-05/cam=c1/1767600000000_t0-0.jpg"
BLUE_AGAIN = "dt=2026-01-05/cam=c2/1767600600000_t0-1.jpg"
BLUE_NEXT_DAY = "dt=2026-01-06/cam=c3/1767687600000_t0-2.jpg"
BLUE_LAST_DAY = "dt=2026-01-07/cam=c4/1767772800000_t0-3.jpg"
ERASED = "dt=2026-01-05/cam=c4/1767600180000_t3-0.jpg"
HALF_ERASED = "dt=2026-01-05/cam=c2/1767600300000_t5-0.jpg"
VANISHED = "dt=2026-01-06/cam=c2/1767688020000_t7-2.jpg"
GONE = "dt=2026-01-05/cam=c1/1767600000000_gone.jpg"
BROKEN = "dt=2026-01-05/cam=c1/1767600000000_broken.jpg"
PATTERN = "dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg"

Clvr = Callable[..., Any]


def crop_id(key: str) -> int:
    return crop_id_of(f"{ARCHIVE}/{key}")


@pytest.fixture(scope="module")
def unpacked() -> Iterator[dict[str, bytes | None]]:
    """Unpack the weights, and return every other file by its name; None is a folder.

    Two test sessions would use the same folder, so they take turns.
    """
    turn = os.open(ROOT.parent, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(turn, fcntl.LOCK_EX)
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    small: dict[str, bytes | None] = {}
    with tarfile.open(PACKED) as packed:
        for member in packed:
            file = packed.extractfile(member)
            if member.name.endswith(f"weights{WEIGHTS}"):
                packed.extract(member, ROOT, filter="data")
            else:
                small[member.name] = file.read() if file else None
    yield small
    shutil.rmtree(ROOT, ignore_errors=True)
    os.close(turn)


@pytest.fixture
def home(unpacked: dict[str, bytes | None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Restore the folder of the first release, and return the store of its runs."""
    for entry in ROOT.iterdir():
        if not list(entry.glob(f"weights{WEIGHTS}")):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for name, data in unpacked.items():
        if data is None:
            (ROOT / name).mkdir(parents=True, exist_ok=True)
        else:
            (ROOT / name).write_bytes(data)
    for lock in (ROOT / "data/locks").glob("*.json"):
        # As old as it is: a lock that was written just now, and has expired, would be watched for a minute.
        os.utime(lock, (written := json.loads(lock.read_bytes())["expires"] - 60, written))
    for name in [name for name in os.environ if name.startswith("CLVR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLVR_RUNS", f"{ROOT}/data")
    monkeypatch.setenv("CLVR_MILVUS", f"{ROOT}/milvus.db")
    monkeypatch.chdir(ROOT)
    yield open_store(f"{ROOT}/data")
    connect(f"{ROOT}/milvus.db").close()  # its server holds files open


@pytest.fixture
def clvr(home: Store) -> Clvr:
    """Run a command that must end with `exit_code`, and return the document that it prints."""

    def run(*arguments: str, exit_code: int = 0) -> Any:
        done = CliRunner().invoke(app, [*arguments, "--json"])
        assert done.exit_code == exit_code, done.output
        return read_document(arguments, done.stdout) if done.stdout else None

    return run


def test_the_checkpoint_has_its_fingerprint_and_gives_the_features_that_were_stored(home: Store) -> None:
    checkpoint = load_checkpoint(f"{ROOT}/model")
    assert checkpoint.fingerprint == checkpoint.card.fingerprint == FINGERPRINT
    assert checkpoint.label_ids == (10, 11, 12, 13)
    assert checkpoint.card.label_names == {10: "Model 0", 11: "Model 1", 12: "Model 2", 13: "Model 3"}
    assert checkpoint.card.architecture == {
        "backbone": "inception_v3",
        "classes": 4,
        "feature_dim": 1024,
        "feature_relu": True,
        "pool_counts_padding": True,
    }
    assert checkpoint.card.metrics == {"accuracy": 0.5, "per_class": [0.5, 0.5, None, 1.0]}
    keys = (BLUE, HALF_ERASED)
    images = np.stack([decode((ROOT / "archive" / key).read_bytes()) for key in keys])
    with torch.inference_mode():
        features = checkpoint.network(to_input(torch.from_numpy(images)))[0].numpy()
    stored = features_of(Run.open(home, "first"))
    for key, feature in zip(keys, features, strict=True):
        distance = np.linalg.norm(feature - stored[crop_id(key)])
        assert distance < 0.01 * np.linalg.norm(feature)


def features_of(run: Run) -> dict[int, np.ndarray[Any, np.dtype[np.float32]]]:
    features = {}
    for batch in read_shards(run.store, run.shard_keys(), fingerprint=FINGERPRINT):
        features |= dict(zip(batch.column("crop_id").to_pylist(), vectors_of(batch), strict=True))
    return features


@pytest.mark.parametrize(("folder", "name"), [("model", "paper"), ("strong-model", "everything")])
def test_the_recipe_of_a_card_is_the_same_training(home: Store, folder: str, name: str) -> None:
    card = read_card(f"{ROOT}/{folder}")
    recipe = recipe_of(card.recipe)
    assert recipe.name == name
    assert json.loads(json.dumps(recipe.as_dict())) == card.recipe
    assert json.loads(json.dumps(recipe.undocumented_choices())) == card.unstated
    assert recipe.architecture(4).as_dict() == card.architecture


def test_the_second_checkpoint_has_every_field_of_a_recipe(home: Store) -> None:
    checkpoint = load_checkpoint(f"{ROOT}/strong-model")
    assert checkpoint.fingerprint == STRONG
    assert checkpoint.card.architecture == {
        "backbone": "resnet50",
        "classes": 4,
        "feature_dim": 1024,
        "feature_relu": False,
        "pool_counts_padding": True,
        "pooling": "gem",
        "last_stride": 1,
        "bnneck": True,
        "normalised": True,
        "classifier": "cosine",
        "cosine_scale": 12.5,
    }
    warmup, target = recipe_of(checkpoint.card.recipe).stages
    assert (warmup.label_smoothing, warmup.sampling, warmup.schedule) == (0.1, "balanced", "cosine")
    assert (warmup.warmup_epochs, warmup.cache_features, target.frozen_statistics) == (0.5, False, True)
    assert (target.epochs, target.micro_batch, target.horizontal_flip, target.random_erasing) == (
        4,
        2,
        True,
        0.5,
    )
    assert (target.color_jitter, target.blur, target.ema_decay, target.max_grad_norm) == (0.2, 0.1, 0.99, 5.0)


def test_a_finished_training_is_recognised_by_data_and_recipe(clvr: Clvr) -> None:
    train = ["train", f"{ROOT}/labels/labels.parquet", "--root", ARCHIVE, "--split", "train"]
    train += ["--recipe", f"{ROOT}/labels/recipe.yaml", "--set", "stage2.epochs=4"]
    train += ["--to", f"{ROOT}/strong-model"]
    assert clvr(*train, "--pick", "best") == {
        "schema": "train/1",
        "uri": f"{ROOT}/strong-model",
        "fingerprint": STRONG,
        "accuracy": 0.75,
        "macro_accuracy": 0.625,
        "classes": 4,
        "pictures": 4,
        "held_out": 8,
        "largest_class_share": 0.25,
        "unreadable": 0,
        "node_hours": 0.5,
        "cost": 1.25,
        "report": f"{ROOT}/strong-model/report.html",
        "labels_used": "model",
        "rank1": None,
        "attributes": {},
        "tracks": None,
    }
    assert read_card(f"{ROOT}/strong-model").metrics["job"] == JOB
    clvr(*train, exit_code=4)  # the last weights differ from the best
    clvr(*train, "--pick", "best", "--set", "seed=8", exit_code=4)


def test_a_training_resumes_from_its_state(home: Store) -> None:
    state = TrainingState.load(ROOT / "state")
    assert (state.stage, state.epoch, state.seed) == (1, 2, 7)
    assert (state.totals.loss, state.totals.correct, state.totals.pictures) == (6.5, 5, 8)
    assert [entry["stage"] for entry in state.history] == ["warmup", "target"]
    assert state.history[1] == {
        "stage": "target",
        "epoch": 1,
        "loss": 1.0,
        "accuracy": 0.5,
        "pictures": 12,
        "seconds": 4.5,
    }
    assert {name: value.tolist() for name, value in state.average.items()} == {
        "0.bias": [0.5] * 4,
        "0.running_mean": [0.5] * 4,
    }
    network = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    state.restore(network, optimizer)
    assert int(network[1].num_batches_tracked) == 1
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.9, 0.0005)
    moved = [optimizer.state[parameter]["momentum_buffer"].shape for parameter in network.parameters()]
    assert moved == [parameter.shape for parameter in network.parameters()]


def test_the_log_of_a_training_gives_its_cost(home: Store) -> None:
    log = read_log(open_store(f"{ROOT}/training"))
    assert [line["event"] for line in log] == ["start", "step", "epoch", "start", "final"]
    assert (log[2]["stage"], log[2]["pictures_seen"], log[2]["micro"]) == ("warmup", 12, 0.5)
    assert cost_of(log, 3.0).attempts == 2


def test_a_finished_run_proves_its_counts(clvr: Clvr, home: Store) -> None:
    status = clvr("status", "first")
    assert status["seconds"].keys() >= {"plan", "embed", "compact", "finish"}
    assert {name: value for name, value in status.items() if name not in ("seconds", "bottleneck")} == {
        "schema": "status/1",
        "run_id": "first",
        "finished": True,
        "archive": ARCHIVE,
        "fingerprint": FINGERPRINT,
        "listed": 29,
        "embedded": 24,
        "quarantined": 3,
        "duplicates": 2,
        "pending": 0,
        "parts_pending": 0,
        "shards": 2,
        "causes": {"decode/empty": 1, "decode/not-a-picture": 1, "fetch/missing": 1},
        "precision": "fp32",
    }
    assert clvr("status")["run_id"] == "unfinished"
    assert [run.run_id for run in list_runs(home)] == ["first", "night-one", "unfinished"]
    times = sum_timings(read_timings(Run.open(home, "first").folder))
    assert times is not None
    assert (times.rows, times.actors) == (27, 1)


def test_the_rows_of_a_run_are_unchanged(home: Store) -> None:
    run = Run.open(home, "first")
    assert run.info.settings == {
        "causes": [],
        "guard": None,
        "key_pattern": PATTERN,
        "lookback_days": None,
        "manifest": f"{ROOT}/labels/manifest.csv",
        "precision": "fp32",
        "precision_asked": "fp32",
        "precision_reason": "asked for",
        "requeue": None,
        "since_run": None,
    }
    assert (run.info.model, run.info.rows_per_part, run.info.version) == (f"{ROOT}/model", 16, "0.1.0")
    (crop,) = run.manifest().filter(pc.field("crop_id") == crop_id(BLUE)).to_pylist()
    assert crop == {
        "crop_id": crop_id(BLUE),
        "uri": f"{ARCHIVE}/{BLUE}",
        "etag": "",
        "size": -1,
        "last_modified": -1,
        "camera_id": "c1",
        "captured_at": 1767600000000,
        "track_id": "t0-0",
        "vehicle_id": 100,
        "model_id": 10,
    }
    shards = pa.Table.from_batches(read_shards(home, run.shard_keys(), fingerprint=FINGERPRINT))
    (row,) = shards.filter(pc.field("crop_id") == crop_id(BLUE)).to_pylist()
    assert len(row.pop("embedding")) == 1024
    assert 0 < row.pop("model_confidence") <= 1
    assert row == {
        "crop_id": crop_id(BLUE),
        "uri": f"{ARCHIVE}/{BLUE}",
        "camera_id": "c1",
        "track_id": "t0-0",
        "captured_at": 1767600000000,
        "model_id": 12,
    }
    quarantine = run.quarantine()
    assert dict(count_causes(quarantine)) == run.summary.causes
    (broken,) = quarantine.filter(pc.field("crop_id") == crop_id(BROKEN)).to_pylist()
    assert broken.pop("detail")
    assert broken == {
        "crop_id": crop_id(BROKEN),
        "uri": f"{ARCHIVE}/{BROKEN}",
        "stage": "decode",
        "cause": "not-a-picture",
    }


def test_an_unfinished_run_is_continued_to_the_same_rows(clvr: Clvr, home: Store) -> None:
    before = clvr("status", "unfinished")
    # The first release wrote no digests of parts, so its finished part counts as pending.
    assert (before["finished"], before["embedded"], before["quarantined"]) == (False, 0, 0)
    assert (before["pending"], before["parts_pending"], before["causes"]) == (27, 2, {})
    first, run = Run.open(home, "first"), Run.open(home, "unfinished")
    rows, refused = pa.Table.from_batches(read_shards(home, first.shard_keys())), first.quarantine()
    for part in run.pending_parts():
        ids = run.part_manifest(part)["crop_id"].combine_chunks()
        run.write_part(
            part,
            rows.filter(pc.is_in(rows["crop_id"], value_set=ids)),
            refused.filter(pc.is_in(refused["crop_id"], value_set=ids)),
        )
    summary = run.finish()
    # The four crops that were erased since are no longer embedded.
    assert (summary.listed, summary.embedded, summary.quarantined, summary.duplicates) == (29, 20, 7, 2)
    assert summary.causes["manifest/erased"] == 4
    assert sum(shard.rows for shard in summary.shards) == 20
    after = clvr("status", "unfinished")
    assert (after["finished"], after["embedded"], after["pending"]) == (True, 20, 0)
    actual, expected = features_of(run), features_of(first)
    assert len(expected.keys() - actual.keys()) == 4
    assert max(np.linalg.norm(actual[crop] - expected[crop]) for crop in actual) < 1e-3


def test_the_same_lists_give_the_same_run(home: Store) -> None:
    source = CropSelection(
        ARCHIVE,
        key_pattern=PATTERN,
        manifest=f"{ROOT}/labels/manifest.csv",
        labels=f"{ROOT}/labels/labels.csv",
    )
    run = Run.open(home, "first")
    assert discover(source, open_store(ARCHIVE), home).crops.num_rows == 29 - 4  # of erased crops
    home.delete(*(info.key for info in home.list("erasures")))
    discovery = discover(source, open_store(ARCHIVE), home)
    assert discovery.crops.num_rows == 29
    later = {"include", "exclude", "manifest_sha256", "labels_sha256"}  # settings of later releases
    assert {name: run.info.settings.get(name) for name in source.origin() if name not in later} == {
        name: value for name, value in source.origin().items() if name not in later
    }
    again = Run.create(
        home,
        "first",
        manifest=discovery.crops,
        archive=ARCHIVE,
        fingerprint=FINGERPRINT,
        model=f"{ROOT}/model",
        settings={},
    )
    assert again.info == run.info


def test_label_tables_are_equal_in_both_formats(home: Store) -> None:
    csv, parquet = (read_label_table(f"{ROOT}/labels/labels.{kind}") for kind in ("csv", "parquet"))
    assert csv.to_pylist() == parquet.to_pylist()
    assert parquet.num_rows == 24
    assert parquet.slice(0, 1).to_pylist() == [
        {"key": BLUE, "vehicle_id": 100, "model_id": 10, "split": "train"}
    ]
    assert read_label_table(f"{ROOT}/labels/labels.csv", split="test").num_rows == 12


def test_an_increment_continues_its_lineage(home: Store) -> None:
    run = Run.open(home, "night-one")
    assert [one.run_id for one in lineage(home, "night-one")] == ["first", "night-one"]
    assert sorted(vanished_uris(run)["uri"].to_pylist()) == [f"{ARCHIVE}/{GONE}", f"{ARCHIVE}/{VANISHED}"]
    assert run.info.settings["changes"] == {"new": 4, "changed": 0, "unchanged": 25, "vanished": 2}
    summary = run.summary
    assert (summary.listed, summary.embedded, summary.quarantined, summary.duplicates) == (4, 3, 1, 0)
    # Unpacked files differ from those that the run listed, and a list of keys has no etags.
    changes = discover(CropSelection(ARCHIVE, since_run="night-one"), open_store(ARCHIVE), home).changes
    assert changes is not None
    assert changes.counts() == {"new": 0, "changed": 4, "unchanged": 25 - 4, "vanished": 0}  # 4 erased


def test_generations_are_listed_and_the_live_one_answers(clvr: Clvr) -> None:
    older, live = clvr("generations")
    assert (older["name"], live["name"]) == (OLDER, LIVE)
    facts = ("state", "rows", "index", "fingerprint", "recall_at_10", "live", "previous", "runs", "pending")
    assert [older[name] for name in facts] == [
        "ready", 21, "HNSW", FINGERPRINT, 1.0, False, True, ["first"], []
    ]  # fmt: skip
    assert [live[name] for name in facts] == [
        "ready", 23, "HNSW", FINGERPRINT, 1.0, True, False, ["first", "night-one"], []
    ]  # fmt: skip
    result = clvr("search", f"crop:{crop_id(BLUE)}", "--top", "3")
    assert (result["generation"], result["fingerprint"], result["verdict"]) == (LIVE, FINGERPRINT, "found")
    assert result["threshold"] == pytest.approx(0.42516609)
    assert {answer["uri"] for answer in result["answers"]} == {
        f"{ARCHIVE}/{key}" for key in (BLUE_AGAIN, BLUE_NEXT_DAY, BLUE_LAST_DAY)
    }
    best = result["answers"][0]
    assert (best["rank"], best["crops_of_pass"]) == (1, 1)
    assert best["distance"] == pytest.approx(0.310606, rel=1e-3)
    assert best["likelihood"] == pytest.approx(0.970588)
    (seen,) = result["sightings"]
    assert seen == {
        "camera_id": "c1",
        "track_id": "t0-0",
        "captured_at": 1767600000000,
        "crop_id": crop_id(BLUE),
    }
    narrowed = clvr("search", f"crop:{crop_id(BLUE)}", "--camera", "c3", "--from", "2026-01-06", "--top", "1")
    assert [answer["uri"] for answer in narrowed["answers"]] == [f"{ARCHIVE}/{BLUE_NEXT_DAY}"]
    clvr("search", f"crop:{crop_id(ERASED)}", exit_code=3)


def test_the_alias_rolls_back_and_forth(clvr: Clvr) -> None:
    assert clvr("rollback")["name"] == OLDER
    assert clvr("verify", OLDER, exit_code=7)["foreign"] == [crop_id(HALF_ERASED)]
    assert [one["live"] for one in clvr("generations")] == [True, False]
    assert clvr("rollback")["name"] == OLDER  # a repeat changes nothing
    assert clvr("rollback", LIVE)["name"] == LIVE
    assert [one["live"] for one in clvr("generations")] == [False, True]


def test_receipts_and_tombstones_are_read(home: Store) -> None:
    assert erasure_ids(home) == [DONE_ERASURE, BEGUN_ERASURE]
    done, begun = read_receipt(home, DONE_ERASURE), read_receipt(home, BEGUN_ERASURE)
    assert (done.state, done.reason, done.crops, done.runs) == ("done", "case-17", 3, {"first": 3})
    assert done.wanted == {"vehicles": [103]}
    (erased,) = done.generations
    assert (erased.generation, erased.live, erased.rows_before, erased.rows_after) == (OLDER, True, 24, 21)
    assert (begun.state, begun.reason, begun.crops, begun.finished) == ("begun", "case-18", 1, "")
    assert [(one.generation, one.matching, one.rows_after) for one in begun.generations] == [
        (OLDER, 1, None),
        (LIVE, 1, None),
    ]
    erased = read_tombstones(home)
    assert len(erased) == 4
    assert erased.erased_ids([crop_id(ERASED), crop_id(HALF_ERASED), 1]) == {
        crop_id(ERASED),
        crop_id(HALF_ERASED),
    }


def test_an_interrupted_erasure_is_finished_by_the_next(clvr: Clvr, home: Store) -> None:
    before = clvr("verify", exit_code=7)
    assert (before["expected"], before["indexed"], before["foreign"]) == (22, 23, [crop_id(HALF_ERASED)])
    lock = json.loads(home.get("locks/rows.json"))
    assert (lock["doing"], lock["released"]) == ("an erasure", False)
    dry = clvr("forget", "--crop", f"{ARCHIVE}/{BLUE}", "--reason", "case-19")
    assert (dry["state"], dry["crops"], dry["runs"]) == ("dry run", 1, {"first": 1})
    receipt = clvr("forget", "--crop", f"{ARCHIVE}/{BLUE}", "--reason", "case-19", "--yes")
    assert (receipt["state"], receipt["crops"]) == ("done", 1)
    assert [(one["rows_before"], one["rows_after"], one["left"]) for one in receipt["generations"]] == [
        (20, 19, 0),
        (22, 21, 0),
    ]
    assert not [info.key for info in home.list("erasures") if info.key.endswith("crops.parquet")]
    finished = read_receipt(home, BEGUN_ERASURE)
    assert finished.state == "done"
    assert [(one.rows_before, one.rows_after, one.left) for one in finished.generations] == [
        (21, 20, 0),
        (23, 22, 0),
    ]
    after = clvr("verify")
    names = ("listed", "embedded", "quarantined", "duplicates", "superseded", "vanished", "erased")
    assert [after[name] for name in names] == [33, 27, 4, 2, 0, 1, 5]
    assert (after["expected"], after["indexed"], after["ledger_rows"]) == (21, 21, 21)
    assert clvr("verify", OLDER)["indexed"] == 19
    assert json.loads(home.get("locks/rows.json"))["released"] is True


def test_erased_crops_stay_out_of_a_new_generation(clvr: Clvr, home: Store) -> None:
    loaded = clvr("load", "first", "night-one")
    assert (loaded["rows"], loaded["target"]) == (22, "stream_insert")
    new = loaded["generation"]["name"]
    assert read_receipt(home, BEGUN_ERASURE).state == "done"
    gate = clvr("promote", "latest")
    assert (gate["generation"], gate["live"], gate["rows_indexed"]) == (new, LIVE, 22)
    for key in (ERASED, HALF_ERASED, VANISHED):
        clvr("search", f"crop:{crop_id(key)}", exit_code=3)
    assert clvr("verify")["generation"] == new
    assert clvr("retire", "--keep", "1")["dropped"] == [OLDER]
    assert clvr("rollback")["name"] == LIVE


def test_a_lock_of_a_process_that_died_is_taken_over(home: Store) -> None:
    left = json.loads(home.get("locks/rows.json"))
    assert left.keys() == {"doing", "expires", "nonce", "owner", "process", "released", "since"}
    assert left["released"] is False
    with acquire(home, ROWS, "a test") as lock:
        lock.require()
        assert json.loads(home.get("locks/rows.json"))["doing"] == "a test"
    assert json.loads(home.get("locks/rows.json"))["released"] is True


def test_the_calibration_is_the_one_that_was_stored(home: Store) -> None:
    calibration = calibration_of(home, FINGERPRINT)
    assert calibration is not None
    assert (calibration.run_id, calibration.probes, calibration.vehicles) == ("first", 24, 8)
    assert (calibration.false_alarm_rate, calibration.detection_rate) == (0.2, 22 / 24)
    assert calibration.threshold == pytest.approx(0.42516609)
    assert calibration.likelihood(np.array([0.0])).tolist() == pytest.approx([0.970588])


def test_a_finished_sweep_is_read_and_not_repeated(clvr: Clvr) -> None:
    sweep = Sweep.open(open_store(f"{ROOT}/sweeps/done"))
    assert sweep is not None
    assert sweep.pending() == []
    verdicts = {row["probe_id"]: row for table in sweep.outcomes() for row in table.to_pylist()}
    assert {name: row["verdict"] for name, row in verdicts.items()} == {
        "blue": "found",
        "red": "found",
        "erased": "failed",
        "file": "found",
    }
    assert verdicts["erased"]["cause"] == "unknown-crop"
    answers = sweep.results(0).filter(pc.field("probe_id") == "blue").to_pylist()
    assert [answer["rank"] for answer in answers] == [1, 2, 3]
    assert {answer["generation"] for answer in answers} == {LIVE}
    assert {answer["crop_id"] for answer in answers} == {
        crop_id(key) for key in (BLUE_AGAIN, BLUE_NEXT_DAY, BLUE_LAST_DAY)
    }
    command = ["sweep", f"{ROOT}/labels/probes.csv", "--out", f"{ROOT}/sweeps/done", "--case", "26-117"]
    summary = clvr(*command, "--top", "3", "--max-distance", "1e6")
    assert (summary["probes"], summary["answers"], summary["generation"]) == (4, 9, LIVE)
    assert summary["causes"] == {"unknown-crop": 1}
    assert (ROOT / "sweeps/done/report.html").exists()
    clvr(*command, "--top", "4", "--max-distance", "1e6", exit_code=6)


def test_an_interrupted_sweep_is_continued(clvr: Clvr, home: Store) -> None:
    sweep = Sweep.open(open_store(f"{ROOT}/sweeps/open"))
    assert sweep is not None
    assert (sweep.pending(), sweep.summary) == ([1], None)
    calibration = calibration_of(home, FINGERPRINT)
    source = ScanSource([Run.open(home, "first")])

    def no_embedder() -> Any:
        raise AssertionError("a probe is not in the archive")

    worker = SweepWorker(sweep, source, make_rules(RulesRequest(top=3)), no_embedder, calibration)
    assert worker.search_part(1) == (4, 0)
    summary = sweep.finish()
    assert (summary.probes, summary.answers, summary.generation) == (20, 60, "exact:first")
    # The first release's exact scan also found crops that were erased before: one probe more was "found".
    assert (dict(summary.verdicts), summary.causes) == ({"found": 17, "not found": 3}, {})
    command = ["sweep", f"{ROOT}/labels/list.csv", "--out", f"{ROOT}/sweeps/open", "--case", "26-118"]
    assert clvr(*command, "--top", "3", "--exact", "--run", "first")["answers"] == 60


def test_the_audit_log_names_user_and_case_of_each_sweep(clvr: Clvr, home: Store) -> None:
    done, cut_off = clvr("audit")
    names = ("who", "case", "action", "generation", "fingerprint")
    assert [done[name] for name in names] == ["an officer", "26-117", "sweep start", LIVE, FINGERPRINT]
    assert [cut_off[name] for name in names] == [
        "an officer", "26-118", "sweep start", "exact:first", FINGERPRINT
    ]  # fmt: skip
    assert cut_off["request"]["probes"] == f"{ROOT}/labels/list.csv"
    sweep = Sweep.open(open_store(f"{ROOT}/sweeps/open"))
    assert sweep is not None
    assert sweep.info.audit == cut_off["key"] == AuditLog.read(home).records[1][0]


def test_a_finished_reindex_run_is_read_and_not_repeated(clvr: Clvr, home: Store) -> None:
    (run,) = list_reindex_runs(home)
    assert (run.reindex_id, run.finished) == ("night-one", True)
    assert run.inputs.key_pattern == PATTERN
    assert [step.name for step in run.steps()] == ["plan", "embed", "load", "gate", "promote", "retention"]
    refused, finished = ReindexRun.open(home, "night-one").attempts()
    assert refused.outcome is not None
    assert (refused.outcome["error"], refused.outcome["step"]) == ("BudgetExceeded", "plan")
    assert finished.outcome is not None
    assert finished.outcome["step"] == ""
    command = ["reindex", ARCHIVE, "--model", f"{ROOT}/model", "--night", "night-one", "--beside"]
    command += ["--key-pattern", PATTERN, "--labels", f"{ROOT}/labels/labels.parquet"]
    summary = clvr(*command)
    assert summary == {
        "schema": "reindex/1",
        **(run.read_summary() or {}),
        "already_finished": True,
        "page": f"{ROOT}/data/nights/night-one/summary.html",
    }
    assert (summary["state"], summary["kind"]) == ("finished", "incremental")
    assert (summary["run"], summary["since_run"]) == ("night-one", "first")
    assert summary["crops"] == {
        "changed": 0,
        "duplicates": 0,
        "embedded": 3,
        "listed": 4,
        "new": 4,
        "quarantined": 1,
        "unchanged": 25,
        "vanished": 2,
    }
    assert summary["live"] == {"generation": LIVE, "replaced": OLDER, "rows": 23, "rows_before": 21}
    assert summary["quarantine"] == {"decode/not-a-picture": 1}
    assert summary["cost"]["price_per_node_hour"] == 2.0
    clvr(*command, "--lookback-days", "1", exit_code=6)  # other inputs than the run of this name


def test_splits_are_the_same_probes_and_gallery(clvr: Clvr, home: Store) -> None:
    run = Run.open(home, "first")
    ids = np.array(list(features_of(run)), np.int64)
    splits = read_splits(ROOT / "splits.parquet", ids)
    sizes = {
        name: [(len(one.probes), len(one.gallery)) for one in repeats] for name, repeats in splits.items()
    }
    assert sizes == {"vehicleid-paper": [(7, 14), (7, 14)], "leave-one-out": [(21, 21)]}
    then = json.loads((ROOT / "evaluation.json").read_text())["lists"][0]["protocols"]
    assert [(one["protocol"], one["probes"], one["gallery"]) for one in then] == [
        ("vehicleid-paper", 7, 14),
        ("leave-one-out", 21, 20),
    ]
    # One more crop was erased after this evaluation.
    now = clvr("evaluate", "first", "--protocol", "leave-one-out", "--also", "none")["lists"][0]
    assert (now["labelled"], now["unlabelled"]) == (20, 4)
    (protocol,) = now["protocols"]
    assert (protocol["probes"], protocol["gallery"], protocol["vehicles"]) == (20, 19, 7)
    assert protocol["cmc"]["rank-1"]["mean"] == 1.0
    clvr("evaluate", "first", "--splits", f"{ROOT}/splits.parquet", exit_code=3)
