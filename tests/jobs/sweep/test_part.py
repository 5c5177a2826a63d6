"""A part of a sweep beside an erasure: what was searched before it is searched again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index.archive.manifest import crop_id_of
from index.filters import Filters
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


def test_by_track_each_archived_probe_is_all_crops_of_its_track(
    store: Store, tmp_path: Path, make_finished_run: Callable[..., Run], hide: Callable[..., str]
) -> None:
    columns = {
        "camera_id": [f"c{number // 3 % 2}" for number in range(30)],
        "track_id": [f"t{number // 3}" if number < 27 else "" for number in range(30)],
        "captured_at": list(range(30)),
    }
    run = make_finished_run(store, "r", range(30), **columns)
    hide(store, IDS[5:6])
    source = ScanSource([run])
    uris = [f"crop:{IDS[4]}", f"crop:{IDS[29]}", "track:c1/t1"]
    sweep = Sweep.create(
        open_store(str(tmp_path / "out")),
        checked_list(["on a track", "alone", "named"], uris, "here"),
        request={"unit": "track"},
        generation="exact:r",
        fingerprint=run.fingerprint,
        audit="audit/x.json",
        rows_per_part=3,
    )
    rules = Rules(top=30, same_camera=True)
    assert SweepWorker(sweep, source, rules, no_model, None, by_track=True).search_part(0) == (2, 1)
    assert sweep.outcomes_of(0)["cause"].to_pylist() == ["", "", "bad-uri"]
    # Crops 3 and 4 are left of track t1: the probe is their mean, and neither is a match.
    vectors = source.vectors(IDS[3:6])
    assert set(vectors) == {IDS[3], IDS[4]}
    mean = np.stack(list(vectors.values())).astype(np.float64).mean(axis=0).astype(np.float32)
    nearest = {hit.crop_id: hit.distance for hit in source.nearest(mean[None], 30, Filters())[0]}
    rows = [row for row in sweep.results(0).to_pylist() if row["probe_id"] == "on a track"]
    assert {row["track_id"] for row in rows} == {"", *(f"t{track}" for track in range(9))} - {"t1"}
    assert [row["distance"] for row in rows] == pytest.approx([nearest[row["crop_id"]] for row in rows])
    alone = source.nearest(source.vectors(IDS[29:])[IDS[29]][None], 2, Filters())[0][1]
    assert sweep.outcomes_of(0)["best_distance"][1].as_py() == pytest.approx(alone.distance)
