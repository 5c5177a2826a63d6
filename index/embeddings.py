"""The embeddings of a run for other programs: Arrow batches, one table, NumPy or pandas."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from index.generations.load_plan import plan_load
from index.runs import run as runs
from index.runs.run import Run
from index.runs.shards import ROW_GROUP_ROWS
from infra.errors import BadInput
from infra.store import open_store

LATEST = "latest"


def list_runs(folder: str) -> list[Run]:
    """Return the runs of a folder of runs (a path or an s3:// URI), the oldest first."""
    return runs.list_runs(open_store(folder))


def open_run(folder: str, run_id: str = LATEST, *, fingerprint: str | None = None) -> Run:
    """Open a finished run of a folder of runs (a path or an s3:// URI) by its id, by default the newest.

    fingerprint: that of the model, if only its runs are meant, such as `Embedder.fingerprint`.
    Raises BadInput if there is no such run, if it is not finished or of another model, and CorruptObject.
    """
    store = open_store(folder)
    if run_id != LATEST:
        run = Run.open(store, run_id)
        if not run.finished:
            raise BadInput(f"run {run_id} is not finished", remedy="Finish it: the same `clvr embed` again.")
        if fingerprint not in (None, run.fingerprint):
            raise BadInput(f"run {run_id} is of model {run.fingerprint}, not of {fingerprint}")
        return run
    finished = [run for run in list_runs(folder) if fingerprint in (None, run.fingerprint) and run.finished]
    if not finished:
        model = f" of model {fingerprint}" if fingerprint else ""
        raise BadInput(
            f"{store.uri} has no finished run{model}", remedy="Embed an archive first: `clvr embed`."
        )
    return finished[-1]


def read_embeddings(
    run: Run, columns: Sequence[str] | None = None, *, batch_rows: int = ROW_GROUP_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a finished run, at most `batch_rows` at a time, without erased crops.

    columns: those of `index.schema.SHARD_SCHEMAS`, all by default. One batch is in memory at a time. A row
    group is checked against its digest before it is read; the rows of `embedding` are views of the batch, see
    `vectors_of`. Raises CorruptObject, CountMismatch for an unfinished run.
    """
    for shard in plan_load([run], verify=False).shards:
        yield from shard.batches(batch_rows, columns)


def to_table(run: Run, columns: Sequence[str] | None = None) -> pa.Table:
    """Return all rows of a finished run as one Arrow table, for `to_pandas`, DuckDB or Polars.

    4.4 KB a row are held with the column `embedding`. Raises what `read_embeddings` raises.
    """
    batches = list(read_embeddings(run, columns))
    return pa.Table.from_batches(batches) if batches else pa.table({})
