"""Folders on local disk go with their process, and those of a killed one with the next process."""

import subprocess
import sys
from pathlib import Path

import pytest

from infra.store import ScratchFolder

_MAKE = """
import os, sys
from infra.store import ScratchFolder
folder = ScratchFolder()
(folder.path / "rows").write_bytes(b"x")
print(folder.path, flush=True)
sys.stdin.read(1)
"""


def start(temporary: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", _MAKE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_folder_of_a_killed_process_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    (tmp_path / "clvr-scratch-file").write_text("no folder")
    killed, abandoned = start(tmp_path)
    living, used = start(tmp_path)
    killed.kill()
    killed.wait()
    assert abandoned.exists()
    last, own = start(tmp_path)
    assert not abandoned.exists()
    assert (used / "rows").exists() and (own / "rows").exists()
    for process in (living, last):
        process.communicate(".")
    assert {path.name for path in tmp_path.iterdir()} == {"clvr-scratch-file"}


def test_a_folder_goes_with_its_context_and_its_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ScratchFolder() as folder:
        assert folder.path.is_dir()
    other = ScratchFolder()
    del other
    assert not list(tmp_path.iterdir())
