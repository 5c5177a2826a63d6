"""A part of a sweep beside an erasure: what was searched before it is searched again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from index.archive.manifest import crop_id_of
from index.runs.run import Run
from index.search.retrieval import Rules
from index.search.scan_source import ScanSource
from infra.store import Store, open_store
from jobs.sweep.part import SweepWorker
from jobs.sweep.state import Sweep, checked_list

URIS = [f"s3://archive/{number:06d}.jpg" for number in range(30)]
IDS = [crop_id_of(uri) for uri in URIS]


def no_model() -> Any:
    raise AssertionError("the probes are crops of the archive")


def test_a_crop_that_is_erased_while_its_part_is_searched_is_in_no_file(
    store: Store,
    tmp_path: Path,
    make_finished_run: Callable[..., Run],
    hide: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_finished_run(store, "r", range(30))
    probes = checked_list(["a", "b", "c"], [f"crop:{crop_id}" for crop_id in IDS[:3]], "here")
    sweep = Sweep.create(
        open_store(str(tmp_path / "out")),
        probes,
        request={},
        generation="exact:r",
        fingerprint=run.fingerprint,
        audit="audit/x.json",
        rows_per_part=3,
    )
    worker = SweepWorker(sweep, ScanSource([run]), Rules(top=30), no_model, None)
    written: list[pa.Table] = []
    write = Sweep.write_part

    def write_beside(self: Sweep, part: int, results: pa.Table, outcomes: pa.Table) -> None:
        if not written:
            hide(store, IDS[2:5])
        written.append(results)
        write(self, part, results, outcomes)

    monkeypatch.setattr(Sweep, "write_part", write_beside)
    assert worker.search_part(0) == (2, 1)
    assert set(written[0]["crop_id"].to_pylist()) & set(IDS[2:5])
    assert len(written) == 2
    assert not set(sweep.results(0)["crop_id"].to_pylist()) & set(IDS[2:5])
    assert sweep.outcomes_of(0)["cause"].to_pylist() == ["", "", "erased"]
