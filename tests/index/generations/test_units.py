"""A generation of tracks: one row a track, and no row in which an erased crop has a share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index.archive.manifest import crop_id_of
from index.filters import Filters
from index.generations import records
from index.generations.audit import audit_folder, audit_index
from index.generations.erasure import forget, resume_erasures
from index.generations.gate import by_row, check_gate
from index.generations.load import LoadOptions, load_runs
from index.generations.promotion import promote, retire
from index.generations.purge import purge
from index.generations.receipt import Receipt
from index.generations.reconcile import reconcile
from index.generations.selection import EraseSelection
from index.generations.unit_build import rows_of_tracks
from index.generations.units import kept_rows, list_units, members_of, plan_units, read_units
from index.generations.upsert import load_into_live
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.runs.run import Run
from index.runs.shards import read_shards, vectors_of
from index.runs.tombstones import TombstoneWatch, read_tombstones
from index.search.milvus_source import MilvusSource
from index.search.probe import Probe
from index.search.retrieval import Rules, retrieve
from index.search.track_probe import track_probe
from index.transforms.transform import FeatureTransform
from infra.errors import BadInput, IndexUnreachable, StoreUnreachable
from infra.store import Store

CROPS, CROPS_OF_TRACK, WITHOUT_TRACK = 120, 4, 12
ROWS = (CROPS - WITHOUT_TRACK) // CROPS_OF_TRACK + WITHOUT_TRACK
TRACKS = LoadOptions(unit="track")
MEMBERS_OF_3 = [12, 13, 14, 15]

MakeTracks = Callable[..., Run]


def uri(number: int) -> str:
    return f"s3://archive/{number:06d}.jpg"


def crop(number: int) -> int:
    return crop_id_of(uri(number))


def look(of_crops: np.ndarray) -> np.ndarray:
    """Features of length 1: crops of one track look alike, and every crop a little different."""
    tracks = np.stack([np.random.default_rng(one).normal(size=1024) for one in of_crops // CROPS_OF_TRACK])
    noise = np.stack([np.random.default_rng(10_000 + one).normal(size=1024) for one in of_crops])
    values = tracks + 0.3 * noise
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def make_tracks(store: Store, make_finished_run: Callable[..., Run]) -> MakeTracks:
    """Make a run of crops first..first+count, four a track, on three cameras; the last 12 have no track."""

    def make(run_id: str = "r1", count: int = CROPS, first: int = 0, look: Callable = look) -> Run:
        numbers = range(first, first + count)
        return make_finished_run(
            store,
            run_id,
            numbers,
            look=look,
            rows_per_shard=50,
            uri=[uri(number) for number in numbers],
            camera_id=[f"cam-{number // CROPS_OF_TRACK % 3}" for number in numbers],
            captured_at=[number * 1000 for number in numbers],
            track_id=[
                "" if CROPS - WITHOUT_TRACK <= number < CROPS else f"t{number // CROPS_OF_TRACK}"
                for number in numbers
            ],
        )

    return make


@pytest.fixture(autouse=True)
def no_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The archive of these runs is an empty folder; nobody asks a server for it."""
    from infra.store import open_store

    monkeypatch.setattr("index.generations.selection.open_store", lambda *_: open_store(str(tmp_path)))


def load(
    milvus: Milvus, store: Store, runs: list[Run], *, live: bool = True, **options: object
) -> Generation:
    options = LoadOptions(unit="track", latest_wins=True, **options)  # type: ignore[arg-type]
    generation = load_runs(milvus, store, runs, alias="clvr", options=options)
    if live:
        check_gate(milvus, store, generation, runs)
        promote(milvus, store, generation.name)
    return generation


def erase(milvus: Milvus, store: Store, *numbers: int, purge: bool = False) -> Receipt:
    selection = EraseSelection(crop_ids=tuple(map(crop, numbers)))
    return forget(milvus, store, selection, reason="case 17", dry_run=False, purge=purge)


def record_of(store: Store, generation: Generation) -> records.GenerationRecord:
    record = records.read(store, generation.name)
    assert record is not None
    return record


def source_of(milvus: Milvus, store: Store, generation: Generation) -> MilvusSource:
    members = members_of(store, generation.name)
    assert members is not None
    return MilvusSource(milvus, generation, TombstoneWatch([store]), None, members)


def shares_of(milvus: Milvus, store: Store, generation: Generation, number: int) -> float:
    """How near the row that is most like a crop is to the mean of the crop's whole track."""
    mean = look(np.array(MEMBERS_OF_3)).astype(np.float64).mean(axis=0)
    assert number in MEMBERS_OF_3
    source = source_of(milvus, store, generation)
    hits = source.nearest((mean / np.linalg.norm(mean)).astype(np.float32)[None], 1, Filters())
    return hits[0][0].distance


def traces(milvus: Milvus, store: Store) -> list[tuple[str, int]]:
    erased = read_tombstones(store)
    places = [*audit_folder(store, erased), *audit_index(milvus, erased, [store])]
    return [(place.kind, place.found) for place in places if place.found]


def test_a_row_is_the_mean_of_a_track_and_passes_every_check(
    milvus: Milvus, store: Store, make_tracks: MakeTracks
) -> None:
    run = make_tracks()
    generation = load(milvus, store, [run])
    record = record_of(store, generation)
    assert (record.unit, record.rows, record.crops) == ("track", ROWS, CROPS)
    assert collection.row_count(milvus, generation) == ROWS
    counts = reconcile(milvus, store, generation, [run])
    assert (counts.differences, counts.crops, counts.withdrawn, counts.embedded) == ((), CROPS, 0, CROPS)

    source = source_of(milvus, store, generation)
    features = look(np.array(MEMBERS_OF_3))
    mean = features.astype(np.float64).mean(axis=0)
    mean /= np.linalg.norm(mean)
    nearest = MEMBERS_OF_3[int(np.argmin(np.linalg.norm(features - mean, axis=1)))]
    vectors = source.vectors([crop(number) for number in MEMBERS_OF_3])
    assert len(vectors) == 4
    for vector in vectors.values():
        np.testing.assert_allclose(vector, mean, atol=1e-6)
    shown = source.crops([crop(13)])[crop(13)]
    assert (shown.crop_id, shown.uri, shown.captured_at) == (crop(nearest), uri(nearest), nearest * 1000)
    (alone,) = source.vectors([crop(115)]).values()
    np.testing.assert_array_equal(alone, look(np.array([115]))[0])


def test_features_of_other_lengths_have_a_plain_mean() -> None:
    vectors = np.array([[2.0, 0], [0, 2], [0, 4], [1, 0], [0, 1], [5, 5]], np.float32)
    crops = pa.table(
        {
            "crop_id": [6, 5, 4, 3, 2, 1],
            "embedding": pa.array(vectors.tolist(), pa.list_(pa.float32())),
            "camera_id": ["a"] * 6,
            "track_id": ["x", "x", "x", "y", "y", ""],
            "captured_at": [-1, 7, 5, -1, -1, 3],
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("index.generations.unit_build.vectors_of", lambda rows: vectors_of(rows, 2))
        rows, members = rows_of_tracks(crops)
    assert rows["crop_id"].to_pylist() == [5, 2, 1]
    np.testing.assert_allclose(vectors_of(rows, 2), [[2 / 3, 2], [2**-0.5, 2**-0.5], [5, 5]], rtol=1e-6)
    by_crop = {row["crop_id"]: row for row in members.to_pylist()}
    assert [by_crop[crop_id]["row_id"] for crop_id in (6, 5, 4, 3, 2, 1)] == [5, 5, 5, 2, 2, 1]
    spans = [(by_crop[one]["captured_from"], by_crop[one]["captured_to"]) for one in (6, 3, 1)]
    assert spans == [(5, 7), (-1, -1), (3, 3)]


def test_matches_tell_the_crops_and_the_span_of_their_tracks_and_leave_the_own_one_out(
    milvus: Milvus, store: Store, make_tracks: MakeTracks
) -> None:
    source = source_of(milvus, store, load(milvus, store, [make_tracks()]))
    probe = Probe("p", source.vectors([crop(13)])[crop(13)], (source.sightings([crop(13)])[crop(13)],))
    whole = track_probe(source, "p", "cam-0", "t3")
    assert whole is not None
    for one in (probe, whole):
        np.testing.assert_array_equal(one.features, probe.features)
        (matches,) = retrieve(source, [one], Rules(top=ROWS, same_camera=True))
        assert len(matches) == ROWS - 1
        assert ("cam-0", "t3") not in {(match.hit.camera_id, match.hit.track_id) for match in matches}
        for match in matches:
            assert match.track is not None
            assert match.crops == match.track.crops == (CROPS_OF_TRACK if match.hit.track_id else 1)
            span = match.track.captured_to - match.track.captured_from
            assert span == 1000 * (match.crops - 1)


def test_the_same_rows_are_written_once_and_with_equal_bytes(
    milvus: Milvus, store: Store, make_tracks: MakeTracks, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_tracks()
    monkeypatch.setattr("index.generations.unit_build.BUCKET_ROWS", 20)
    monkeypatch.setattr("index.generations.unit_build.SHARD_ROWS", 10)
    monkeypatch.setattr("index.generations.unit_build._SORTED_BITS", 5)
    first = load(milvus, store, [run])
    (units_id,) = list_units(store)
    units = read_units(store, units_id)
    assert len(units.shards) > 2
    assert units.members.rows == CROPS
    matrix = np.random.default_rng(0).normal(size=(8, 1024))
    transform = FeatureTransform("whiten", matrix, np.zeros(8), transform_id="t", fingerprint=run.fingerprint)
    second = load(milvus, store, [run], live=False, transform=transform)
    assert record_of(store, second).units == record_of(store, first).units == units_id
    row_id = source_of(milvus, store, first).tracks([crop(12)])[crop(12)].row_id
    (row,) = collection.fetch_rows(milvus, second.name, [row_id], ["embedding"])
    mean = source_of(milvus, store, first).vectors([row_id])[row_id]
    np.testing.assert_allclose(row["embedding"], transform(mean[None])[0], atol=1e-6)
    store.delete(*(info.key for info in store.list("units")))
    load(milvus, store, [run])
    assert read_units(store, units_id) == units


def test_a_track_in_two_runs_is_one_row(milvus: Milvus, store: Store, make_tracks: MakeTracks) -> None:
    runs = [make_tracks("r1", 14), make_tracks("r2", 14, first=14)]
    generation = load(milvus, store, runs)
    assert collection.row_count(milvus, generation) == 7
    assert reconcile(milvus, store, generation, runs).differences == ()


def test_an_increment_is_refused_and_a_new_generation_takes_its_place(
    milvus: Milvus, store: Store, make_tracks: MakeTracks
) -> None:
    runs = [make_tracks("r1", 14)]
    first = load(milvus, store, runs)
    runs.append(make_tracks("r2", 2, first=14))
    with pytest.raises(BadInput, match="is of tracks") as refused:
        load_into_live(milvus, store, runs[1:], lambda ids: runs, alias="clvr", options=LoadOptions())
    assert "--unit track" in refused.value.remedy
    assert collection.row_count(milvus, first) == 4
    second = load(milvus, store, runs)
    assert record_of(store, second).crops == 16
    assert source_of(milvus, store, second).tracks([crop(15)])[crop(15)].crops == CROPS_OF_TRACK


def test_no_vector_with_a_share_of_an_erased_crop_is_left(
    milvus: Milvus, store: Store, make_tracks: MakeTracks
) -> None:
    run = make_tracks()
    retained, live = load(milvus, store, [run]), load(milvus, store, [run])
    assert shares_of(milvus, store, live, 13) < 1e-3
    stands_for = source_of(milvus, store, live).tracks([crop(13)])[crop(13)].row_id
    erased = next(number for number in MEMBERS_OF_3 if crop(number) != stands_for)

    receipt = erase(milvus, store, erased)

    assert (receipt.state, receipt.crops) == ("done", 1)
    for generation, planned in zip((retained, live), receipt.generations, strict=True):
        assert (planned.unit, planned.rows_before, planned.matching) == ("track", ROWS, 1)
        assert (planned.crops, planned.withdrawn, planned.rows_after, planned.left) == (1, 3, ROWS - 1, 0)
        assert (record_of(store, generation).rows, record_of(store, generation).crops) == (
            ROWS - 1,
            CROPS - 4,
        )
        assert shares_of(milvus, store, generation, erased) > 0.5
        counts = reconcile(milvus, store, generation, [run])
        assert (counts.differences, counts.erased, counts.withdrawn) == ((), 1, 3)
        assert check_gate(milvus, store, generation, [run]).passed
    assert "generation" not in dict(traces(milvus, store))
    others = erase(milvus, store, *(number for number in MEMBERS_OF_3 if number != erased))
    assert [(one.matching, one.crops, one.withdrawn) for one in others.generations] == [(0, 0, 0)] * 2
    assert not reconcile(milvus, store, live, [run]).differences


def test_the_next_load_makes_the_row_of_the_crops_that_are_left(
    milvus: Milvus, store: Store, make_tracks: MakeTracks
) -> None:
    run = make_tracks()
    before = load(milvus, store, [run])
    erase(milvus, store, 12)
    after = load(milvus, store, [run])
    assert (record_of(store, after).rows, record_of(store, after).crops) == (ROWS, CROPS - 1)
    assert record_of(store, after).units != record_of(store, before).units
    left = look(np.array([13, 14, 15])).astype(np.float64).mean(axis=0)
    source = source_of(milvus, store, after)
    np.testing.assert_allclose(source.vectors([crop(13)])[crop(13)], left / np.linalg.norm(left), atol=1e-6)
    assert source.vectors([crop(12)]) == {}
    assert reconcile(milvus, store, after, [run]).differences == ()


def test_crops_of_deleted_runs_are_erased_by_id_camera_and_time(
    milvus: Milvus, store: Store, make_tracks: MakeTracks
) -> None:
    run = make_tracks()
    live = load(milvus, store, [run])
    store.delete(*(info.key for info in store.list(f"runs/{run.run_id}")))
    assert erase(milvus, store, 12, 13, 14, 15).generations[0].crops == 4
    window = EraseSelection(cameras=("cam-1",), captured_from=17_000, captured_to=18_000)
    receipt = forget(milvus, store, window, reason="x", dry_run=False)
    assert (receipt.crops, receipt.generations[0].withdrawn) == (1, 3)
    assert collection.row_count(milvus, live) == ROWS - 2


def interrupt(patch: pytest.MonkeyPatch, number: int) -> None:
    """Let a command die at its write of this number, to the store or to Milvus."""
    counts = {"writes": 0}

    def cut(method: Callable, is_write: Callable[..., bool]) -> Callable:
        def call(self: object, *args: object, **named: object) -> object:
            if is_write(*args):
                counts["writes"] += 1
                if counts["writes"] == number:
                    raise (
                        StoreUnreachable("killed") if isinstance(self, Store) else IndexUnreachable("killed")
                    )
                if counts["writes"] > number:
                    raise KeyboardInterrupt
            return method(self, *args, **named)

        return call

    for name in ("put", "create", "replace", "delete"):
        is_unlocked = lambda *args: bool(args) and not str(args[0]).startswith("locks/")  # noqa: E731
        patch.setattr(Store, name, cut(getattr(Store, name), is_unlocked))
    patch.setattr(
        Milvus, "call", cut(Milvus.call, lambda method, *args: method in ("delete", "drop_collection"))
    )


def kills(act: Callable[[], object]) -> Iterator[int]:
    """Run a command that dies at its first write, then at its second, until it ends; yield after each."""
    for number in range(1, 100):
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, number)
            try:
                act()
            except (StoreUnreachable, IndexUnreachable, KeyboardInterrupt):
                ended = False
            else:
                ended = True
        yield number
        if ended:
            return
    raise AssertionError("it never ended")


def test_an_erasure_that_is_killed_anywhere_is_finished_by_the_next_command(
    milvus: Milvus, store: Store, make_tracks: MakeTracks
) -> None:
    live = load(milvus, store, [make_tracks()])
    numbers = iter(range(0, CROPS, CROPS_OF_TRACK))
    rows = ROWS
    for _ in kills(lambda: erase(milvus, store, next(numbers))):
        resume_erasures(milvus, store)
        erased = read_tombstones(store)
        indexed = collection.fetch_ids(milvus, live.name)
        assert np.isin(indexed, kept_rows(store, record_of(store, live).units, erased)).all()
        assert len(indexed) == collection.row_count(milvus, live) == record_of(store, live).rows <= rows
        rows = len(indexed)
    assert rows < ROWS - 1


def test_a_purge_leaves_nothing_and_may_be_killed_anywhere(
    milvus: Milvus, store: Store, make_tracks: MakeTracks
) -> None:
    run = make_tracks()
    live = load(milvus, store, [run])
    mean = look(np.array(MEMBERS_OF_3)).astype(np.float64).mean(axis=0)
    vector = (mean / np.linalg.norm(mean)).astype(np.float32).tobytes()
    erase(milvus, store, 12, purge=True)
    found = dict(traces(milvus, store))
    assert {"runs", "units"} <= found.keys()
    for _ in kills(lambda: purge(milvus, store, lambda stores, erased: [], reason="x")):
        pass
    assert traces(milvus, store) == []
    (units_id,) = list_units(store)
    units = read_units(store, units_id)
    assert (units.crops, sum(shard.rows for shard in units.shards)) == (CROPS - 4, ROWS - 1)
    assert all(vector not in store.get(info.key) for info in store.list())
    batches = list(read_shards(store, [shard.key for shard in units.shards]))
    assert sum(batch.num_rows for batch in batches) == ROWS - 1
    current = collection.live_generation(milvus, "clvr")
    assert current is not None and current.name != live.name
    run = Run.open(store, run.run_id)
    assert reconcile(milvus, store, current, [run]).differences == ()
    assert check_gate(milvus, store, current, [run]).passed


def test_a_row_that_comes_back_after_its_deletion_is_found_and_deleted(
    milvus: Milvus, store: Store, make_tracks: MakeTracks
) -> None:
    live = load(milvus, store, [make_tracks()])
    row_id = source_of(milvus, store, live).tracks([crop(12)])[crop(12)].row_id
    erased = next(number for number in MEMBERS_OF_3 if crop(number) != row_id)
    rows = list(collection.fetch_rows(milvus, live.name, [row_id], ["*"]))
    erase(milvus, store, erased, purge=True)
    milvus.call("insert", live.name, [{**row} for row in rows])
    milvus.call("flush", live.name)
    assert ("generation", 1) in traces(milvus, store)
    assert shares_of(milvus, store, live, erased) > 0.5
    assert source_of(milvus, store, live).vectors([row_id]) == {}
    purge(milvus, store, lambda stores, erased: [])
    assert traces(milvus, store) == []


def test_a_load_that_is_killed_anywhere_is_continued(
    milvus: Milvus, store: Store, make_tracks: MakeTracks
) -> None:
    run = make_tracks("r1", 40)
    for _ in kills(lambda: load(milvus, store, [run], live=False)):
        pass
    (live,) = [one for one in collection.list_generations(milvus, "clvr") if record_of(store, one).rows == 10]
    assert record_of(store, live).state == "ready"
    assert list_units(store) == [record_of(store, live).units]
    assert reconcile(milvus, store, live, [run]).differences == ()


def test_the_rows_of_retired_generations_go_with_them(
    milvus: Milvus, store: Store, make_tracks: MakeTracks
) -> None:
    run = make_tracks()
    for number in (12, 16):
        load(milvus, store, [run])
        erase(milvus, store, number)
    last = load(milvus, store, [run])
    assert len(list_units(store)) == 3
    retire(milvus, store, "clvr", keep=1)
    held = {record.units for record in records.list_records(store) if record.state == "ready"}
    assert record_of(store, last).units in held
    assert set(list_units(store)) == held
    assert len(held) == 2


def test_golden_probes_stand_for_their_tracks(milvus: Milvus, store: Store, make_tracks: MakeTracks) -> None:
    run = make_tracks()
    live = load(milvus, store, [run])
    members = source_of(milvus, store, live).tracks([crop(12), crop(16)])
    golden = by_row(store, live, {crop(12): 1, crop(13): 1, crop(16): 1})
    assert golden == {members[crop(12)].row_id: 1, members[crop(16)].row_id: 1}
    report = check_gate(milvus, store, live, [run], golden={crop(12): 1, crop(16): 1})
    assert report.golden is not None and report.golden.probes == 2


def test_members_are_the_crops_of_the_plan(milvus: Milvus, store: Store, make_tracks: MakeTracks) -> None:
    load(milvus, store, [make_tracks()])
    (units_id,) = list_units(store)
    plan = plan_units(store, units_id)
    assert (plan.rows, plan.crops) == (ROWS, CROPS)
    np.testing.assert_array_equal(plan.crop_ids(), kept_rows(store, units_id, read_tombstones(store)))
