"""A finished run with labelled crops, which is written and not embedded."""

from functools import partial
from pathlib import Path

import pytest
from labelled_runs import Make, settings_in, write_run

from infra.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


@pytest.fixture
def make_run(tmp_path: Path, settings: Settings, checkpoint: str) -> Make:
    return partial(write_run, tmp_path, settings, checkpoint)
