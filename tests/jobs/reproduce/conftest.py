"""A drawn archive with three lists, and the command that makes Table 1 of it in seconds."""

from collections.abc import Sequence
from pathlib import Path

import pytest

# A frozen backbone runs once, and its outputs are cached; VGG-M's checkpoints of 350 MB would take the time.
CHEAP = (
    *(f"{method}.network=efficientnet_lite0" for method in ("clvr", "ccl", "mixeddiff")),
    *(f"{method}.batch=6" for method in ("clvr", "ccl", "mixeddiff")),
    "clvr.backbone=random",
    "clvr.stage1.epochs=1",
    "clvr.stage2.epochs=0",
    "ccl.stage1.trainable=head",
    "ccl.stage1.epochs=1",
    "ccl.stage1.images_per_vehicle=2",
    *(f"mixeddiff.stage{number}.epochs=1" for number in (1, 2, 3)),
    *(f"mixeddiff.stage{number}.trainable=head" for number in (1, 2)),
    *(f"mixeddiff.stage{number}.images_per_vehicle=2" for number in (2, 3)),
)


def arguments(archive: Path, folder: Path, settings: Sequence[str] = CHEAP) -> list[str]:
    """The command on the drawn archive."""
    sets = [part for setting in settings for part in ("--set", setting)]
    data = [str(archive / "labels/labels.parquet"), "--root", str(archive / "archive")]
    return ["reproduce", *data, "--to", str(folder), "--repeats", "3", *sets]


@pytest.fixture(name="arguments")
def arguments_fixture() -> object:
    """The function `arguments`."""
    return arguments
