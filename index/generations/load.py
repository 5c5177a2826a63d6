"""Build a generation from the shards of finished runs, and verify that every row arrived."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from index.documents import utc_now
from index.generations import records
from index.generations.erasure import resume_erasures
from index.generations.load_plan import LoadPlan, plan_load
from index.generations.resume import drop_partial, find_equal, resume_load, verify_primary_keys
from index.generations.staging import import_source, is_in_bucket
from index.generations.unit_build import build_units
from index.generations.units import remove_unreferenced
from index.lock import ROWS, Lock, acquire
from index.milvus import collection
from index.milvus.bulk_import import (
    MAX_CONCURRENT_GRPC_IMPORTS,
    MAX_CONCURRENT_IMPORTS,
    GrpcImporter,
    Importer,
    ImportProgress,
    import_files,
)
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.index_types import ImportInterface, index_spec
from index.milvus.rest_import import RestImporter
from index.milvus.waiting import wait_for_index, wait_for_row_count
from index.runs.run import Run
from index.transforms.transform import FeatureTransform
from infra.errors import BadInput, BadSetting, ClvrError, CountMismatch, IndexRefused
from infra.store import Store

Progress = Callable[[int, int], None]
Target = Literal["auto"] | ImportInterface

MIN_ROWS_FOR_IMPORT = 20_000
"""Rows per shard from which 'auto' imports: an import takes 2 s per file before its first row."""

_LOCAL_ROW_BYTES, _LOCAL_NUMBER_BYTES = 1_700, 12
"""Disk space of a row in a local file, and of each number of its vector: 14 KB at 1,024 dimensions, of which
8.5 KB are for vector and index, and 4.5 KB for the log of inserts."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a generation is filled.

    `milvus_bucket`: 's3://name' of the server's own bucket, from which alone it imports; shards elsewhere
    are copied there. `latest_wins`: take the row of the later run for a crop in two runs, which is an error
    otherwise. `progress`: called with rows done and rows in all. `on_import`: called with the state of
    imports. `note`: called with the step that starts. `transform`: of the vectors; it belongs to the
    generation. `reuse`: return a generation of the same runs, transform and index, if there is one that was
    not measured or promoted yet. `unit`: what a row is, see `index.generations.units`.
    """

    index_type: str = "auto"
    target: Target = "auto"
    milvus_bucket: str | None = None
    latest_wins: bool = False
    progress: Progress = lambda done, total: None
    on_import: Callable[[ImportProgress], None] = lambda progress: None
    note: Callable[[str], None] = lambda text: None
    transform: FeatureTransform | None = None
    reuse: bool = False
    unit: records.Unit = "crop"


@dataclass(slots=True)
class LoadTimes:
    """Seconds of the steps of one load."""

    check: float = 0.0
    tracks: float = 0.0
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
    times: LoadTimes

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
    options: LoadOptions | None = None,
    times: LoadTimes | None = None,
) -> Generation:
    """Build a new generation of the runs, given oldest first: validate, fill, index, load, count.

    store: the root store of the runs, which also has the records, locks and tombstones. Erased crops are
    left out. times: filled in with the seconds of each step.

    The alias does not move: see promote. An interrupted load of this alias is finished if all its rows are
    verifiably in Milvus, and dropped otherwise, because Milvus cannot distinguish a lost import from one that
    is running. A load that fails is dropped too.
    Raises Locked if another operation changes rows; what `plan_load` raises; IndexRefused, IndexUnreachable,
    ImportFailed, and CountMismatch if count(*) does not reach the number of rows.
    """
    with acquire(store, ROWS, f"a load of alias {alias}") as lock:
        return build_generation(milvus, store, runs, lock, alias=alias, options=options, times=times)


def build_generation(
    milvus: Milvus,
    store: Store,
    runs: Sequence[Run],
    lock: Lock,
    *,
    alias: str,
    options: LoadOptions | None = None,
    times: LoadTimes | None = None,
) -> Generation:
    """Build a generation like `load_runs`, for a caller that holds the lock on rows."""
    options = options or LoadOptions()
    times = times or LoadTimes()
    with _timed(times, "check"):
        collection.live_generation(milvus, alias)  # fails early if the alias belongs to another program
        plan = plan_load(runs, latest_wins=options.latest_wins, transform=options.transform)
    if not plan.rows:
        raise BadInput(f"the runs {', '.join(plan.run_ids)} leave no row to index")
    if options.unit == "track":
        options.note("making the rows of tracks")
        with _timed(times, "tracks"):
            plan = build_units(store, plan, lock.require)
    index = index_spec(milvus.capabilities, options.index_type, plan.rows, plan.dimension)
    target = choose_target(milvus, plan, options.target, options.milvus_bucket)
    resumed = resume_load(milvus, store, plan, index, alias=alias, bucket=options.milvus_bucket)
    resume_erasures(milvus, store)
    remove_unreferenced(store, keep=plan.units_id)
    if resumed is not None:
        # If it turns out to be incomplete, it is dropped and a new one is built below.
        with suppress(CountMismatch, IndexRefused):
            options.note(f"finishing {resumed.name}, whose load was interrupted")
            with _dropped_on_failure(milvus, store, resumed):
                _finish(_LoadContext(milvus, resumed, plan, options, lock, times))
                verify_primary_keys(milvus, resumed, plan)
            records.update(store, resumed.name, state="ready")
            return resumed
    built = find_equal(milvus, store, plan, index, alias=alias) if options.reuse else None
    if built is not None:
        options.note(f"{built.name} was built of the same runs and is not measured yet")
        return built
    milvus.require_space(plan.rows * (_LOCAL_ROW_BYTES + _LOCAL_NUMBER_BYTES * plan.dimension))
    generation = records.new_generation(
        milvus,
        store,
        alias=alias,
        fingerprint=plan.fingerprint,
        run_ids=plan.run_ids,
        index=index,
        schema_version=plan.schema_version,
        transform=plan.transform_id,
        dimension=plan.dimension,
    )
    # The record comes before the collection: no later load would drop a collection without a record.
    records.create(
        store,
        records.GenerationRecord(
            name=generation.name,
            alias=alias,
            fingerprint=plan.fingerprint,
            run_ids=plan.run_ids,
            rows=plan.rows,
            target=target,
            state="loading",
            updated=utc_now(),
            transform=plan.transform_id,
            unit=options.unit,
            units=plan.units_id,
            crops=plan.crops,
        ),
    )
    context = _LoadContext(milvus, generation, plan, options, lock, times)
    with _dropped_on_failure(milvus, store, generation):
        collection.create_collection(milvus, generation)
        with _timed(times, "fill"):
            _LOADERS[target](context)
        _finish(context)
    records.update(store, generation.name, state="ready")
    return generation


def choose_target(milvus: Milvus, plan: LoadPlan, target: Target, bucket: str | None) -> ImportInterface:
    """Return the interface by which shards get into Milvus.

    'auto' imports on a server whose bucket is known, if the shards are large enough.
    Raises IndexRefused for an interface that this server does not have, BadSetting for an import without a
    bucket.
    """
    offered = milvus.capabilities.import_interface
    if target == "auto":
        importable = bucket is not None and all(
            not shard.store.local or is_in_bucket(shard, bucket) for shard in plan.shards
        )
        is_large = plan.rows >= MIN_ROWS_FOR_IMPORT * len(plan.shards)
        return offered if importable and is_large else "stream_insert"
    if target == "stream_insert":
        return target
    if target != offered:
        raise IndexRefused(
            f"Milvus {milvus.capabilities.version} cannot be filled by {target}",
            remedy="Leave --target at 'auto', or choose stream_insert.",
        )
    if bucket is None:
        raise BadSetting(
            "an import needs the server's own bucket, which is not set",
            remedy="Set it (CLVR_MILVUS_BUCKET=s3://…), or choose --target stream_insert.",
        )
    return target


def _insert(context: _LoadContext) -> None:
    milvus, generation = context.milvus, context.generation
    batches = context.plan.batches(collection.INSERT_ROWS)
    for done in collection.insert_rows(milvus, "insert", generation, batches):
        context.progress(done)
    milvus.call("flush", generation.name, timeout=600)


def _import_by(importer: Importer, context: _LoadContext, max_concurrent: int) -> None:
    bucket = context.options.milvus_bucket or ""
    with import_source(context.plan, context.generation.name, bucket) as files:
        import_files(importer, context.generation.name, files, context.on_import, max_concurrent)


def _import_grpc(context: _LoadContext) -> None:
    _import_by(GrpcImporter(context.milvus), context, MAX_CONCURRENT_GRPC_IMPORTS)


def _import_rest(context: _LoadContext) -> None:
    with RestImporter(context.milvus) as importer:
        _import_by(importer, context, MAX_CONCURRENT_IMPORTS)


_LOADERS: dict[ImportInterface, Callable[[_LoadContext], None]] = {
    "stream_insert": _insert,
    "grpc_v1": _import_grpc,
    "rest_v2": _import_rest,
}


def _finish(context: _LoadContext) -> None:
    milvus, generation = context.milvus, context.generation
    # The order matters: an index must come after the flush, because Milvus Lite searches unflushed rows by
    # brute force, and before the load, which would use the cosine metric without an index.
    with _timed(context.times, "index"):
        context.options.note("building the index")
        if not milvus.call("list_indexes", generation.name):
            collection.create_index(milvus, generation)
        wait_for_index(milvus, generation)
    with _timed(context.times, "ready"):
        context.options.note("loading")
        collection.ensure_loaded(milvus, generation)
        wait_for_row_count(milvus, generation, context.plan.rows)
    context.lock.require()


@contextmanager
def _timed(times: LoadTimes, step: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    setattr(times, step, time.monotonic() - started)


@contextmanager
def _dropped_on_failure(milvus: Milvus, store: Store, generation: Generation) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # If the drop fails too, the record stays at 'loading', and the next load drops the generation.
        with suppress(ClvrError):
            drop_partial(milvus, store, generation.name)
        raise
