"""The exact scan finds the same crops as the index under every filter, and skips row groups."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from index.filters import Filters
from index.generations.load import load_runs
from index.milvus.client import Milvus
from index.runs import shards
from index.runs.purge import purge_run
from index.runs.run import Run
from index.runs.tombstones import TombstoneWatch, read_tombstones
from index.search.milvus_source import MilvusSource
from index.search.scan_source import ScanSource, prefetch
from infra.errors import ObjectMissing
from infra.store import Store

MakeRun = Callable[..., Run]

FILTERS = [
    Filters(),
    Filters(cameras=("cam-1", "cam-3")),
    Filters(not_cameras=("cam-2", "")),
    Filters(captured_from=50_000, captured_to=200_000),
    Filters(captured_to=90_000),
    Filters(model_ids=(1, 2)),
    Filters(not_model_ids=(0,), min_model_confidence=0.4),
    Filters(min_model_confidence=0.6),
    Filters(tracks=("t3", ("cam-1", "t5"))),
    Filters(not_tracks=("t0", ("cam-2", "t1"), "")),
    Filters(cameras=("nowhere",)),
    Filters(colors=("red", 'si"lver')),
    Filters(colors=("\\",), min_color_confidence=0.3),
    Filters(colors=("",)),
    Filters(not_colors=('" or crop_id >= 0 or color == "', "")),
    Filters(body_types=("suv",), not_body_types=("van",)),
    Filters(min_body_type_confidence=0.1),
]


@pytest.fixture
def run(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 32)
    return make_run("r1", 300, attributes=True)


def test_every_filter_gives_the_same_crops_as_in_the_index(run: Run, milvus: Milvus, store: Store) -> None:
    source = ScanSource([run])
    index = MilvusSource(milvus, load_runs(milvus, store, [run], alias="clvr"), TombstoneWatch([store]))
    probes = np.stack(list(source.vectors(run.manifest()["crop_id"].to_pylist()[:5]).values()))
    for filters in FILTERS:
        exact, indexed = (origin.nearest(probes, 40, filters) for origin in (source, index))
        for scanned, other in zip(exact, indexed, strict=True):
            assert [hit.crop_id for hit in scanned] == [hit.crop_id for hit in other], filters
            assert [(hit.uri, hit.color) for hit in scanned] == [(hit.uri, hit.color) for hit in other]
            assert np.allclose([h.distance for h in scanned], [h.distance for h in other], atol=0.02)


def test_a_filter_skips_row_groups(run: Run) -> None:
    source = ScanSource([run])
    probe = np.zeros((1, 1024), np.float32)
    hits = source.nearest(probe, 300, Filters(cameras=("cam-0",)))[0]
    assert len(hits) == 60
    assert source.stats.groups == 10
    # 300 crops sorted by camera in groups of 32: the 60 of one camera lie in two of them.
    assert source.stats.groups_skipped == 8
    assert source.stats.rows_compared == 60


def test_crops_are_looked_up_by_their_ids(run: Run) -> None:
    rows = run.manifest().to_pylist()[:3]
    ids = [row["crop_id"] for row in rows]
    source = ScanSource([run])
    assert set(source.vectors([*ids, 7])) == set(ids)
    assert source.sightings(ids)[ids[0]].camera_id == rows[0]["camera_id"]
    assert {hit.uri for hit in source.crops(ids).values()} == {row["uri"] for row in rows}
    assert source.crops([]) == {}


def test_erased_crops_are_neither_matches_nor_probes(
    run: Run, store: Store, hide: Callable[..., str]
) -> None:
    crop_ids = run.manifest()["crop_id"].to_numpy()
    probe = ScanSource([run]).vectors(crop_ids[:1].tolist())[int(crop_ids[0])][None]
    before = [hit.crop_id for hit in ScanSource([run]).nearest(probe, 10, Filters())[0]]
    assert before[0] == crop_ids[0]
    hide(store, before[:3])
    source = ScanSource([run])
    after = [hit.crop_id for hit in source.nearest(probe, 10, Filters())[0]]
    assert after[:7] == before[3:]
    assert not source.vectors(before[:3]) and not source.sightings(before[:3])
    assert not source.crops(before[:3])


def test_prefetch_yields_all_items_in_order_and_at_most_three_ahead() -> None:
    produced = []

    def items() -> Iterator[int]:
        for number in range(20):
            produced.append(number)
            yield number

    with prefetch(items()) as taken:
        for number in taken:
            assert len(produced) <= number + 3
    assert produced == list(range(20))


def test_prefetch_raises_an_error_where_its_item_is_taken() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"), prefetch(items()) as taken:
        assert list(taken) == [1]


def test_prefetch_stops_its_thread_at_the_end_of_the_block() -> None:
    before = threading.active_count()
    with prefetch(iter(range(10**9))) as taken:
        assert next(taken) == 0
    assert threading.active_count() == before


def test_a_scan_that_is_open_leaves_out_what_is_erased_meanwhile(
    run: Run, store: Store, hide: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.runs.tombstones._MAX_AGE_SECONDS", 0.0)
    source = ScanSource([run])
    probe = np.zeros((1, 1024), np.float32)
    before = [hit.crop_id for hit in source.nearest(probe, 10, Filters())[0]]
    hide(store, before[:4])
    after = [hit.crop_id for hit in source.nearest(probe, 10, Filters())[0]]
    assert after[:6] == before[4:] and not set(after) & set(before[:4])
    assert source.erased_ids(before) == set(before[:4])


def test_a_scan_goes_on_when_a_purge_writes_its_run_again(
    run: Run, store: Store, hide: Callable[..., str]
) -> None:
    source = ScanSource([run])
    ids = run.manifest()["crop_id"].to_pylist()
    probes = np.stack(list(source.vectors(ids[:2]).values()))
    hide(store, ids[2:4])
    purge_run(run, read_tombstones(store))
    # Within half a second the source still has its old plan, whose shards are gone.
    found = {hit.crop_id for hits in source.nearest(probes, 300, Filters()) for hit in hits}
    assert found == set(ids) - set(ids[2:4])
    assert set(source.crops(ids)) == found


def test_a_shard_that_is_gone_is_an_error(run: Run, store: Store) -> None:
    source = ScanSource([run])
    store.delete(run.shard_keys()[0])
    with pytest.raises(ObjectMissing):
        source.nearest(np.zeros((1, 1024), np.float32), 3, Filters())
