"""A purge leaves no byte of an erased crop, keeps the sums, and may be cut off anywhere."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.archive.manifest import crop_id_of
from index.generations import records
from index.generations.audit import audit_folder, audit_index
from index.generations.erasure import forget
from index.generations.load import load_runs
from index.generations.promotion import promote
from index.generations.purge import purge
from index.generations.receipt import Receipt, read_receipt
from index.generations.reconcile import reconcile
from index.generations.selection import EraseSelection
from index.milvus import collection
from index.milvus.client import Milvus
from index.runs.balance import check_run
from index.runs.run import Run, list_runs
from index.runs.tombstones import erasure_ids, read_tombstones
from index.schema import SHARD_SCHEMAS
from infra.errors import ClvrError, CountMismatch
from infra.store import Store
from infra.store.sealed import seal, unseal

ERASED = [crop_id_of(f"s3://archive/cam-3/{number:06d}.jpg") for number in (3, 8, 13)]
SELECTION = EraseSelection(crop_ids=tuple(ERASED))
URIS = [f"s3://archive/cam-3/{number:06d}.jpg" for number in (3, 8, 13)]


@pytest.fixture(autouse=True)
def no_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive of these runs does not exist; nobody waits for its answer."""
    monkeypatch.setattr("index.generations.selection.open_store", _refuse)


def _refuse(*_: object) -> Store:
    class Gone:
        @staticmethod
        def holds(uri: str) -> bool:
            return False

        @staticmethod
        def ensure() -> None:
            raise ClvrError("no archive")

    return Gone()  # type: ignore[return-value]


def nothing_else(stores: object, erased: object) -> list[object]:
    return []


def erase(milvus: Milvus, store: Store) -> Receipt:
    forget(milvus, store, SELECTION, reason="case 17", dry_run=False, purge=True)
    return purge(milvus, store, nothing_else)  # type: ignore[arg-type]


def traces(store: Store, vectors: list[bytes]) -> Iterator[str]:
    """Look for the erased crops in every object, as text, as numbers, and in the columns of Parquet files."""
    for info in store.list():
        data = store.get(info.key)
        columns: list[bytes] = [data]
        if data[:4] == b"PAR1":
            table = pq.read_table(io.BytesIO(data))
            columns += [buffer for name in table.schema.names for buffer in _bytes_of(table[name])]
        for blob in columns:
            for needle in [*map(str.encode, URIS), *(str(one).encode() for one in ERASED), *vectors]:
                if needle in blob:
                    yield f"{info.key}: {needle[:40]!r}"
            for crop_id in ERASED:
                if crop_id.to_bytes(8, "little") in blob:
                    yield f"{info.key}: the bytes of {crop_id}"


def _bytes_of(column: pa.ChunkedArray) -> list[bytes]:
    return [bytes(buffer) for chunk in column.chunks for buffer in chunk.buffers() if buffer is not None]


@pytest.fixture
def vectors(store: Store, make_run: Callable[..., Run]) -> list[bytes]:
    """The bytes of the embeddings to erase, of two runs in the store."""
    runs = [
        make_run("r1", 60, rows_per_shard=20, attributes=True),
        make_run("r2", 60, first=30, seed=1, rows_per_shard=20, attributes=True),
    ]
    found = []
    for run in runs:
        for key in run.shard_keys():
            table = pq.read_table(io.BytesIO(store.get(key)))
            for crop_id, vector in zip(
                table["crop_id"].to_pylist(), table["embedding"].to_pylist(), strict=True
            ):
                if crop_id in ERASED:
                    found.append(np.float32(vector).tobytes())
    assert len(found) == 3
    return found


def test_no_byte_is_left_and_every_sum_still_holds(
    milvus: Milvus, store: Store, vectors: list[bytes], tmp_path: Path
) -> None:
    runs = list_runs(store)
    retained, live = (load_runs(milvus, store, [runs[0]], alias="clvr") for _ in range(2))
    promote(milvus, store, retained.name, force="test")
    promote(milvus, store, live.name, force="test")
    store.put("audit/x.json", seal({"who": "a", "request": {"probes": f"crop:{ERASED[0]}", "top": 5}}))
    store.put("nights/n/summary.html", f"<p>{URIS[1]}</p>".encode())
    store.put("listings/of-a-killed-planner/section.json", URIS[1].encode())
    assert len(list(traces(store, vectors))) > 3

    receipt = erase(milvus, store)

    assert list(traces(store, vectors)) == []
    assert (receipt.state, receipt.crops, receipt.left) == ("done", 3, 0)
    assert {place.kind for place in receipt.places} == {"run", "generation", "document", "page"}
    assert unseal(store.get("audit/x.json"), "")["request"] == {"probes": "crop:(erased)", "top": 5}
    for run in list_runs(store):
        balance = check_run(run)
        removed = 3 if run.run_id == "r1" else 0
        assert (balance.listed, balance.embedded, balance.quarantined) == (60, 60 - removed, removed)
        assert run.summary.causes == ({"manifest/erased": 3} if removed else {})
        assert run.info.revision == (1 if removed else 0)
    current = collection.live_generation(milvus, "clvr")
    assert current is not None and current.name != live.name
    before = records.previous(milvus, store, "clvr")
    assert before is not None and before.name != retained.name
    for generation in (current, before):
        assert collection.row_count(milvus, generation) == 57
        assert not reconcile(milvus, store, generation, [Run.open(store, "r1")]).differences
    assert records.read(store, live.name).state == "dropped"  # type: ignore[union-attr]
    assert records.current_name(store, live.name) == current.name == records.current_name(store, current.name)
    assert records.current_name(store, retained.name) == before.name
    assert records.current_name(store, "clvr_gone") == "clvr_gone"
    assert [path for path in Path(milvus.uri).rglob("*.parquet") if live.name in str(path)] == []
    for path in Path(milvus.uri).rglob("*.parquet"):
        assert not np.isin(pq.read_table(path)["crop_id"].to_numpy(), ERASED).any()
    erased = read_tombstones(store)
    assert sum(place.found for place in [*audit_folder(store, erased), *audit_index(milvus, erased)]) == 0


def test_an_audit_finds_what_is_only_hidden(milvus: Milvus, store: Store, vectors: list[bytes]) -> None:
    load_runs(milvus, store, [list_runs(store)[0]], alias="clvr")
    forget(milvus, store, SELECTION, reason="case 17", dry_run=False)
    erased = read_tombstones(store)
    found = {
        place.kind: place.found for place in [*audit_folder(store, erased), *audit_index(milvus, erased)]
    }
    assert found["generation"] == 0
    assert found["runs"] > 0
    assert found["index file"] == 3


def test_a_process_that_has_nothing_loaded_yet_purges_too(
    milvus: Milvus, store: Store, vectors: list[bytes]
) -> None:
    generation = load_runs(milvus, store, [list_runs(store)[0]], alias="clvr")
    forget(milvus, store, SELECTION, reason="case 17", dry_run=False)
    milvus.call("release_collection", generation.name)
    receipt = purge(milvus, store, nothing_else, reason="later")  # type: ignore[arg-type]
    (current,) = collection.list_generations(milvus)
    assert current.name != generation.name
    assert collection.row_count(milvus, current) == 57
    assert (receipt.reason, receipt.crops) == ("later", 0)
    assert list(traces(store, vectors)) == []


def test_a_second_purge_changes_nothing(milvus: Milvus, store: Store, vectors: list[bytes]) -> None:
    load_runs(milvus, store, [list_runs(store)[0]], alias="clvr")
    erase(milvus, store)
    before = {info.key: store.get(info.key) for info in store.list("runs")}
    receipt = purge(milvus, store, nothing_else, reason="again")  # type: ignore[arg-type]
    assert {info.key: store.get(info.key) for info in store.list("runs")} == before
    assert (receipt.reason, receipt.crops, sum(place.found for place in receipt.places)) == ("again", 0, 0)
    assert len(erasure_ids(store)) == 2


def test_a_row_that_came_back_is_deleted_again(milvus: Milvus, store: Store, vectors: list[bytes]) -> None:
    """A compaction of a server may lose deletions; the audit sees such rows, and its remedy is true."""
    generation = load_runs(milvus, store, [list_runs(store)[0]], alias="clvr")
    rows = list(collection.fetch_rows(milvus, generation.name, ERASED, SHARD_SCHEMAS[2].names))
    erase(milvus, store)
    name = records.current_name(store, generation.name)
    milvus.call("insert", name, rows)
    erased = read_tombstones(store)
    assert sum(place.found for place in audit_index(milvus, erased) if place.kind == "generation") == 3
    purge(milvus, store, nothing_else)  # type: ignore[arg-type]
    assert sum(place.found for place in audit_index(milvus, erased)) == 0
    current = collection.get_generation(milvus, records.current_name(store, name))
    assert not reconcile(milvus, store, current, [Run.open(store, "r1")]).differences


def test_a_purged_run_is_loaded_again_and_compared_with_the_archive(
    milvus: Milvus, store: Store, vectors: list[bytes]
) -> None:
    erase(milvus, store)
    generation = load_runs(milvus, store, list_runs(store), alias="clvr", options=_latest())
    assert collection.row_count(milvus, generation) == 90 - 3
    from index.catalogue.catalogue import open_catalogue

    known = open_catalogue(store, "r1")
    rows = pa.concat_tables(known.rows(part.id) for part in known.catalogue.partitions)
    assert rows.num_rows == 57 and not set(rows["uri"].to_pylist()) & set(URIS)


def _latest() -> object:
    from index.generations.load import LoadOptions

    return LoadOptions(latest_wins=True)


class Cut(BaseException):
    """The process ends here."""


class Boundary:
    """Ends the process before or after the n-th write."""

    def __init__(self, number: int, *, after: bool) -> None:
        self.left = number
        self.after = after

    def around(self, original: Callable[..., object]) -> Callable[..., object]:
        def write(store: Store, *args: object, **options: object) -> object:
            if args and str(args[0]).startswith("locks/"):
                return original(store, *args, **options)  # a dead process holds no lock, and we live on
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Cut
            try:
                return original(store, *args, **options)
            finally:
                if self.left == 0:
                    self.left = -1
                    raise Cut

        return write


@pytest.mark.parametrize("after", [True, False])
def test_a_purge_may_end_at_every_write(
    milvus: Milvus,
    store: Store,
    vectors: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
) -> None:
    load_runs(milvus, store, [list_runs(store)[0]], alias="clvr")
    forget(milvus, store, SELECTION, reason="case 17", dry_run=False, purge=True)
    (erasure_id,) = erasure_ids(store)
    cuts = 0
    for number in range(1, 100):
        boundary = Boundary(number, after=after)
        with monkeypatch.context() as patched:
            for name in ("put", "create", "replace", "delete"):
                patched.setattr(Store, name, boundary.around(getattr(Store, name)))
            try:
                purge(milvus, store, nothing_else)  # type: ignore[arg-type]
                break
            except Cut:
                cuts += 1
        assert read_receipt(store, erasure_id).state in ("purging", "done")
        for run in list_runs(store):
            try:
                assert check_run(run).listed == 60
            except CountMismatch as refused:
                assert "in the folder, but not in done.json" in refused.message
    assert cuts > 5
    assert list(traces(store, vectors)) == []
    assert read_receipt(store, erasure_id).state == "done"
    assert all(check_run(run).listed == 60 for run in list_runs(store))
    assert unseal(store.get("locks/rows.json"), "")["released"] is True


def test_an_audit_names_what_it_could_not_look_at(store: Store, vectors: list[bytes]) -> None:
    forged = b"PAR1" + b"x" * 50
    store.put("runs/r1/shards/broken.parquet", forged)
    erased = read_tombstones(store)
    (place,) = [one for one in audit_folder(store, erased) if one.where.endswith("broken.parquet")]
    assert place.note.startswith("not looked at: ")
