"""`clvr train` under faults and on a bucket: a diverging loss, S3 as destination, input by Ray Data."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from clvr_model.checkpoint import load_checkpoint
from infra.servers.seaweedfs import SeaweedFs
from infra.store import open_store
from jobs.train.checkpoints import best_state
from jobs.train.log import read_log
from jobs.train.report import REPORT_FILE

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SHORT = ["--recipe", "demo", "--weights", "random", "--set", "batch=6", "--set", "reestimate_statistics=12"]
Run = Callable[..., subprocess.CompletedProcess[str]]


def arguments(archive: Path, to: str, *more: str) -> list[str]:
    data = [str(archive / "labels/labels.parquet"), "--root", str(archive / "archive"), "--split", "train"]
    return ["train", *data, "--to", to, *SHORT, "--json", *more]


def test_diverging_loss_names_its_batch_and_keeps_the_last_good_state(
    clvr: Run, archive: Path, tmp_path: Path
) -> None:
    more = ["--set", "warmup.epochs=2", "--set", "target.epochs=3", "--set", "target.lr=1e36"]
    done = clvr(*arguments(archive, str(tmp_path / "model"), *more))
    assert done.returncode == 11, done.stderr
    assert "stage target, epoch 1, batch" in done.stderr
    assert "lower the learning rate" in done.stderr
    (name,) = (tmp_path / "model/training").iterdir()
    state = best_state(open_store(str(name)))
    assert state is not None
    assert [epoch["stage"] for epoch in state.history[:-1]][-1] == "warmup"
    assert list(name.glob("checkpoint_*/state.json"))
    assert read_log(open_store(str(name)))[-1]["event"] == "error"


def test_states_log_and_report_are_written_to_a_bucket(
    clvr: Run, archive: Path, bucket: str, seaweedfs: SeaweedFs
) -> None:
    more = ["--set", "warmup.epochs=2", "--set", "target.epochs=0", "--pick", "best", "--keep", "1"]
    done = clvr(*arguments(archive, f"{bucket}/model", *more), env=seaweedfs.environment)
    assert done.returncode == 0, done.stderr
    store = open_store(f"{bucket}/model", seaweedfs.settings)
    keys = [item.key for item in store.list()]
    for wanted in ("weights.safetensors", "card.json", REPORT_FILE):
        assert wanted in keys
    for wanted in ("log.jsonl", "state.json", "tensorboard/events", "pictures.json"):
        assert any(wanted in key for key in keys), wanted
    states = {key.split("/")[2] for key in keys if "/checkpoint_2" in key}
    assert len(states) == 1
    again = clvr(*arguments(archive, f"{bucket}/model", *more), env=seaweedfs.environment)
    assert json.loads(again.stdout)["fingerprint"] == json.loads(done.stdout)["fingerprint"]


def test_ray_data_gives_the_same_images_in_the_same_order(clvr: Run, archive: Path, tmp_path: Path) -> None:
    more = ["--set", "warmup.epochs=1", "--set", "target.epochs=1", "--set", "target.flip=true"]
    weights = []
    for backend in ("local", "ray"):
        environment = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 4}'}
        done = clvr(*arguments(archive, str(tmp_path / backend), "--input", backend, *more), env=environment)
        assert done.returncode == 0, done.stderr
        weights.append(load_checkpoint(str(tmp_path / backend)).card.weights_sha256)
    assert weights[0] == weights[1]
