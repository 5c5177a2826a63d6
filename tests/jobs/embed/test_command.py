"""`clvr plan`, `clvr embed` and `clvr status` with a real network on a small synthetic archive."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from clvr_model.checkpoint import load_checkpoint
from clvr_model.engines import has_bf16
from clvr_model.precision import reduced_fingerprint

PATTERN = "dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg"
Clvr = Callable[..., CompletedProcess[str]]

pytestmark = pytest.mark.timeout(600)


def answer(done: CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr[-3000:]
    read: dict[str, object] = json.loads(done.stdout)
    return read


def test_plan_counts_crops_and_writes_nothing(clvr: Clvr, archive: Path, tmp_path: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in archive.rglob("*"))
    planned = answer(
        clvr("plan", str(archive / "archive"), "--to", "runs", "--key-pattern", PATTERN, "--json")
    )
    assert (planned["crops"], planned["duplicates"], planned["unmatched_keys"]) == (48, 0, 0)
    assert planned["bytes"] == sum(path.stat().st_size for path in (archive / "archive").rglob("*.jpg"))
    assert (planned["hours"], planned["cost"], planned["parts"]) == (None, None, 1)
    assert sorted((path, path.stat().st_mtime_ns) for path in archive.rglob("*")) == before
    assert not (tmp_path / "runs").exists()


def test_plan_with_a_price_but_no_model_is_rejected(clvr: Clvr, archive: Path) -> None:
    done = clvr("plan", str(archive / "archive"), "--price-per-node-hour", "1.5")
    assert done.returncode == 3
    assert "--checkpoint" in done.stderr


@pytest.mark.slow
def test_plan_with_a_model_measures_the_speed_and_gives_the_cost(
    clvr: Clvr, archive: Path, checkpoint: str
) -> None:
    given = ("--model", checkpoint, "--price-per-node-hour", "3.6", "--actors", "1", "--json")
    planned = answer(clvr("plan", str(archive / "archive"), *given))
    probe = planned["probe"]
    assert isinstance(probe, dict)
    assert probe["crops"] == 48 and probe["crops_per_second"] > 0.1
    assert planned["cost"] == pytest.approx(3.6 * float(str(planned["hours"])))


@pytest.mark.slow
def test_run_records_its_precision_its_guard_and_its_bottleneck(
    clvr: Clvr, archive: Path, checkpoint: str, tmp_path: Path
) -> None:
    given = ("embed", str(archive / "archive"), "--model", checkpoint, "--to", "runs", "--run-id", "auto")
    summary = answer(clvr(*given, "--precision", "auto", "--json"))
    assert (summary["listed"], summary["embedded"], summary["quarantined"]) == (48, 48, 0)
    settings = json.loads((tmp_path / "runs/runs/auto/run.json").read_text())["settings"]
    # 48 images are too few for the guard, so the run has full precision.
    assert settings["precision"] == "fp32"
    assert summary["fingerprint"] == load_checkpoint(checkpoint).fingerprint
    assert (settings["guard"]["pictures"] == 48) if has_bf16("cpu") else (settings["guard"] is None)
    status = answer(clvr("status", "auto", "--runs", "runs", "--json"))
    assert status["embedded"] == 48
    assert "the model" in str(status["bottleneck"])


@pytest.mark.slow
@pytest.mark.skipif(not has_bf16("cpu"), reason="this CPU has no bfloat16")
def test_unguarded_bf16_has_another_fingerprint(
    clvr: Clvr, archive: Path, checkpoint: str, tmp_path: Path
) -> None:
    given = ("embed", str(archive / "archive"), "--model", checkpoint, "--to", "runs", "--precision", "bf16")
    summary = answer(clvr(*given, "--json"))
    assert summary["fingerprint"] == reduced_fingerprint(load_checkpoint(checkpoint).fingerprint, "bf16")
