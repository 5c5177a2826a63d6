"""What tests of verbs share: the command as a user runs it, a small archive, a random checkpoint."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from json_documents import read_document

from clvr_model.checkpoint import Card, save_checkpoint
from clvr_model.network import Architecture, Clvr
from clvr_model.synthetic.archive import generate, write_labels
from clvr_model.synthetic.trips import ArchiveSpec
from infra.store import open_store
from jobs.cli.app import COMMANDS


@pytest.fixture
def clvr(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `clvr` in a process of its own, in an empty folder; variables of the outside are kept out.

    What it prints with --json must have the published schema.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CLVR_", "AWS_"))}

    def run(
        *arguments: str, env: dict[str, str] | None = None, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *arguments],
            cwd=tmp_path,
            env={**clean, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if "--json" in arguments and done.stdout and arguments[0] in COMMANDS:
            read_document(arguments, done.stdout)
        return done

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of random weights with four vehicle models."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(str(folder), Clvr.of(Architecture(classes=4), seed=1), Card(label_ids=(3, 5, 8, 13)))
    return str(folder)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn archive: `archive/` with 48 crops, of 12 vehicles, and `labels/labels.parquet`."""
    folder = tmp_path_factory.mktemp("drawn")
    spec = ArchiveSpec(seed=5, models=3, vehicles_per_model=4, sightings_per_vehicle=4, cameras=4)
    open_store(str(folder / "archive")).create_bucket()
    generate(open_store(str(folder / "archive")), spec)
    write_labels(open_store(str(folder / "labels")), spec)
    return folder
