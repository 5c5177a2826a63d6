"""The documentation is built without a warning, and its reference follows the code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import Settings
from jobs.cli.app import COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_document_is_a_page(site: Path) -> None:
    names = {path.stem for path in (ROOT / "docs").glob("*.md")}
    names |= {"index", "architecture", "changelog", "contributing"}
    assert names <= {path.stem for path in site.glob("*.html")}
    assert len(list((site / "examples").glob("*.ipynb"))) == len(list((ROOT / "examples").glob("*.ipynb")))


def test_the_reference_has_every_command_setting_and_public_name(site: Path) -> None:
    pages = {path.stem: path.read_text() for path in (site / "reference").glob("*.html")}
    assert [name for name in COMMANDS if f"clvr {name}" not in pages["commands"]] == []
    assert [name for name in Settings.model_fields if f"CLVR_{name.upper()}" not in pages["settings"]] == []
    import clvr_model
    import index

    names = [*clvr_model.__all__, *index.__all__]
    assert [name for name in names if f'.{name}"' not in pages["api"]] == []


def test_the_site_can_be_searched_and_asks_no_other_server(site: Path) -> None:
    found = json.loads((site / "search" / "search_index.json").read_text())
    assert any("quarantine" in entry["text"] for entry in found["docs"])
    page = (site / "index.html").read_text()
    assert "fonts.googleapis" not in page
    assert "cdn." not in page
