"""Reconciliation: whether a generation holds exactly the rows of its runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from index.generations import records
from index.generations.erasure import require_recorded
from index.generations.keys import compare_keys
from index.generations.load_plan import NO_IDS, plan_load
from index.generations.units import kept_members, plan_generation
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.runs.balance import RunBalance, check_run
from index.runs.run import Run
from index.runs.tombstones import erasure_ids
from index.transforms.stored import read_transform
from infra.store import Store


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The balance of a generation and its runs, and the rows that differ.

    listed = embedded + quarantined + duplicates, and embedded - superseded - vanished - erased = indexed, as
    sums over the runs of the generation. `missing` are crop_ids that should be in the generation, `foreign`
    those that should not, up to ten of each; `repeated` counts further rows of a primary key. `ledger_rows`
    is the number of rows in the record of the generation.

    Of a generation of tracks, embedded - superseded - vanished - erased - withdrawn = `crops`, the crops on
    its rows: `withdrawn` are those whose track lost its row with an erased crop. `stray` are crops on rows
    that the runs do not have. `ledger_crops` is the number of crops in the record.
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
    unit: str = "crop"
    crops: int | None = None
    withdrawn: int = 0
    stray: int = 0
    ledger_crops: int | None = None

    @property
    def differences(self) -> tuple[str, ...]:
        """The sums and rows that do not match, in words."""
        differences = []
        if self.pending:
            runs = " ".join(self.pending)
            differences.append(f"an increment was interrupted: repeat `clvr load {runs} --into-live`")
        for count, ids, problem in (
            (self.missing_count, self.missing, "missing"),
            (self.foreign_count, self.foreign, "not of its runs, or erased"),
        ):
            if count:
                differences.append(f"{count:,} rows are {problem}: {', '.join(map(str, ids))}")
        if self.repeated:
            differences.append(f"{self.repeated:,} rows have the primary key of another row")
        if self.indexed != self.expected:
            differences.append(f"count(*) is {self.indexed:,}, the runs have {self.expected:,}")
        if self.ledger_rows not in (None, self.indexed):
            differences.append(f"count(*) is {self.indexed:,}, by its record it is {self.ledger_rows:,}")
        if self.stray:
            differences.append(f"{self.stray:,} crops on its rows are not in its runs")
        if self.ledger_crops != self.crops:
            differences.append(f"{self.crops:,} crops are on its rows, by its record {self.ledger_crops:,}")
        return tuple(differences)


def reconcile(milvus: Milvus, store: Store, generation: Generation, runs: Sequence[Run]) -> Reconciliation:
    """Compare every primary key of a generation with the crop_ids in the shards of its runs.

    runs: those of the generation's record, oldest first. Raises CountMismatch for an unfinished run, and what
    `check_run` raises for a run whose own counts disagree, and `read_transform` for its transform.
    """
    require_recorded(store, erasure_ids(store))
    record = records.read(store, generation.name)
    read_transform(store, generation.fingerprint, generation.transform)  # a search could not do without it
    balance = sum(map(check_run, runs), RunBalance(0, 0, 0, 0))
    crops = plan_load(runs, latest_wins=True, verify=False)
    plan = plan_generation(store, record, ()) if record and record.units else crops
    of_runs, on_rows = NO_IDS, NO_IDS
    if plan.units_id:
        of_runs, on_rows = crops.crop_ids(), kept_members(store, plan.units_id)
    collection.ensure_loaded(milvus, generation)
    keys = compare_keys(milvus, generation.name, plan)
    return Reconciliation(
        generation=generation.name,
        state=record.state if record else "not in the ledger",
        runs=plan.run_ids,
        listed=balance.listed,
        embedded=balance.embedded,
        quarantined=balance.quarantined,
        duplicates=balance.duplicates,
        superseded=crops.superseded,
        vanished=crops.vanished,
        erased=crops.erased,
        expected=plan.rows,
        indexed=collection.row_count(milvus, generation),
        ledger_rows=record.rows if record else None,
        missing_count=keys.missing_count,
        missing=tuple(keys.missing),
        foreign_count=keys.foreign_count,
        foreign=tuple(keys.foreign),
        repeated=keys.repeated,
        pending=record.pending if record else (),
        unit=record.unit if record else "crop",
        crops=plan.crops,
        withdrawn=int(np.setdiff1d(of_runs, on_rows, assume_unique=True).size),
        stray=int(np.setdiff1d(on_rows, of_runs, assume_unique=True).size),
        ledger_crops=record.crops if record else None,
    )
