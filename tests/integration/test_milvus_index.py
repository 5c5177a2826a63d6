"""The index on a real Milvus 2.3.5 whose storage is a real S3 server: import, alias swaps, crashes."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from index.archive.manifest import crop_id_of
from index.filters import Filters
from index.generations import records
from index.generations.erasure import forget
from index.generations.gate import check_gate
from index.generations.load import LoadOptions, Progress, load_runs
from index.generations.load_plan import plan_load
from index.generations.promotion import promote, rollback
from index.generations.reconcile import reconcile
from index.generations.selection import EraseSelection
from index.generations.upsert import load_into_live
from index.milvus import collection, index_types
from index.milvus.client import Milvus, connect
from index.milvus.collection import Generation, fetch_ids, require_live
from index.milvus.search import Hit, search_generation
from index.milvus.waiting import compact, stored_rows
from index.runs.run import Run
from infra.errors import BadInput, FingerprintMismatch, ImportFailed, IndexRefused, IndexUnreachable
from infra.servers import MilvusServer, SeaweedFs
from infra.store import Store, open_store

PRINT = "5eed" * 16
HOSTILE_NAMES = [
    '"',
    "\\",
    '" or crop_id >= 0 or uri == "',
    "a\nb",
    "\r\n",
    "tab\t",
    "\\u0041",
    "Ü€😀",
    "\u2028",
    "{x}",
    "'",
]
DEADLINE = 240.0


MakeRun = Callable[..., Run]


def search(
    milvus: Milvus, alias: str, probes: NDArray[np.float32], fingerprint: str = PRINT
) -> list[list[Hit]]:
    """Return the ten nearest crops of each probe in the live generation."""
    generation = require_live(milvus, alias, fingerprint)
    return [hits for batch in search_generation(milvus, generation, probes, 10) for hits in batch]


@pytest.fixture(scope="module")
def finished_run(make_finished_run: MakeRun) -> MakeRun:
    """Make a run of the crops of some numbers, with hostile camera names; vectors differ from run to run."""

    def make(store: Store, run_id: str, numbers: range, *, rows_per_shard: int = 100_000) -> Run:
        random = np.random.default_rng(len(numbers))
        names = [
            HOSTILE_NAMES[number] if number < len(HOSTILE_NAMES) else f"cam-{number % 3}"
            for number in numbers
        ]
        return make_finished_run(
            store,
            run_id,
            numbers,
            fingerprint=PRINT,
            rows_per_shard=rows_per_shard,
            look=lambda of_crops: random.normal(size=(len(of_crops), 1024)).astype(np.float32),
            camera_id=names,
            track_id=names,
            captured_at=[0] * len(numbers),
            attributes=True,
        )

    return make


@pytest.fixture(scope="module")
def milvus(milvus_server: MilvusServer) -> Iterator[Milvus]:
    with connect(milvus_server.uri, milvus_server.token) as connection:
        yield connection


@pytest.fixture(scope="module")
def own_store(milvus_server: MilvusServer, seaweedfs: SeaweedFs) -> Store:
    """A store in the server's own bucket, so that its shards can be imported."""
    return open_store(f"s3://{milvus_server.bucket}/{secrets.token_hex(4)}", seaweedfs.settings)


@pytest.fixture(scope="module")
def foreign_store(seaweedfs: SeaweedFs) -> Store:
    return open_store(seaweedfs.create_bucket(f"runs-{secrets.token_hex(4)}"), seaweedfs.settings)


@pytest.fixture(scope="module")
def imported_runs(own_store: Store, finished_run: MakeRun) -> list[Run]:
    """Crops 0..399 in two shards, and a later run over 350..499."""
    return [
        finished_run(own_store, "old", range(400), rows_per_shard=250),
        finished_run(own_store, "new", range(350, 500)),
    ]


@pytest.fixture(scope="module")
def imported(
    milvus: Milvus, milvus_server: MilvusServer, own_store: Store, imported_runs: list[Run]
) -> Generation:
    return load_runs(
        milvus,
        own_store,
        imported_runs,
        alias="swapped",
        options=LoadOptions(target="grpc_v1", milvus_bucket=f"s3://{milvus_server.bucket}", latest_wins=True),
    )


@pytest.fixture(scope="module")
def inserted(milvus: Milvus, own_store: Store, foreign_store: Store, finished_run: MakeRun) -> Generation:
    """Crops 1000..1299, of a bucket that the server cannot read."""
    run = finished_run(foreign_store, "far", range(1000, 1300))
    return load_runs(milvus, own_store, [run], alias="swapped")


@pytest.mark.timeout(DEADLINE)
def test_shards_in_the_servers_bucket_are_imported_row_for_row(
    milvus: Milvus, own_store: Store, imported: Generation, imported_runs: list[Run]
) -> None:
    assert collection.row_count(milvus, imported) == 500
    plan = plan_load(imported_runs, latest_wins=True)
    rows = milvus.call("query", imported.name, filter="crop_id >= 0", output_fields=["embedding"], limit=1000)
    stored = {row["crop_id"]: np.asarray(row["embedding"], np.float32) for row in rows}
    for ids, vectors in plan.blocks():
        for crop_id, vector in zip(ids.tolist(), vectors, strict=True):
            assert np.array_equal(stored.pop(crop_id), vector)
    assert stored == {}
    entry = records.read(own_store, imported.name)
    assert entry is not None
    assert (entry.state, entry.target, entry.rows) == ("ready", "grpc_v1", 500)
    # The rewritten shard was needed for the import only.
    assert [info.key for info in own_store.list(f"generations/{imported.name}")] == []


def test_a_generation_is_read_back_from_a_server(milvus: Milvus, imported: Generation) -> None:
    assert collection.get_generation(milvus, imported.name) == imported
    assert imported.run_ids == ("old", "new")


def test_shards_in_another_bucket_are_inserted(
    milvus: Milvus, own_store: Store, inserted: Generation
) -> None:
    assert collection.row_count(milvus, inserted) == 300
    entry = records.read(own_store, inserted.name)
    assert entry is not None
    assert entry.target == "stream_insert"


@pytest.mark.timeout(DEADLINE)
def test_shards_in_another_bucket_are_copied_for_a_requested_import(
    milvus: Milvus,
    milvus_server: MilvusServer,
    seaweedfs: SeaweedFs,
    foreign_store: Store,
    finished_run: MakeRun,
) -> None:
    runs = [
        finished_run(foreign_store, "old-far", range(2000, 2060), rows_per_shard=30),
        finished_run(foreign_store, "new-far", range(2050, 2070)),
    ]
    generation = load_runs(
        milvus,
        foreign_store,
        runs,
        alias="copied",
        options=LoadOptions(target="grpc_v1", milvus_bucket=f"s3://{milvus_server.bucket}", latest_wins=True),
    )
    result = reconcile(milvus, foreign_store, generation, runs)
    assert (result.expected, result.indexed, result.differences) == (70, 70, ())
    bucket = open_store(f"s3://{milvus_server.bucket}", seaweedfs.settings)
    assert list(bucket.list("clvr-import")) == []


@pytest.mark.timeout(DEADLINE)
def test_increment_erasure_rebuild_and_verification_agree_on_a_server(
    milvus: Milvus, foreign_store: Store, finished_run: MakeRun
) -> None:
    first = finished_run(foreign_store, "first", range(3000, 3100))
    live = load_runs(milvus, foreign_store, [first], alias="nightly")
    promote(milvus, foreign_store, live.name, force="test")
    second = finished_run(foreign_store, "second", range(3095, 3110))
    gone = pa.array([f"s3://archive/{number:06d}.jpg" for number in (3000, 3001)])
    second.info = replace(second.info, vanished=(second.folder.write_vanished(gone),))
    foreign_store.put(second.folder.key("run.json"), second.info.to_json())
    done = load_into_live(
        milvus, foreign_store, [second], lambda _: [first], alias="nightly", options=LoadOptions()
    )
    assert (done.rows_before, done.removed, done.rows_after) == (100, 2, 108)

    # An erasure goes through every generation of the server: a camera alone would hit the other tests' rows.
    crop_ids = tuple(
        np.concatenate([run.manifest()["crop_id"].to_numpy() for run in (first, second)]).tolist()
    )
    wanted = EraseSelection(cameras=("cam-1",), crop_ids=crop_ids)
    receipt = forget(milvus, foreign_store, wanted, reason="test", dry_run=False)
    erased = next(row for row in receipt.generations if row.generation == live.name)
    assert (erased.rows_before, erased.rows_after, erased.left) == (108, 108 - erased.matching, 0)
    assert erased.matching > 30
    result = reconcile(milvus, foreign_store, live, [first, second])
    assert result.differences == ()

    # The erasure asked for a compaction too, and a second request is "Completed" while the first one runs.
    compact(milvus, live)
    assert stored_rows(milvus, live) == collection.row_count(milvus, live) == erased.rows_after

    rebuilt = load_runs(
        milvus, foreign_store, [first, second], alias="nightly", options=LoadOptions(latest_wins=True)
    )
    assert collection.row_count(milvus, rebuilt) == erased.rows_after
    assert fetch_ids(milvus, rebuilt.name, wanted.expression()).size == 0


def test_gate_promotion_and_rollback_work_on_a_server(
    milvus: Milvus, own_store: Store, imported: Generation, inserted: Generation, imported_runs: list[Run]
) -> None:
    report = check_gate(milvus, own_store, imported, imported_runs, probes=200)
    assert report.passed, report.failures
    assert (report.rows_expected, report.rows_indexed) == (500, 500)
    promote(milvus, own_store, imported.name)
    promote(milvus, own_store, inserted.name, force="test")
    assert collection.live_generation(milvus, "swapped") == inserted
    assert rollback(milvus, own_store, "swapped").generation == imported
    assert collection.live_generation(milvus, "swapped") == imported


def test_the_alias_moves_under_constant_searches_without_an_error_or_a_mixed_result(
    milvus: Milvus, milvus_server: MilvusServer, own_store: Store, imported: Generation, inserted: Generation
) -> None:
    promote(milvus, own_store, imported.name, force="test")
    stop, seen, errors = threading.Event(), set[str](), list[Exception]()
    probes = np.random.default_rng(1).normal(size=(3, 1024)).astype(np.float32)

    def search_repeatedly() -> None:
        with connect(milvus_server.uri, milvus_server.token) as connection:
            while not stop.is_set():
                try:
                    results = search(connection, "swapped", probes)
                except Exception as error:
                    errors.append(error)
                    return
                far = {hit.uri >= "s3://archive/001000" for hits in results for hit in hits}
                if len(far) != 1 or {len(hits) for hits in results} != {10}:
                    errors.append(AssertionError(f"a mixed result: {results}"))
                seen.add(str(far))

    searchers = [threading.Thread(target=search_repeatedly) for _ in range(2)]
    for searcher in searchers:
        searcher.start()
    for _ in range(10):
        for generation in (inserted, imported):
            promote(milvus, own_store, generation.name, force="test")
            time.sleep(0.05)
    stop.set()
    for searcher in searchers:
        searcher.join(30)
    assert errors == []
    assert len(seen) == 2


def test_probes_of_another_model_are_refused(milvus: Milvus, own_store: Store, imported: Generation) -> None:
    promote(milvus, own_store, imported.name, force="test")
    with pytest.raises(FingerprintMismatch, match=f"{PRINT}.*other"):
        search(milvus, "swapped", np.zeros((1, 1024), np.float32), fingerprint="other")


def test_no_name_escapes_a_filter_in_the_parser_of_the_server(milvus: Milvus, imported: Generation) -> None:
    for number, text in enumerate(HOSTILE_NAMES):
        for filters in (Filters(cameras=(text,)), Filters(tracks=((text, text),))):
            rows = milvus.call(
                "query", imported.name, filter=filters.expression(), output_fields=["uri"], limit=1000
            )
            assert [row["uri"] for row in rows] == [f"s3://archive/{number:06d}.jpg"], ascii(text)
    # The colors of tests/conftest.py by turns, of which these two are hostile.
    for number, color in ((3, "\\"), (4, '" or crop_id >= 0 or color == "')):
        ids = fetch_ids(
            milvus, imported.name, Filters(colors=(color,), min_color_confidence=0.1).expression()
        )
        uris = [f"s3://archive/{each:06d}.jpg" for each in range(number, 500, 5)]
        assert ids.tolist() == sorted(map(crop_id_of, uris))


@pytest.mark.parametrize("kind", ["DISKANN", "GPU_IVF_FLAT"])
def test_index_types_that_hang_this_server_are_refused(milvus: Milvus, kind: str) -> None:
    with pytest.raises(IndexRefused, match=kind):
        index_types.index_spec(milvus.capabilities, kind, 1000)


def test_an_alias_of_a_dropped_generation_is_refused_and_can_be_set_again(
    milvus: Milvus, own_store: Store, foreign_store: Store, finished_run: MakeRun
) -> None:
    runs = [finished_run(foreign_store, "lost", range(4000, 4040))]
    first, second = (load_runs(milvus, own_store, runs, alias="nowhere") for _ in range(2))
    promote(milvus, own_store, first.name, force="test")
    milvus.call("drop_collection", first.name, timeout=60)  # by hand: this server lets you
    with pytest.raises(BadInput, match=r"alias nowhere at .* points to nothing"):
        search(milvus, "nowhere", np.zeros((1, 1024), np.float32))
    promote(milvus, own_store, second.name, force="test")
    assert collection.live_generation(milvus, "nowhere") == second


class KilledLoad:
    """A load whose private server is killed after the first of two imports."""

    def __init__(self, server: MilvusServer, seaweedfs: SeaweedFs, finished_run: MakeRun) -> None:
        self.server = server
        self.store = open_store(f"s3://{server.bucket}/clvr", seaweedfs.settings)
        self.run = finished_run(self.store, "r1", range(60), rows_per_shard=30)
        self.died = 0.0

    def load(self, milvus: Milvus, progress: Progress = lambda done, total: None) -> Generation:
        return load_runs(
            milvus,
            self.store,
            [self.run],
            alias="clvr",
            options=LoadOptions(
                target="grpc_v1", milvus_bucket=f"s3://{self.server.bucket}", progress=progress
            ),
        )

    def kill(self, done: int, total: int) -> None:
        self.server.kill()
        self.died = time.monotonic()

    def killed_load(self) -> str:
        """Return the name of the generation that is left half full."""
        with connect(self.server.uri, self.server.token, timeout=3) as milvus:
            with pytest.raises((ImportFailed, IndexUnreachable)):
                self.load(milvus, self.kill)
            assert time.monotonic() - self.died < 25
            with pytest.raises(IndexUnreachable, match="does not answer"):
                search(milvus, "clvr", np.zeros((1, 1024), np.float32))
        (half,) = records.list_records(self.store, "clvr")
        assert half.state == "loading"
        return half.name


@pytest.fixture
def killed(server_folder: Path, seaweedfs: SeaweedFs, finished_run: MakeRun) -> Iterator[KilledLoad]:
    name = f"killed-{secrets.token_hex(4)}"
    with MilvusServer.start(server_folder / name, storage=seaweedfs, bucket=name) as server:
        yield KilledLoad(server, seaweedfs, finished_run)


def test_a_server_killed_during_an_import_is_an_error_at_once(killed: KilledLoad) -> None:
    killed.killed_load()
    start = time.monotonic()
    with pytest.raises(IndexUnreachable, match=r"no Milvus at|does not answer"):
        connect(killed.server.uri, killed.server.token)
    assert time.monotonic() - start < 6


@pytest.mark.slow
@pytest.mark.timeout(DEADLINE)
def test_a_load_interrupted_by_a_crash_is_dropped_and_rebuilt(killed: KilledLoad) -> None:
    # A minute long: 2.3.5 drops nothing until the sessions of its dead self have run out.
    half = killed.killed_load()
    killed.server.restart()
    with connect(killed.server.uri, killed.server.token) as milvus:
        whole = killed.load(milvus)
        assert collection.row_count(milvus, whole) == 60
        assert collection.list_generations(milvus) == [whole]
    entry = records.read(killed.store, half)
    assert entry is not None
    assert entry.state == "dropped"
