"""New, changed and vanished crops since a run, over a chain of runs and within a lookback window."""

from datetime import date
from pathlib import Path

import pyarrow as pa

from index.archive.diff import days_of, diff_manifests, in_lookback
from index.archive.manifest import crop_id_of
from index.runs.lineage import known_crops, lineage
from index.runs.run import Run
from index.schema import MANIFEST_SCHEMA
from infra.store import Store, open_store

ARCHIVE = "/archive"


def manifest(etags: dict[str, str]) -> pa.Table:
    rows = [
        {
            "crop_id": crop_id_of(f"{ARCHIVE}/{key}"),
            "uri": f"{ARCHIVE}/{key}",
            "etag": etag,
            "size": 1,
            "last_modified": 1,
            "camera_id": "",
            "captured_at": -1,
            "track_id": "",
        }
        for key, etag in etags.items()
    ]
    return pa.Table.from_pylist(rows, MANIFEST_SCHEMA)


def run_of(
    store: Store, run_id: str, etags: dict[str, str], gone: tuple[str, ...] = (), **settings: str
) -> None:
    Run.create(
        store,
        run_id,
        manifest=manifest(etags),
        archive=ARCHIVE,
        fingerprint="f",
        model="m",
        settings=settings,
        vanished=pa.array([f"{ARCHIVE}/{key}" for key in gone], pa.string()),
    )


def keys(uris: pa.Array) -> list[str]:
    return sorted(uri.removeprefix(f"{ARCHIVE}/") for uri in uris.to_pylist())


def test_new_changed_and_vanished_crops_are_distinguished(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    run_of(store, "base", {"a.jpg": "1", "b.jpg": "1", "gone.jpg": "1", "d.jpg": ""})
    now = manifest({"a.jpg": "1", "b.jpg": "2", "c.jpg": "1", "d.jpg": "7"})
    changes = diff_manifests(now, known_crops(store, "base"))
    assert keys(changes.to_embed["uri"]) == ["b.jpg", "c.jpg"]
    assert (changes.new, changes.changed, changes.unchanged) == (1, 1, 2)
    assert keys(changes.vanished) == ["gone.jpg"]


def test_of_a_chain_of_runs_the_latest_etag_counts(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    run_of(store, "1", {"a.jpg": "old", "b.jpg": "1"})
    run_of(store, "2", {"a.jpg": "new", "c.jpg": "1"}, since_run="1")
    run_of(store, "3", {"d.jpg": "1"}, since_run="2")
    before = known_crops(store, "3")
    assert dict(zip(keys(before["uri"]), ["new", "1", "1", "1"], strict=True)) == {
        uri.removeprefix(f"{ARCHIVE}/"): etag
        for uri, etag in zip(before["uri"].to_pylist(), before["etag"].to_pylist(), strict=True)
    }
    changes = diff_manifests(manifest({"a.jpg": "new", "b.jpg": "1", "c.jpg": "1", "d.jpg": "1"}), before)
    assert (changes.new, changes.changed, len(changes.vanished)) == (0, 0, 0)


def test_crops_before_the_lookback_window_have_not_vanished(tmp_path: Path) -> None:
    before = manifest({"dt=2026-11-01/a.jpg": "1", "dt=20261120/b.jpg": "1", "loose.jpg": "1"})
    assert sorted(days_of(before["uri"], ARCHIVE).values()) == [date(2026, 11, 1), date(2026, 11, 20)]
    listed_mask = in_lookback(before["uri"], ARCHIVE, date(2026, 11, 19))
    assert listed_mask.to_pylist() == [False, True, False]
    changes = diff_manifests(manifest({"dt=2026-11-21/c.jpg": "1"}), before, listed_mask=listed_mask)
    assert keys(changes.vanished) == ["dt=20261120/b.jpg"]


def test_a_vanished_crop_is_reported_once_and_is_new_when_it_returns(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    run_of(store, "night1", {"a.jpg": "1", "b.jpg": "1"})
    run_of(store, "night2", {"c.jpg": "1"}, gone=("b.jpg",), since_run="night1")
    still_gone = diff_manifests(manifest({"a.jpg": "1", "c.jpg": "1"}), known_crops(store, "night2"))
    assert (still_gone.new, still_gone.unchanged, len(still_gone.vanished)) == (0, 2, 0)
    back = diff_manifests(manifest({"a.jpg": "1", "b.jpg": "1", "c.jpg": "1"}), known_crops(store, "night2"))
    assert keys(back.to_embed["uri"]) == ["b.jpg"]
    assert (back.new, back.unchanged) == (1, 2)


def test_a_run_may_consist_of_vanished_crops_only(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    run_of(store, "night1", {"a.jpg": "1", "b.jpg": "1"})
    run_of(store, "night2", {}, gone=("b.jpg",), since_run="night1")
    summary = Run.open(store, "night2").finish()
    assert (summary.listed, summary.embedded, summary.shards) == (0, 0, ())
    assert keys(known_crops(store, "night2")["uri"]) == ["a.jpg"]
    assert [run.run_id for run in lineage(store, "night2")] == ["night1", "night2"]
