"""The chain of runs that continue each other, and the crops that they know."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from index.runs.accounting import ERASED_URI
from index.runs.run import Run, vanished_uris
from infra.errors import BadInput
from infra.store import Store


def known_crops(store: Store, run_id: str) -> pa.Table:
    """Return uri and etag of all crops of a run and of the runs which it continues.

    A run that was started with --since-run has only the changes, so its chain is followed. Of a crop in
    several runs the latest etag counts; a crop that vanished is left out, so it is new when it returns.
    Raises ObjectMissing, BadInput for a chain that leads back to itself.
    """
    tables, chain = [], lineage(store, run_id)
    for age, run in enumerate(reversed(chain)):
        crops, vanished = run.manifest().select(["uri", "etag"]), vanished_uris(run)
        crops = crops.filter(pc.not_equal(crops["uri"], ERASED_URI))
        vanished = vanished.append_column("etag", pa.repeat("", vanished.num_rows))
        for rows, exists in ((crops, True), (vanished, False)):
            rows = rows.append_column("age", pa.repeat(age, rows.num_rows))
            tables.append(rows.append_column("exists", pa.repeat(exists, rows.num_rows)))
    all_rows = pa.concat_tables(tables)
    if len(chain) == 1:
        return all_rows.filter(all_rows["exists"]).select(["uri", "etag"])
    # "first" depends on the order, which threads would not keep.
    latest = (
        all_rows.sort_by("age")
        .group_by("uri", use_threads=False)
        .aggregate([("etag", "first"), ("exists", "first")])
    )
    latest = latest.filter(latest["exists_first"]).select(["uri", "etag_first"])
    return latest.rename_columns({"etag_first": "etag"})


def lineage(store: Store, run_id: str, *, known: Mapping[str, Run] | None = None) -> list[Run]:
    """Return a run and those that it continues, by --since-run or --requeue, the oldest first.

    known: runs that are already open, by id; others are read.
    Raises ObjectMissing, BadInput for a chain that leads back to itself.
    """
    chain: list[Run] = []
    next_id: str | None = run_id
    while next_id is not None:
        if any(run.run_id == next_id for run in chain):
            raise BadInput(f"the runs before {run_id} lead back to {next_id}")
        run = (known or {}).get(next_id) or Run.open(store, next_id)
        chain.append(run)
        next_id = run.info.settings.get("since_run") or run.info.settings.get("requeue")
    return chain[::-1]
