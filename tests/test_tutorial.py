"""The tour of README.md, run as it is written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def block_of(heading: str) -> str:
    """Return the first block of code below a heading of README.md."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    return re.findall(r"^```\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[0]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_tour_runs_as_written(tmp_path: Path) -> None:
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
    (programs / "clvr").write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m jobs "$@"\n')
    (programs / "clvr").chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CLVR_", "AWS_"))}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block_of("A tour")],  # noqa: S607
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is live as vehicles" in done.stdout
    assert "cross-camera" in done.stdout
    assert (tmp_path / "tour/cmc.html").exists()
