"""The runs of one archive and model in the order of their creation, and the crops they know."""

from collections.abc import Mapping

import pyarrow as pa

from index.runs.run import Run, vanished_uris
from infra.errors import BadInput
from infra.store import Store


def known_crops(store: Store, run_id: str) -> pa.Table:
    """Return uri and etag of all crops that a run and the runs which it continues were made of.

    A run that was made with --since-run holds only what was new then, so its chain is followed. Of a crop
    that several have, the latest counts; one that vanished since is not there any more, so that it is new
    when it comes back. Raises ObjectMissing, BadInput for a chain that ends in itself.
    """
    tables, chain = [], lineage(store, run_id)
    for age, run in enumerate(reversed(chain)):
        rows = run.manifest().select(["uri", "etag"])
        gone = vanished_uris(run)
        for part, there in ((rows, True), (gone.append_column("etag", pa.repeat("", gone.num_rows)), False)):
            part = part.append_column("age", pa.repeat(age, part.num_rows))
            tables.append(part.append_column("there", pa.repeat(there, part.num_rows)))
    rows = pa.concat_tables(tables)
    if len(chain) == 1:
        return rows.filter(rows["there"]).select(["uri", "etag"])
    # Threads would lose the order that "first" rests on.
    latest = (
        rows.sort_by("age")
        .group_by("uri", use_threads=False)
        .aggregate([("etag", "first"), ("there", "first")])
    )
    latest = latest.filter(latest["there_first"]).select(["uri", "etag_first"])
    return latest.rename_columns({"etag_first": "etag"})


def lineage(store: Store, run_id: str, *, known: Mapping[str, Run] | None = None) -> list[Run]:
    """Return a run and those that it continues, by --since-run or --requeue, the oldest first.

    known: runs that are open already, by id; only others are read.
    Raises ObjectMissing, BadInput for a chain that ends in itself.
    """
    chain: list[Run] = []
    link: str | None = run_id
    while link is not None:
        if any(run.run_id == link for run in chain):
            raise BadInput(f"the runs before {run_id} lead back to {link}")
        run = (known or {}).get(link) or Run.open(store, link)
        chain.append(run)
        link = run.info.settings.get("since_run") or run.info.settings.get("requeue")
    return chain[::-1]
