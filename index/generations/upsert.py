"""Increments: new runs go into the live generation, or into a new generation if they are large.

What an increment reads follows from the increment: its own shards and lists of vanished crops, and the
crop_ids of runs that are later than its first one, which only a repeated run has. How many rows the
generation then has follows from its record, and from how many of these crops the index has before. The record
keeps that number until the increment is complete, because a killed one leaves the index in between.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from index.documents import utc_now
from index.generations import records
from index.generations.erasure import resume_erasures
from index.generations.load import LoadOptions, build_generation
from index.generations.load_plan import LoadPlan, plan_load
from index.generations.records import GenerationRecord
from index.lock import ROWS, Lock, acquire, alias_lock
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.waiting import wait_for_index, wait_for_row_count
from index.runs.run import Run, vanished_ids
from index.transforms.stored import read_transform
from infra.errors import BadInput, FingerprintMismatch, SchemaMismatch
from infra.store import Store

LARGE_INCREMENT = 0.2
"""Share of the live rows above which an increment builds a new generation, because upserted rows stay in
small segments until Milvus compacts them, and because a new generation passes the gate before it is live."""


@dataclass(frozen=True, slots=True)
class Increment:
    """The result: rows upserted and removed, or a new generation that waits for its promotion."""

    generation: Generation
    upserted: int
    removed: int
    rows_before: int
    rows_after: int
    promote_next: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """Runs that go into the live generation together, and the runs that it has, oldest first."""

    milvus: Milvus
    store: Store
    live: Generation
    options: LoadOptions
    locks: tuple[Lock, Lock]
    run_ids: tuple[str, ...]
    runs: tuple[Run, ...]

    def plan(self) -> LoadPlan:
        """Plan these runs and all later ones: no earlier run decides which of their rows count."""
        first = next(number for number, run in enumerate(self.runs) if run.run_id in self.run_ids)
        transform = read_transform(self.store, self.live.fingerprint, self.live.transform)
        return plan_load(self.runs[first:], latest_wins=True, verify=False, transform=transform)


def load_into_live(
    milvus: Milvus,
    store: Store,
    runs: Sequence[Run],
    open_runs: Callable[[Sequence[str]], Sequence[Run]],
    *,
    alias: str,
    options: LoadOptions,
    max_share: float = LARGE_INCREMENT,
) -> Increment:
    """Load runs, oldest first, into the live generation, and remove the crops that they list as vanished.

    open_runs: opens the runs of the live generation by their ids. May be repeated: crop_ids are primary
    keys, and an interrupted increment stays pending in the record until it is complete. The vectors get the
    transform of the live generation, and so does a new generation that a large increment becomes; options
    name none. Linear in the runs, not in the live generation, unless that had lost rows before.
    Raises BadInput if nothing is live or what is live is of tracks, FingerprintMismatch, SchemaMismatch,
    Locked, CountMismatch, what `plan_load` raises.
    """
    purpose = f"an increment into alias {alias}"
    # Both locks: after a promotion meanwhile, the increment would be in a generation that is not live.
    with acquire(store, ROWS, purpose) as rows_lock, acquire(store, alias_lock(alias), purpose) as live_lock:
        live = collection.live_generation(milvus, alias)
        record = records.read(store, live.name) if live else None
        if live is None or record is None:
            raise BadInput(
                f"alias {alias} points to no generation with a record",
                remedy="Build the first one: `clvr load`, then `clvr promote`.",
            )
        if record.unit == "track":
            raise BadInput(
                f"{live.name} is of tracks, and a new crop changes the row of its track",
                remedy="Build a new generation of all runs: `clvr load RUN... --unit track --latest-wins`, "
                "then `clvr promote`; `clvr reindex` does this by itself.",
            )
        resume_erasures(milvus, store)
        _require_fit(plan_load(runs, latest_wins=True), live)
        collection.ensure_loaded(milvus, live)
        new_ids = tuple(run.run_id for run in runs)
        pending = tuple(run_id for run_id in new_ids if run_id in record.pending)
        # An interrupted increment is completed alone, because its record states what comes of it alone.
        groups = [pending] if pending and set(pending) == set(record.pending) else []
        groups.append(tuple(run_id for run_id in new_ids if not groups or run_id not in groups[0]))
        done: list[Increment] = []
        for run_ids in filter(None, groups):
            held = records.read(store, live.name)
            assert held is not None  # noqa: S101  read above
            known = {run.run_id: run for run in runs if run.run_id in {*run_ids, *held.run_ids}}
            others = open_runs([run_id for run_id in held.run_ids if run_id not in known])
            step = _Step(
                milvus,
                store,
                live,
                options,
                (rows_lock, live_lock),
                run_ids,
                # Sorted by time: a repeated run must not overwrite the rows of a later one.
                tuple(sorted([*others, *known.values()], key=lambda run: run.info.created)),
            )
            done.append(_load_step(step, held, max_share))
        return replace(
            done[-1],
            upserted=sum(one.upserted for one in done),
            removed=sum(one.removed for one in done),
            rows_before=done[0].rows_before,
        )


def _require_fit(plan: LoadPlan, live: Generation) -> None:
    """Raise FingerprintMismatch or SchemaMismatch for runs of another model than the live generation's."""
    if plan.fingerprint != live.fingerprint:
        raise FingerprintMismatch(
            f"{live.name} is of model {live.fingerprint}, the runs are of {plan.fingerprint}",
            remedy="Build a new generation with `clvr load`, and promote it with --new-model.",
        )
    if plan.rows and plan.schema_version != live.schema_version:
        raise SchemaMismatch(
            f"the shards have the columns of version {plan.schema_version}, {live.name} those of version "
            f"{live.schema_version}",
            remedy="Embed the archive again with this model, and load that run alone.",
        )


def _load_step(step: _Step, record: GenerationRecord, max_share: float) -> Increment:
    milvus, store, live = step.milvus, step.store, step.live
    plan = step.plan()
    increment = replace(
        plan,
        run_ids=step.run_ids,
        shards=tuple(shard for shard in plan.shards if shard.run_id in step.run_ids),
    )
    rows_before = collection.row_count(milvus, live)
    is_known = set(step.run_ids) <= {*record.run_ids, *record.pending}
    if increment.rows > max_share * max(record.rows, 1) and not is_known:
        return _new_generation(step, plan, rows_before)
    vanished = np.concatenate([vanished_ids(run) for run in step.runs if run.run_id in step.run_ids])
    gone = np.setdiff1d(vanished, plan.crop_ids())
    rows_after = _rows_after(step, record, increment, gone, rows_before)
    records.update(store, live.name, pending=step.run_ids, pending_rows=rows_after)
    for rows_sent in collection.insert_rows(
        milvus, "upsert", live, increment.batches(collection.INSERT_ROWS)
    ):
        for lock in step.locks:
            lock.require()
        step.options.progress(rows_sent, increment.rows)
    milvus.call("flush", live.name, timeout=600)
    removed = collection.count_of(milvus, live.name, gone)
    collection.delete(milvus, live.name, gone)
    wait_for_index(milvus, live)
    wait_for_row_count(milvus, live, rows_after)
    change = {
        "at": utc_now(),
        "kind": "increment",
        "runs": list(step.run_ids),
        "rows_before": rows_before,
        "rows_after": rows_after,
        "removed": removed,
    }
    records.update(
        store,
        live.name,
        rows=rows_after,
        run_ids=tuple(run.run_id for run in step.runs),
        pending=(),
        pending_rows=None,
        changes=(*record.changes, change),
    )
    return Increment(
        generation=live,
        upserted=increment.rows,
        removed=removed,
        rows_before=rows_before,
        rows_after=rows_after,
        promote_next=False,
    )


def _rows_after(
    step: _Step, record: GenerationRecord, increment: LoadPlan, gone: NDArray[np.int64], rows_before: int
) -> int:
    """Return count(*) after the increment.

    gone: crop_ids (m,) that it removes. The index tells which crops are new to it, as long as it has the rows
    of the record; after an interrupted attempt the record tells the number itself. All shards are asked if
    neither holds: rows were lost, or erased during the interruption.
    """
    if record.pending == step.run_ids and record.pending_rows is not None:
        return record.pending_rows
    if record.pending or rows_before != record.rows:
        return plan_load(step.runs, latest_wins=True, verify=False).rows
    fresh = [shard for shard in increment.shards if shard.run_id not in record.run_ids]
    added = replace(increment, shards=tuple(fresh))
    before = collection.count_of(step.milvus, step.live.name, added.crop_ids())
    return record.rows + added.rows - before - collection.count_of(step.milvus, step.live.name, gone)


def _new_generation(step: _Step, plan: LoadPlan, rows_before: int) -> Increment:
    """Build a generation of all runs, because the increment is large."""
    generation = build_generation(
        step.milvus,
        step.store,
        step.runs,
        step.locks[0],
        alias=step.live.alias,
        options=replace(step.options, latest_wins=True, transform=plan.transform),
    )
    built = records.read(step.store, generation.name)
    assert built is not None  # noqa: S101  the load wrote it
    return Increment(
        generation=generation,
        upserted=0,
        removed=0,
        rows_before=rows_before,
        rows_after=built.rows,
        promote_next=True,
    )
