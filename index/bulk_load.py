"""Filling a generation from the shards of finished runs, and proving that every row arrived."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from index import generation_ledger, generations
from index.generations import Generation
from index.load_plan import LoadPlan, PlannedShard, plan_load
from index.milvus import ImportInterface, Milvus
from index.runs import Run
from index.shards import vectors_of, write_shard
from infra.errors import BadSetting, ClvrError, CountMismatch, ImportFailed, IndexRefused, IndexUnreachable
from infra.store import Store

Progress = Callable[[int, int], None]

_INSERT_ROWS = 1000  # 4 MB of vectors; a request may have 64 MB, and larger batches were not faster
_WORTH_IMPORTING = 20_000  # rows a shard: an import takes 2 s a file before its first row
_PATIENCE = 180.0  # seconds that a count or an index build may stand still
_POLL = 0.5


@dataclass(frozen=True, slots=True)
class _Filling:
    milvus: Milvus
    generation: Generation
    plan: LoadPlan
    bucket: str | None
    progress: Progress


def load_runs(
    milvus: Milvus,
    store: Store,
    runs: Sequence[Run],
    *,
    alias: str,
    index_type: str = "auto",
    target: Literal["auto"] | ImportInterface = "auto",
    milvus_bucket: str | None = None,
    latest_wins: bool = False,
    progress: Progress = lambda done, total: None,
) -> Generation:
    """Build a new generation of the runs, given oldest first: validate, fill, index, load, count.

    store: where the ledger lives, `generations/<name>.json`: the root store of the runs.
    milvus_bucket: 's3://name' of the server's own bucket; shards in it can be imported instead of inserted.
    progress: called with rows done and rows in all.

    The alias does not move: see promote. A load of this alias that was interrupted is dropped first, and one
    that fails is dropped too, because Milvus cannot tell a lost import from one that is still running.
    Two loads of one alias must not run at once, for each would take the other for an interrupted one: the
    caller holds a lock.
    Raises what `plan_load` raises, IndexRefused, IndexUnreachable, ImportFailed, and CountMismatch if
    count(*) does not come to the number of rows.
    """
    plan = plan_load(runs, latest_wins=latest_wins)
    index = generations.index_spec(milvus, index_type, plan.rows)
    chosen = choose_target(milvus, plan, target, milvus_bucket)
    drop_interrupted(milvus, store, alias)
    generation = generations.new_generation(
        milvus, store, alias=alias, fingerprint=plan.fingerprint, run_ids=plan.run_ids, index=index
    )
    # The ledger comes before the collection: a collection that nobody remembers would stay for ever.
    generation_ledger.create(
        store,
        generation_ledger.Entry(
            name=generation.name,
            alias=alias,
            fingerprint=plan.fingerprint,
            run_ids=plan.run_ids,
            rows=plan.rows,
            target=chosen,
            state="loading",
            updated=generation_ledger.stamp(),
        ),
    )
    with _dropped_on_failure(milvus, store, generation):
        generations.create_collection(milvus, generation)
        _FILL[chosen](_Filling(milvus, generation, plan, milvus_bucket, progress))
        # This order: an index of rows that are not flushed is none, and Milvus Lite searches such rows by
        # brute force; loading without an index makes it use cosine.
        generations.create_index(milvus, generation)
        _await_index(milvus, generation)
        generations.ensure_loaded(milvus, generation)
        _await_count(milvus, generation, plan.rows)
    generation_ledger.update(store, generation.name, state="ready")
    return generation


def choose_target(
    milvus: Milvus, plan: LoadPlan, target: Literal["auto"] | ImportInterface, bucket: str | None
) -> ImportInterface:
    """Return how the shards get into Milvus. Raises IndexRefused for a way that this server has not."""
    offered = milvus.capabilities.import_interface
    reachable = bucket is not None and all(_in_bucket(shard, bucket) for shard in plan.shards)
    if target == "auto":
        large = plan.rows >= _WORTH_IMPORTING * len(plan.shards)
        return "grpc_v1" if offered == "grpc_v1" and reachable and large else "stream_insert"
    if target == "stream_insert":
        return target
    if target != offered or target not in _FILL:
        raise IndexRefused(
            f"Milvus {milvus.capabilities.version} cannot be filled by {target}",
            remedy="Leave the target to 'auto', or choose stream_insert.",
        )
    if not reachable:
        raise BadSetting(
            f"the shards are not all in the server's own bucket ({bucket or 'not named'})",
            remedy="Name it (CLVR_MILVUS_BUCKET), or choose stream_insert.",
        )
    return target


def drop_interrupted(milvus: Milvus, store: Store, alias: str) -> list[str]:
    """Drop the generations of an alias whose load was cut off, and return their names."""
    cut_off = [entry.name for entry in generation_ledger.entries(store, alias) if entry.state == "loading"]
    for name in cut_off:
        _discard(milvus, store, name)
    return cut_off


def _insert(filling: _Filling) -> None:
    done = 0
    for shard in filling.plan.shards:
        for batch in shard.batches(_INSERT_ROWS):
            rows = list(_as_rows(batch))
            filling.milvus.call("insert", filling.generation.name, rows, timeout=120)
            done += len(rows)
            filling.progress(done, filling.plan.rows)
    filling.milvus.call("flush", filling.generation.name, timeout=600)


def _import(filling: _Filling) -> None:
    done = 0
    for number, shard in enumerate(filling.plan.shards):
        if not shard.rows:
            continue
        with _importable(filling, shard, number) as key:
            imported = _import_file(filling.milvus, filling.generation.name, key)
        if imported != shard.rows:
            raise ImportFailed(f"{key}: {imported:,} of {shard.rows:,} rows were imported")
        done += imported
        filling.progress(done, filling.plan.rows)


_FILL: dict[ImportInterface, Callable[[_Filling], None]] = {"stream_insert": _insert, "grpc_v1": _import}


def _as_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    names = [name for name in batch.schema.names if name != "embedding"]
    columns = [batch.column(name).to_pylist() for name in names]
    for values, vector in zip(zip(*columns, strict=True), vectors_of(batch), strict=True):
        yield {**dict(zip(names, values, strict=True)), "embedding": vector}


@contextmanager
def _importable(filling: _Filling, shard: PlannedShard, number: int) -> Iterator[str]:
    bucket = filling.bucket or ""
    if not shard.superseded.size:
        yield _bucket_key(shard.store.uri_of(shard.facts.key), bucket)
        return
    # Milvus imports whole files, so the rows that are still wanted go into one of their own.
    key = f"generations/{filling.generation.name}/shard-{number:05d}.parquet"
    write_shard(
        shard.store, key, shard.batches(8192), fingerprint=filling.plan.fingerprint, run_id=shard.run_id
    )
    try:
        yield _bucket_key(shard.store.uri_of(key), bucket)
    finally:
        shard.store.delete(key)


def _import_file(milvus: Milvus, collection: str, key: str) -> int:
    task = milvus.bulk_insert(collection, key)
    while True:
        try:
            state = milvus.bulk_insert_state(task)
        except IndexUnreachable as lost:
            raise ImportFailed(
                f"{key}: Milvus was lost during the import, so its outcome is unknown",
                remedy="Load again: what is half there is dropped first.",
            ) from lost
        if state.state_name == "Completed":
            return int(state.row_count)
        if state.state_name.startswith("Failed"):
            raise ImportFailed(
                f"{key}: {state.failed_reason or state.state_name}",
                remedy="Repair the cause, then load again.",
            )
        time.sleep(_POLL)


def _in_bucket(shard: PlannedShard, bucket: str) -> bool:
    return shard.store.uri_of(shard.facts.key).startswith(bucket.rstrip("/") + "/")


def _bucket_key(uri: str, bucket: str) -> str:
    return uri.removeprefix(bucket.rstrip("/") + "/")


def _await_index(milvus: Milvus, generation: Generation) -> None:
    waiting = _Patience(f"the index of {generation.name}")
    while True:
        said = milvus.call("describe_index", generation.name, "embedding")
        if str(said["state"]) == "Finished" and not int(said["pending_index_rows"]):
            return
        if str(said["state"]) == "Failed":
            raise IndexRefused(f"the index of {generation.name} could not be built")
        try:
            waiting.for_change(said["indexed_rows"])
        except TimeoutError as stuck:
            raise IndexRefused(
                f"{stuck}: {said['indexed_rows']} of {said['total_rows']} rows",
                remedy="Look at the server's log; an index type that it cannot build can hang like this.",
            ) from stuck


def _await_count(milvus: Milvus, generation: Generation, rows: int) -> None:
    # "Completed" is not yet searchable: it took up to 18 s more on Milvus 2.3.5.
    waiting = _Patience(f"count(*) of {generation.name}")
    while (found := generations.count(milvus, generation)) != rows:
        try:
            if found > rows:
                raise TimeoutError(f"count(*) of {generation.name} is too high")
            waiting.for_change(found)
        except TimeoutError as stuck:
            raise CountMismatch(
                f"{stuck}: {found:,} rows in the index, {rows:,} in the shards", remedy="Load again."
            ) from stuck


class _Patience:
    """Ends a wait when the figure that is waited for has not changed for a while."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._figure: object = None
        self._since = time.monotonic()

    def for_change(self, figure: object) -> None:
        """Sleep a moment. Raises TimeoutError if the figure stands still for too long."""
        if figure != self._figure:
            self._figure, self._since = figure, time.monotonic()
        if time.monotonic() - self._since > _PATIENCE:
            raise TimeoutError(f"{self._what} stands still")
        time.sleep(_POLL)


@contextmanager
def _dropped_on_failure(milvus: Milvus, store: Store, generation: Generation) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # If this fails as well, the ledger still says 'loading', and the next load drops it.
        with suppress(ClvrError):
            _discard(milvus, store, generation.name)
        raise


def _discard(milvus: Milvus, store: Store, name: str) -> None:
    if name in milvus.call("list_collections"):
        milvus.call("drop_collection", name, timeout=generations.DROP_SECONDS)
    generation_ledger.update(store, name, state="dropped")
