"""`clvr reproduce`: three methods on a drawn archive, equal to `clvr evaluate`, and resumed after kills."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clvr_model.checkpoint import Card, save_checkpoint
from clvr_model.network import Architecture, Clvr
from index.lock import acquire
from infra.errors import Locked
from infra.settings import load_settings
from infra.store import open_store
from jobs.evaluate.evaluate import evaluate_run
from jobs.evaluate.results import EvaluateRequest

METHODS = ("ccl", "mixeddiff", "clvr")
LISTS = ("small", "medium", "large")
DIRECTIONS = ("vehicleid-paper", "vehicleid-common")


def figures_by_place(results: dict) -> dict[tuple[str, str, str], dict]:
    return {
        (figures["method"], figures["list_name"], protocol["protocol"]): protocol
        for figures in results["figures"]
        for protocol in figures["protocols"]
    }


@pytest.mark.timeout(900)  # three trainings and four embeddings
def test_three_methods_are_trained_and_give_the_figures_of_evaluate(
    clvr, archive, tmp_path, arguments
) -> None:
    command = arguments(archive, tmp_path / "table1")
    done = clvr(*command, "--json", timeout=800)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    figures = figures_by_place(results)
    assert figures.keys() == {
        (method, name, rule) for method in METHODS for name in LISTS for rule in DIRECTIONS
    }
    assert [method["labels_used"] for method in results["methods"]] == ["vehicle", "both", "model"]
    assert not results["published"]["comparable"]
    assert [(each["name"], each["vehicles"], each["images"]) for each in results["lists"]] == [
        ("small", 2, 8),
        ("medium", 4, 16),
        ("large", 6, 24),
    ]
    assert {each["trained_images"] for each in results["lists"]} == {0}
    assert {each["trained_vehicles"] for each in results["lists"]} == {0}

    settings = load_settings({"runs": str(tmp_path / "table1")})
    drawn: dict[tuple[str, str], list[list[int]]] = {}
    for method in results["methods"]:
        for name in LISTS:
            request = EvaluateRequest(
                method["run_id"],
                labels=str(archive / "labels/labels.parquet"),
                split=name,
                protocols=DIRECTIONS,
                repeats=3,
                variants=(),
            )
            (listed,) = evaluate_run(request, settings).lists
            for expected in listed.results:
                probes = [listed.labelled.crop_ids[split.probes].tolist() for split in expected.splits]
                assert drawn.setdefault((name, expected.name), probes) == probes  # the same for every method
                found = figures[method["name"], name, expected.name]
                last = expected.curves.shape[1]
                for rank in (1, 5):
                    place = min(rank, last) - 1
                    assert found[f"rank_{rank}"] == {
                        "mean": expected.mean[place],
                        "std": expected.std[place],
                    }
                assert found["chance_rank_1"] == expected.chance[0]
                assert [oracle["recognises"] for oracle in found["oracles"]] == ["model", "model and color"]

    page = (tmp_path / "table1/table1.html").read_text()
    for part in (
        "Figure 4",
        "Figure 5",
        "Figure 6",
        "perfect model and color",
        "Mixed Diff + CCL",
        "other images",
    ):
        assert part in page
    assert (tmp_path / "table1/results.json").exists()

    # A repeat neither trains nor embeds again, and starts no Ray.
    again = clvr(*command, "--json", env={"RAY_ADDRESS": "127.0.0.1:1"})
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == results

    with acquire(open_store(str(tmp_path / "table1")), "reproduce", "another reproduction"):
        refused = clvr(*command)
    assert refused.returncode == Locked.exit_code
    assert "another reproduction" in refused.stderr


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two methods' options with checkpoints of random weights, which need no training."""
    options = []
    for seed, (method, classes) in enumerate((("clvr", 3), ("ccl", 0))):
        folder = str(tmp_path_factory.mktemp(method))
        card = Card(label_ids=tuple(range(classes)), labels_used="model" if classes else "vehicle")
        save_checkpoint(folder, Clvr.of(Architecture(classes=classes, backbone="vgg_m"), seed=seed), card)
        options += ["--method", method, "--checkpoint", f"{method}={folder}"]
    return options


@pytest.mark.slow
def test_checkpoints_are_taken_and_what_is_unknown_of_them_is_said(
    clvr, archive, tmp_path, arguments, checkpoints
) -> None:
    done = clvr(*arguments(archive, tmp_path / "table1", ()), *checkpoints)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("by chance") for line in lines) == 2
    assert any(line.startswith("CLVR") and "62.0 / 76.0" in line for line in lines)
    page = (tmp_path / "table1/table1.html").read_text()
    for words in (
        "this command did not train it",
        "Whether a training saw any of them is not known",
        "It was of other data",
        "records no epochs",
    ):
        assert words in page


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["runs/*/run.json", "runs/*/done.json", "evaluations/*.json", "table1.html"]
)
def test_a_killed_reproduction_continues_to_the_same_result(
    clvr, archive, tmp_path, arguments, checkpoints, moment: str
) -> None:
    whole = clvr(*arguments(archive, tmp_path / "whole", ()), *checkpoints)
    assert whole.returncode == 0, whole.stderr
    killed = tmp_path / "killed"
    command = [*arguments(archive, killed, ()), *checkpoints]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *command],
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not list(killed.glob(moment)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(killed.glob(moment))
    done = clvr(*command)
    assert done.returncode == 0, done.stderr
    digests = [
        hashlib.sha256((folder / "results.json").read_bytes()).hexdigest()
        for folder in (tmp_path / "whole", killed)
    ]
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_a_plan_says_hours_and_cost_of_each_method_and_writes_nothing(
    clvr, archive, tmp_path, arguments, checkpoints
) -> None:
    changes = ("clvr.network=resnet50", "clvr.backbone=random", "clvr.batch=6", "clvr.stage2.epochs=0")
    command = arguments(archive, tmp_path / "table1", changes)
    ccl = checkpoints[checkpoints.index("ccl") + 2]
    options = ["--method", "clvr", "--method", "ccl", "--checkpoint", ccl, "--price-per-node-hour", "2"]
    done = clvr(*command, *options, "--plan", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["lists"] == {"small": 8, "medium": 16, "large": 24}
    ccl, trained = plan["methods"]
    assert ccl["training"] is None
    assert trained["training"]["stages"][0]["epochs"] == 10
    assert trained["hours"] == pytest.approx(trained["training"]["hours"] + trained["embedding_hours"])
    assert plan["cost"] == pytest.approx(2 * plan["hours"])
    assert not (tmp_path / "table1").exists()


def test_a_dataset_without_the_labels_of_a_method_is_refused_before_any_training(
    clvr, archive, tmp_path, arguments
) -> None:
    table = pq.read_table(archive / "labels/labels.parquet").drop_columns(["model_id"])
    path = tmp_path / "labels.parquet"
    pq.write_table(table.append_column("model_id", pa.nulls(table.num_rows, pa.int32())), path)
    command = arguments(archive, tmp_path / "table1")
    command[1] = str(path)
    done = clvr(*command)
    assert done.returncode == 3
    assert "no vehicle models to train on" in " ".join(done.stderr.split())
    assert "--method" in done.stderr
    assert not (tmp_path / "table1/ccl").exists()
