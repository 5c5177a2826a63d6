"""The proof that a generation holds what its runs brought, no row more and no row less."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from index.generations import records
from index.generations.load_plan import plan_load
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.runs.run import Run
from index.runs.tombstones import erased_ids
from infra.store import Store

_MAX_EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """listed = embedded + quarantined + duplicates, and embedded - superseded - vanished - erased = indexed.

    Sums over the runs of the generation. `missing` are crop_ids that the generation should hold and does not,
    `foreign` those that it should not hold, up to ten of each; `repeated` counts rows whose key came before.
    """

    generation: str
    state: str
    runs: tuple[str, ...]
    listed: int
    embedded: int
    quarantined: int
    duplicates: int
    superseded: int
    vanished: int
    erased: int
    expected: int
    indexed: int
    ledger_rows: int | None
    missing_count: int
    missing: tuple[int, ...]
    foreign_count: int
    foreign: tuple[int, ...]
    repeated: int
    pending: tuple[str, ...]

    @property
    def differences(self) -> tuple[str, ...]:
        """What does not add up, in words; nothing if all does."""
        found = []
        listed = self.embedded + self.quarantined + self.duplicates
        if self.listed != listed:
            found.append(f"{self.listed:,} crops were listed, {listed:,} are accounted for")
        if self.pending:
            found.append(f"an increment was cut off: repeat `clvr load {' '.join(self.pending)} --into-live`")
        for count, ids, what in (
            (self.missing_count, self.missing, "missing"),
            (self.foreign_count, self.foreign, "not of its runs, or erased"),
        ):
            if count:
                found.append(f"{count:,} rows are {what}: {', '.join(map(str, ids))}")
        if self.repeated:
            found.append(f"{self.repeated:,} rows have a primary key that another row has")
        if self.indexed != self.expected:
            found.append(f"count(*) is {self.indexed:,}, the runs give {self.expected:,}")
        if self.ledger_rows not in (None, self.indexed):
            found.append(f"count(*) is {self.indexed:,}, by the ledger it is {self.ledger_rows:,}")
        return tuple(found)


def reconcile(milvus: Milvus, store: Store, generation: Generation, runs: Sequence[Run]) -> Reconciliation:
    """Hold every primary key of a generation against the crop_ids of its runs' shards.

    runs: those of the generation's ledger entry, oldest first. Raises CountMismatch for an unfinished run.
    """
    entry = records.read(store, generation.name)
    plan = plan_load(runs, latest_wins=True, verify=False, erased=erased_ids(store))
    collection.ensure_loaded(milvus, generation)
    wanted = plan.crop_ids()
    held = collection.fetch_ids(milvus, generation.name)
    different = np.unique(held)
    missing = np.setdiff1d(wanted, different, assume_unique=True)
    foreign = np.setdiff1d(different, wanted, assume_unique=True)
    summaries = [run.summary for run in runs]
    return Reconciliation(
        generation=generation.name,
        state=entry.state if entry else "not in the ledger",
        runs=plan.run_ids,
        listed=sum(summary.listed for summary in summaries),
        embedded=sum(summary.embedded for summary in summaries),
        quarantined=sum(summary.quarantined for summary in summaries),
        duplicates=sum(summary.duplicates for summary in summaries),
        superseded=plan.superseded,
        vanished=plan.vanished,
        erased=plan.erased,
        expected=plan.rows,
        indexed=collection.row_count(milvus, generation),
        ledger_rows=entry.rows if entry else None,
        missing_count=int(missing.size),
        missing=tuple(missing[:_MAX_EXAMPLES].tolist()),
        foreign_count=int(foreign.size),
        foreign=tuple(foreign[:_MAX_EXAMPLES].tolist()),
        repeated=int(held.size - different.size),
        pending=entry.pending if entry else (),
    )
