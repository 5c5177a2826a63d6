"""A night's increment into the live generation, or, where it is large, a new generation of all runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from index.documents import utc_now
from index.generations import records
from index.generations.erasure import resume_erasures
from index.generations.load import LoadOptions, await_count, await_index, build_generation
from index.generations.load_plan import plan_load
from index.lock import ROWS, acquire, alias_lock
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.runs.run import Run, vanished_ids
from index.runs.tombstones import erased_ids
from infra.errors import BadInput, FingerprintMismatch
from infra.store import Store

LARGE_INCREMENT = 0.2
"""Share of the live rows above which an increment makes a new generation: upserted rows sit in small segments
until Milvus compacts them, and a new generation passes the gate before anybody searches it."""


@dataclass(frozen=True, slots=True)
class Increment:
    """What came of it: rows upserted and removed, or a new generation that waits for its promotion."""

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
    earlier: Callable[[Sequence[str]], Sequence[Run]],
    *,
    alias: str,
    options: LoadOptions,
    large: float = LARGE_INCREMENT,
) -> Increment:
    """Bring runs, oldest first, into the live generation; crops that they list as vanished are removed.

    earlier: opens the runs of the live generation by their ids. May be repeated: a row has one crop_id, and
    an increment that was cut off is in the ledger as pending until it is whole.
    Raises BadInput if nothing is live, FingerprintMismatch, Locked, CountMismatch, what `plan_load` raises.
    """
    doing = f"an increment into alias {alias}"
    # Both: a promotion in the middle would leave the increment in a generation that nobody searches.
    with acquire(store, ROWS, doing) as lock, acquire(store, alias_lock(alias), doing) as moving:
        live = collection.live_generation(milvus, alias)
        entry = records.read(store, live.name) if live else None
        if live is None or entry is None:
            raise BadInput(
                f"alias {alias} points to no generation of this ledger",
                remedy="Build the first one: `clvr load`, then `clvr promote`.",
            )
        resume_erasures(milvus, store)
        erased = erased_ids(store)
        checked = plan_load(runs, latest_wins=True, erased=erased)
        if checked.fingerprint != live.fingerprint:
            raise FingerprintMismatch(
                f"{live.name} is of model {live.fingerprint}, the runs are of {checked.fingerprint}",
                remedy="Build a new generation with `clvr load`, and promote it with --new-model.",
            )
        ours = checked.run_ids
        known = earlier([run_id for run_id in entry.run_ids if run_id not in ours])
        # By time: a run that is repeated must not overwrite what a later one brought.
        united = sorted([*known, *runs], key=lambda run: run.info.created)
        whole = plan_load(united, latest_wins=True, verify=False, erased=erased)
        new = replace(whole, run_ids=ours, shards=tuple(one for one in whole.shards if one.run_id in ours))
        collection.ensure_loaded(milvus, live)
        before = collection.row_count(milvus, live)
        if new.rows > large * max(entry.rows, 1) and not set(ours) <= {*entry.run_ids, *entry.pending}:
            built = build_generation(
                milvus, store, united, lock, alias=alias, options=replace(options, latest_wins=True)
            )
            return Increment(built, 0, 0, before, whole.rows, promote_next=True)

        records.update(store, live.name, pending=ours)
        for done in collection.insert_rows(milvus, "upsert", live.name, new.batches(collection.INSERT_ROWS)):
            lock.require()
            moving.require()
            options.progress(done, new.rows)
        milvus.call("flush", live.name, timeout=600)
        gone = np.setdiff1d(np.concatenate([vanished_ids(run) for run in runs]), whole.crop_ids())
        removed = collection.count_of(milvus, live.name, gone)
        collection.delete(milvus, live.name, gone)
        await_index(milvus, live)
        await_count(milvus, live, whole.rows)
        records.update(
            store,
            live.name,
            rows=whole.rows,
            run_ids=whole.run_ids,
            pending=(),
            changes=(*entry.changes, _change(ours, before, whole.rows, removed)),
        )
        return Increment(live, new.rows, removed, before, whole.rows, promote_next=False)


def _change(run_ids: Sequence[str], before: int, after: int, removed: int) -> dict[str, object]:
    return {
        "at": utc_now(),
        "kind": "increment",
        "runs": list(run_ids),
        "rows_before": before,
        "rows_after": after,
        "removed": removed,
    }
