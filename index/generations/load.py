"""Filling a generation from the shards of finished runs, and proving that every row arrived."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from index.documents import utc_now
from index.generations import records
from index.generations.erasure import resume_erasures
from index.generations.load_plan import LoadPlan, plan_load
from index.generations.resume import drop_partial, resume_load, verify_primary_keys
from index.generations.staging import import_source, is_in_bucket
from index.lock import ROWS, Lock, acquire
from index.milvus import collection, index_types
from index.milvus.bulk_import import (
    GRPC_AT_ONCE,
    MAX_CONCURRENT_IMPORTS,
    GrpcImporter,
    Importer,
    ImportProgress,
    import_files,
)
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.index_types import ImportInterface
from index.milvus.rest_import import RestImporter
from index.runs.run import Run
from index.runs.tombstones import erased_ids
from infra.errors import BadInput, BadSetting, ClvrError, CountMismatch, IndexRefused
from infra.store import Store

Progress = Callable[[int, int], None]
Target = Literal["auto"] | ImportInterface

_MIN_ROWS_FOR_IMPORT = 20_000  # rows a shard: an import takes 2 s a file before its first row
_PATIENCE = 180.0  # seconds that a count may stand still
# A server reports rows as indexed by whole segments, of up to 250,000 rows: on two busy cores a graph over
# 100,000 took longer than three minutes without a word.
_INDEX_PATIENCE = 3600.0
_POLL = 0.5
_LOCAL_BYTES = (
    14_000  # a row in a local file: vector and index take 8.5 KB, and the log of inserts 4.5 KB more
)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a generation is filled.

    `milvus_bucket`: 's3://name' of the server's own bucket, the only one that imports are read from; shards
    elsewhere are copied there for the import. `latest_wins`: of a crop in two runs the later run's row is
    taken; without it such a crop is an error. `progress`: called with rows done and rows in all.
    `on_import`: called with the state of imports. `note`: called with the step that starts.
    """

    index_type: str = "auto"
    target: Target = "auto"
    milvus_bucket: str | None = None
    latest_wins: bool = False
    progress: Progress = lambda done, total: None
    on_import: Callable[[ImportProgress], None] = lambda progress: None
    note: Callable[[str], None] = lambda text: None


@dataclass(slots=True)
class LoadTimes:
    """Seconds of the steps of one load."""

    check: float = 0.0
    fill: float = 0.0
    index: float = 0.0
    ready: float = 0.0


@dataclass(frozen=True, slots=True)
class _LoadContext:
    milvus: Milvus
    generation: Generation
    plan: LoadPlan
    options: LoadOptions
    lock: Lock
    times: LoadTimes = field(default_factory=LoadTimes)

    def progress(self, done: int) -> None:
        self.lock.require()
        self.options.progress(done, self.plan.rows)

    def on_import(self, progress: ImportProgress) -> None:
        self.progress(progress.rows_done)
        self.options.on_import(progress)


def load_runs(
    milvus: Milvus,
    store: Store,
    runs: Sequence[Run],
    *,
    alias: str,
    index_type: str = "auto",
    target: Target = "auto",
    milvus_bucket: str | None = None,
    latest_wins: bool = False,
    progress: Progress = lambda done, total: None,
) -> Generation:
    """Build a new generation of the runs, given oldest first: validate, fill, index, load, count.

    store: where the ledger, the locks and the tombstones live: the root store of the runs. Erased crops are
    left out. The other arguments are those of LoadOptions.

    The alias does not move: see promote. A load of this alias that was cut off is finished if all its rows
    can be proven to be there, and dropped if not: Milvus cannot tell a lost import from one that is running.
    A load that fails is dropped too.
    Raises Locked if anything else changes rows right now; what `plan_load` raises; IndexRefused,
    IndexUnreachable, ImportFailed, and CountMismatch if count(*) does not come to the number of rows.
    """
    options = LoadOptions(index_type, target, milvus_bucket, latest_wins, progress)
    with acquire(store, ROWS, f"a load of alias {alias}") as lock:
        return build_generation(milvus, store, runs, lock, alias=alias, options=options)


def build_generation(
    milvus: Milvus,
    store: Store,
    runs: Sequence[Run],
    lock: Lock,
    *,
    alias: str,
    options: LoadOptions,
    times: LoadTimes | None = None,
) -> Generation:
    """Do what `load_runs` does, for a caller that holds the lock on rows. Fills in `times`."""
    times = times or LoadTimes()
    with _timed(times, "check"):
        collection.live_generation(milvus, alias)  # an alias that belongs to somebody else is found out first
        plan = plan_load(runs, latest_wins=options.latest_wins, erased=erased_ids(store))
    if not plan.rows:
        raise BadInput(f"the runs {', '.join(plan.run_ids)} leave no row to index")
    index = index_types.index_spec(milvus.capabilities, options.index_type, plan.rows)
    chosen = choose_target(milvus, plan, options.target, options.milvus_bucket)
    generation = resume_load(milvus, store, plan, index, alias=alias, bucket=options.milvus_bucket)
    resume_erasures(milvus, store)
    if generation is not None:
        # What is wrong with it after all is dropped, and then it is built anew.
        with suppress(CountMismatch, IndexRefused):
            options.note(f"finishing {generation.name}, which was cut off")
            filling = _LoadContext(milvus, generation, plan, options, lock, times)
            with _dropped_on_failure(milvus, store, generation):
                _finish(filling)
                verify_primary_keys(milvus, generation, plan)
            records.update(store, generation.name, state="ready")
            return generation
    milvus.require_space(plan.rows * _LOCAL_BYTES)
    generation = records.new_generation(
        milvus, store, alias=alias, fingerprint=plan.fingerprint, run_ids=plan.run_ids, index=index
    )
    # The ledger comes before the collection: a collection that nobody remembers would stay for ever.
    records.create(
        store,
        records.GenerationRecord(
            name=generation.name,
            alias=alias,
            fingerprint=plan.fingerprint,
            run_ids=plan.run_ids,
            rows=plan.rows,
            target=chosen,
            state="loading",
            updated=utc_now(),
        ),
    )
    filling = _LoadContext(milvus, generation, plan, options, lock, times)
    with _dropped_on_failure(milvus, store, generation):
        collection.create_collection(milvus, generation)
        with _timed(times, "fill"):
            _LOADERS[chosen](filling)
        _finish(filling)
    records.update(store, generation.name, state="ready")
    return generation


def choose_target(milvus: Milvus, plan: LoadPlan, target: Target, bucket: str | None) -> ImportInterface:
    """Return how the shards get into Milvus.

    'auto' imports on a server whose bucket is named, if the shards are large enough to be worth it.
    Raises IndexRefused for a way that this server has not, BadSetting for an import without a bucket.
    """
    offered = milvus.capabilities.import_interface
    if target == "auto":
        s3 = bucket is not None and all(
            not one.store.local or is_in_bucket(one, bucket) for one in plan.shards
        )
        large = plan.rows >= _MIN_ROWS_FOR_IMPORT * len(plan.shards)
        return offered if s3 and large else "stream_insert"
    if target == "stream_insert":
        return target
    if target != offered:
        raise IndexRefused(
            f"Milvus {milvus.capabilities.version} cannot be filled by {target}",
            remedy="Leave the target to 'auto', or choose stream_insert.",
        )
    if bucket is None:
        raise BadSetting(
            "an import needs the server's own bucket, and it is not named",
            remedy="Name it (CLVR_MILVUS_BUCKET=s3://…), or choose stream_insert.",
        )
    return target


def await_index(milvus: Milvus, generation: Generation) -> None:
    """Wait until the index holds all flushed rows. Raises IndexRefused if it fails or stands still."""
    waiting = StallDetector(f"the index of {generation.name}", _INDEX_PATIENCE)
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


def await_count(milvus: Milvus, generation: Generation, expected: int) -> None:
    """Wait until count(*) is as expected. Raises CountMismatch if it is higher, or stands still."""
    # "Completed" is not yet searchable: it took up to 18 s more on Milvus 2.3.5.
    waiting = StallDetector(f"count(*) of {generation.name}", _PATIENCE)
    while (found := collection.row_count(milvus, generation)) != expected:
        try:
            if found > expected:
                raise TimeoutError(f"count(*) of {generation.name} is too high")
            waiting.for_change(found)
        except TimeoutError as stuck:
            raise CountMismatch(
                f"{stuck}: {found:,} rows in the index, {expected:,} in the shards", remedy="Load again."
            ) from stuck


def _finish(filling: _LoadContext) -> None:
    milvus, generation = filling.milvus, filling.generation
    # This order: an index of rows that are not flushed is none, and Milvus Lite searches such rows by brute
    # force; loading without an index makes it use cosine.
    with _timed(filling.times, "index"):
        filling.options.note("building the index")
        if not milvus.call("list_indexes", generation.name):
            collection.create_index(milvus, generation)
        await_index(milvus, generation)
    with _timed(filling.times, "ready"):
        filling.options.note("loading")
        collection.ensure_loaded(milvus, generation)
        await_count(milvus, generation, filling.plan.rows)
    filling.lock.require()


def _insert(filling: _LoadContext) -> None:
    for done in collection.insert_rows(
        filling.milvus, "insert", filling.generation.name, filling.plan.batches(collection.INSERT_ROWS)
    ):
        filling.progress(done)
    filling.milvus.call("flush", filling.generation.name, timeout=600)


def _import_by(importer: Importer, filling: _LoadContext, at_once: int) -> None:
    bucket = filling.options.milvus_bucket or ""
    with import_source(filling.plan, filling.generation.name, bucket) as files:
        import_files(importer, filling.generation.name, files, filling.on_import, at_once)


def _import_grpc(filling: _LoadContext) -> None:
    _import_by(GrpcImporter(filling.milvus), filling, GRPC_AT_ONCE)


def _import_rest(filling: _LoadContext) -> None:
    with RestImporter(filling.milvus) as importer:
        _import_by(importer, filling, MAX_CONCURRENT_IMPORTS)


_LOADERS: dict[ImportInterface, Callable[[_LoadContext], None]] = {
    "stream_insert": _insert,
    "grpc_v1": _import_grpc,
    "rest_v2": _import_rest,
}


class StallDetector:
    """Ends a wait when the figure that is waited for has not changed for a while."""

    def __init__(self, what: str, seconds: float) -> None:
        self._what = what
        self._seconds = seconds
        self._figure: object = None
        self._since = time.monotonic()

    def for_change(self, figure: object) -> None:
        """Sleep a moment. Raises TimeoutError if the figure stands still for too long."""
        if figure != self._figure:
            self._figure, self._since = figure, time.monotonic()
        if time.monotonic() - self._since > self._seconds:
            raise TimeoutError(f"{self._what} stands still")
        time.sleep(_POLL)


@contextmanager
def _timed(times: LoadTimes, step: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    setattr(times, step, time.monotonic() - begun)


@contextmanager
def _dropped_on_failure(milvus: Milvus, store: Store, generation: Generation) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # If this fails as well, the ledger still says 'loading', and the next load drops it.
        with suppress(ClvrError):
            drop_partial(milvus, store, generation.name)
        raise
