"""Timings of attempts add up, and name the bottleneck of a run."""

from pathlib import Path

import pytest

from index.runs.folder import RunFolder
from index.runs.records import RunInfo
from index.runs.timings import Timings, read_timings, sum_timings, write_timings
from infra.errors import SchemaMismatch
from infra.store import open_store


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    known = dict.fromkeys(RunInfo.__dataclass_fields__, "")
    return RunFolder(open_store(str(tmp_path)), RunInfo(**known | {"run_id": "r"}))  # type: ignore[arg-type]


def test_timings_of_attempts_are_stored_and_add_up(folder: RunFolder) -> None:
    for minute, rows in ((1, 10), (2, 30)):
        started = f"2026-11-22T10:0{minute}:00.000+00:00"
        write_timings(folder, Timings(started, actors=minute, rows=rows, model_seconds=2.0))
    total = sum_timings(read_timings(folder))
    assert total is not None
    assert (total.rows, total.model_seconds, total.actors) == (40, 4.0, 2)
    assert sum_timings([]) is None


@pytest.mark.parametrize(
    ("seconds", "start"),
    [
        ({"model": 8, "waiting": 1, "writing": 1}, "the model (80%"),
        ({"model": 1, "waiting": 1, "writing": 8}, "writing (80%"),
        (
            {"model": 1, "waiting": 8, "writing": 1, "fetch": 50, "decode": 2},
            "fetching (the model waited 80%",
        ),
        ({"model": 1, "waiting": 8, "writing": 1, "fetch": 5, "decode": 7}, "decoding (the model waited 80%"),
        ({}, "nothing"),
    ],
)
def test_the_bottleneck_is_the_stage_that_took_most_time(seconds: dict[str, float], start: str) -> None:
    timings = Timings("t", 1, 1, **{f"{name}_seconds": float(value) for name, value in seconds.items()})  # type: ignore[arg-type]
    assert timings.bottleneck().startswith(start)


def test_timings_with_unknown_fields_are_refused(folder: RunFolder) -> None:
    folder.store.put(folder.key("timings/1.json"), b'{"other": 1}')
    with pytest.raises(SchemaMismatch):
        read_timings(folder)
