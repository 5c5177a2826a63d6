"""Increments: new runs go into the live generation, or into a new generation if they are large."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from index.documents import utc_now
from index.generations import records
from index.generations.erasure import resume_erasures
from index.generations.load import LoadOptions, build_generation
from index.generations.load_plan import plan_load
from index.lock import ROWS, acquire, alias_lock
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.waiting import wait_for_index, wait_for_row_count
from index.runs.run import Run, vanished_ids
from index.transforms.stored import read_transform
from infra.errors import BadInput, FingerprintMismatch
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
    name none. Raises BadInput if nothing is live, FingerprintMismatch, Locked, CountMismatch, what
    `plan_load` raises.
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
        resume_erasures(milvus, store)
        checked = plan_load(runs, latest_wins=True)
        if checked.fingerprint != live.fingerprint:
            raise FingerprintMismatch(
                f"{live.name} is of model {live.fingerprint}, the runs are of {checked.fingerprint}",
                remedy="Build a new generation with `clvr load`, and promote it with --new-model.",
            )
        new_ids = checked.run_ids
        live_runs = open_runs([run_id for run_id in record.run_ids if run_id not in new_ids])
        # Sorted by time: a repeated run must not overwrite the rows of a later one.
        all_runs = sorted([*live_runs, *runs], key=lambda run: run.info.created)
        transform = read_transform(store, live.fingerprint, live.transform)
        plan = plan_load(all_runs, latest_wins=True, verify=False, transform=transform)
        increment = replace(
            plan, run_ids=new_ids, shards=tuple(shard for shard in plan.shards if shard.run_id in new_ids)
        )
        collection.ensure_loaded(milvus, live)
        rows_before = collection.row_count(milvus, live)
        is_known = set(new_ids) <= {*record.run_ids, *record.pending}
        if increment.rows > max_share * max(record.rows, 1) and not is_known:
            generation = build_generation(
                milvus,
                store,
                all_runs,
                rows_lock,
                alias=alias,
                options=replace(options, latest_wins=True, transform=transform),
            )
            return Increment(
                generation=generation,
                upserted=0,
                removed=0,
                rows_before=rows_before,
                rows_after=plan.rows,
                promote_next=True,
            )

        records.update(store, live.name, pending=new_ids)
        batches = increment.batches(collection.INSERT_ROWS)
        for rows_sent in collection.insert_rows(milvus, "upsert", live, batches):
            rows_lock.require()
            live_lock.require()
            options.progress(rows_sent, increment.rows)
        milvus.call("flush", live.name, timeout=600)
        vanished = np.concatenate([vanished_ids(run) for run in runs])
        gone = np.setdiff1d(vanished, plan.crop_ids())
        removed = collection.count_of(milvus, live.name, gone)
        collection.delete(milvus, live.name, gone)
        wait_for_index(milvus, live)
        wait_for_row_count(milvus, live, plan.rows)
        change = {
            "at": utc_now(),
            "kind": "increment",
            "runs": list(new_ids),
            "rows_before": rows_before,
            "rows_after": plan.rows,
            "removed": removed,
        }
        records.update(
            store,
            live.name,
            rows=plan.rows,
            run_ids=plan.run_ids,
            pending=(),
            changes=(*record.changes, change),
        )
        return Increment(
            generation=live,
            upserted=increment.rows,
            removed=removed,
            rows_before=rows_before,
            rows_after=plan.rows,
            promote_next=False,
        )
