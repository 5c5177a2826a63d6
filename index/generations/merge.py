"""Merge small runs: many nights with a file each become one run with full shards, which takes their place.

    runs/merged-<digest>/    a run like any other; its settings state the runs that it was made of
    runs/merged.json         the one switch: see `index.runs.merged`

The new run has the rows that its sources give a load: of each crop the latest, without those that vanished or
were erased. It is read back and compared with its sources row by row before the switch, and the sources go
after it. A kill before the switch leaves a run that no document names, and one after it leaves sources that
are not needed; the next merge or purge removes either.

The manifest has the crops in the order of the sources, so the settings, which state how many crops each has,
tell which run embedded a crop. A purge changes neither order nor number.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.archive.reassigned import read_reassigned
from index.archive.spool import TableFile
from index.documents import utc_now
from index.generations import records
from index.generations.load_plan import LoadPlan, plan_load
from index.lock import ROWS, Lock, acquire
from index.runs.accounting import ERASED_URI, crop_ids, sort_like
from index.runs.lineage import lineage
from index.runs.merged import Merge, MergeSwitch, read_merges
from index.runs.run import Run, list_runs, vanished_uris
from index.runs.shards import ROW_GROUP_ROWS, shard_ids
from index.runs.tombstones import ErasedCrops, erasure_ids, read_tombstones
from index.schema import MANIFEST_SCHEMA, QUARANTINE_SCHEMA
from infra.errors import CountMismatch, Locked, ObjectMissing
from infra.store import Store, ignore_missing_root

Ids = NDArray[np.int64]
NO_IDS: Ids = np.empty(0, np.int64)

UNMERGED_RUNS = 2
"""Runs at the end of a chain that stay as they are: the next night continues one of them."""

_NAME = re.compile(r"merged-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class MergePolicy:
    """Merge once more than `runs` consecutive runs of a chain have fewer than `rows` embedded crops each.

    No merge with `runs` = 0. The last UNMERGED_RUNS of the chain do not count.
    """

    runs: int = 30
    rows: int = 100_000


@dataclass(frozen=True, slots=True)
class MergedRuns:
    """A run that was merged, the runs that it replaced, and its embedded crops."""

    run_id: str
    sources: tuple[str, ...]
    rows: int


def merge_runs(store: Store, run_id: str, policy: MergePolicy, *, wait: float = 0.0) -> list[MergedRuns]:
    """Merge the small runs of the chain that ends with a run, and remove them; may be repeated.

    Merged are consecutive finished runs of one archive and model that the same generations hold, and from
    which no other chain branches off. Runs of an unfinished load or increment are left for the next time.
    wait: how long to wait for another operation that changes rows, in s. Linear in the rows of the merged
    runs; in memory are their crop_ids, and 16 bytes a row to compare them.
    Raises Locked if another operation changes rows or erased crops meanwhile, CountMismatch if a merged run
    differs from its sources, and what `plan_load` raises.
    """
    if not policy.runs:
        return []
    with acquire(store, ROWS, f"a merge of small runs before {run_id}", wait=wait) as lock:
        _remove_sources(store)
        merged = [_merge(store, group, lock) for group in _mergeable(store, run_id, policy)]
        if not merged:
            remove_merged(store)
        return list(filter(None, merged))


def remove_merged(store: Store) -> None:
    """Remove the sources of all merges, and the runs of merges that were cut off before their switch.

    The caller holds the lock on rows.
    """
    _remove_sources(store)
    if _cut_off(store):
        MergeSwitch(store)  # so that a process that stood still meanwhile cannot switch to one of them
        _remove_cut_off(store)


def origins(run: Run) -> Iterator[tuple[str, pa.Table]]:
    """Yield the crops of a manifest (MANIFEST_SCHEMA) by the run that embedded or quarantined them.

    Of a merged run these are the runs that it was made of, the oldest first; each may come several times.
    Raises CorruptObject.
    """
    names = [source["run_id"] for source in _stated(run)]
    for number, rows in _by_source(run):
        yield names[number], rows


def _folders(store: Store) -> list[str]:
    folders: list[str] = []
    with ignore_missing_root(store):
        folders = list(store.folders("runs"))
    return [folder.rpartition("/")[2] for folder in folders]


def _remove_sources(store: Store) -> None:
    merges = read_merges(store)
    sources = {name for merge in merges.merges for name in merge.sources}
    for name in sources.intersection(_folders(store)):
        if Run.open(store, merges.run_of(name)).finished:
            _remove_run(store, name)


def _cut_off(store: Store) -> list[str]:
    used = {merge.run_id for merge in read_merges(store).merges}
    return [
        name
        for name in _folders(store)
        if name not in used and _NAME.fullmatch(name) and _is_cut_off(store, name)
    ]


def _remove_cut_off(store: Store, *, keep: str = "") -> None:
    for name in _cut_off(store):
        if name != keep:
            _remove_run(store, name)


def _is_cut_off(store: Store, run_id: str) -> bool:
    """Return whether a merged run without a switch can go: a copied folder may lack the list of merges."""
    with suppress(ObjectMissing):
        run = Run.open(store, run_id)
        names = run.info.settings.get("merged_from") or ()
        return not run.finished or all(store.head(f"runs/{name}/run.json") is not None for name in names)
    return True


def _remove_run(store: Store, run_id: str) -> None:
    keys = [info.key for info in store.list(f"runs/{run_id}")]
    with suppress(ObjectMissing):
        store.delete(f"drift/{Run.open(store, run_id).fingerprint}/{run_id}.parquet")
    store.delete(f"runs/{run_id}/run.json")  # before the others: what has none is no run
    store.delete(*keys)


def _mergeable(store: Store, run_id: str, policy: MergePolicy) -> list[list[Run]]:
    """Return the runs to merge, the oldest first, in groups."""
    runs = list_runs(store)
    chain = lineage(store, run_id, known={run.run_id: run for run in runs})
    merges, chained = read_merges(store), {run.run_id for run in chain}
    followers: Counter[str] = Counter()
    for run in runs:
        before = run.info.settings.get("since_run") or run.info.settings.get("requeue")
        if before and (run.run_id in chained or not run.info.settings.get("merged")):
            followers[merges.run_of(before)] += 1
    used = [record for record in records.list_records(store) if record.state != "dropped"]
    blocked = {
        name for record in used for name in (record.run_ids if record.state == "loading" else record.pending)
    }
    branches = 0

    def place(run: Run) -> tuple[Any, ...]:
        """What consecutive runs of one group have in common."""
        nonlocal branches
        key = (branches, _is_small(run, policy) and run.run_id not in blocked)
        branches += followers[run.run_id] > 1
        generations = tuple(record.name for record in used if run.run_id in record.run_ids)
        return *key, run.info.archive, run.fingerprint, generations

    groups = [(key, list(group)) for key, group in groupby(chain[:-UNMERGED_RUNS], place)]
    return [group for key, group in groups if key[1] and len(group) > policy.runs]


def _is_small(run: Run, policy: MergePolicy) -> bool:
    return run.finished and run.summary.embedded < policy.rows


def _merge(store: Store, sources: Sequence[Run], lock: Lock) -> MergedRuns | None:
    switch = MergeSwitch(store)
    names = erasure_ids(store)
    stated = [(run.run_id, run.info.manifest, run.info.revision) for run in sources]
    run_id = f"merged-{hashlib.sha256(repr((stated, names)).encode()).hexdigest()[:16]}"
    _remove_cut_off(store, keep=run_id)
    erased = read_tombstones(store)
    plan = plan_load(sources, latest_wins=True, verify=False)
    quarantined = _kept_quarantine(sources, plan, erased)
    run = _create(run_id, sources, plan, quarantined, erased)
    if run is None:
        return None
    if not run.finished:
        _write_shards(run, plan, pa.concat_tables(quarantined), lock)
    run.finish()
    _require_equal(run, sources, erased)
    lock.require()
    if erasure_ids(store) != names:
        raise Locked("crops were erased during a merge of runs", remedy="Run the same command again.")
    switch.add(Merge(run_id, tuple(source.run_id for source in sources), utc_now()))
    lock.require()
    _remove_sources(store)
    return MergedRuns(run_id, tuple(source.run_id for source in sources), run.summary.embedded)


def _kept_quarantine(sources: Sequence[Run], plan: LoadPlan, erased: ErasedCrops) -> list[pa.Table]:
    """Return the quarantine of each run without crops that any of them embedded, or that a later one has.

    A crop that is in a shard stays embedded, although a later version of it could not be read.
    """
    known, kept = plan.crop_ids(), []
    for run in reversed(sources):
        rows = run.quarantine().cast(QUARANTINE_SCHEMA)
        ids = crop_ids(rows)
        is_kept = ~(np.isin(ids, known) | erased.is_erased(ids)) & ~_is_anonymous(rows)
        kept.append(rows.filter(pa.array(is_kept)))
        known = np.concatenate([known, ids[is_kept], _vanished(run)[1]])
    return kept[::-1]


def _create(
    run_id: str, sources: Sequence[Run], plan: LoadPlan, quarantined: Sequence[pa.Table], erased: ErasedCrops
) -> Run | None:
    """Create the merged run, or open it as a killed merge left it; None if nothing is left of its sources."""
    last = sources[-1]
    manifest, embedded, stated = TableFile(MANIFEST_SCHEMA), plan.crop_ids(), []
    gone: dict[str, int] = {}
    for run, rows in zip(sources, quarantined, strict=True):
        ids = np.concatenate([_embedded(run, plan), crop_ids(rows)])
        counts: Counter[int] = Counter()
        for number, table in _by_source(run):
            kept = table.filter(pa.array(np.isin(crop_ids(table), ids) & ~_is_anonymous(table)))
            manifest.append(kept)
            counts[number] += kept.num_rows
        stated += [{**source, "crops": counts[number]} for number, source in enumerate(_stated(run))]
        uris, gone_ids = _vanished(run)
        gone |= dict(zip(uris, gone_ids.tolist(), strict=True))
    gone_ids = np.fromiter(gone.values(), np.int64, len(gone))
    # A crop that came back is embedded; one that came back unreadable still hides its earlier rows.
    is_kept = ~(np.isin(gone_ids, embedded) | erased.is_erased(gone_ids))
    vanished = sorted(uri for uri, is_listed in zip(gone, is_kept, strict=True) if is_listed)
    if not manifest.num_rows and not vanished:
        return None
    settings = last.info.settings | {
        name: sources[0].info.settings.get(name) for name in ("since_run", "requeue")
    }
    return Run.create(
        last.store,
        run_id,
        manifest=manifest,
        archive=last.info.archive,
        fingerprint=last.fingerprint,
        model=last.info.model,
        settings={
            **settings,
            "changes": None,
            "merged": stated,
            "merged_from": [run.run_id for run in sources],
        },
        vanished=pa.array(vanished, pa.string()),
        created=last.info.created,
    )


def _stated(run: Run) -> list[dict[str, Any]]:
    """Return what a merged run states of the runs that it was made of, and the same of another run."""
    stated: list[dict[str, Any]] | None = run.info.settings.get("merged")
    if stated:
        return stated
    summary = run.summary
    return [
        {
            "run_id": run.run_id,
            "crops": run.info.rows,
            "created": run.info.created,
            "manifest": run.info.manifest,
            "listed": summary.listed,
            "embedded": summary.embedded,
            "quarantined": summary.quarantined,
            "duplicates": summary.duplicates,
            "shards": [shard.sha256 for shard in summary.shards],
        }
    ]


def _by_source(run: Run) -> Iterator[tuple[int, pa.Table]]:
    """Yield the manifest in its order, by tables, each with the number of its entry in `_stated`."""
    ends = np.cumsum([source["crops"] for source in _stated(run)])
    first = 0
    for table in run.manifest_tables():
        numbers = np.searchsorted(ends, np.arange(first, first + table.num_rows), side="right")
        for number in np.unique(numbers).tolist():
            yield number, table.filter(pa.array(numbers == number))
        first += table.num_rows


def _write_shards(run: Run, plan: LoadPlan, quarantined: pa.Table, lock: Lock) -> None:
    """Write the shards of a merged run, in order, and finish it."""
    done = run.folder.done_shards()
    for shard in range(run.info.shards):
        if shard in done:
            continue
        first = shard * run.info.parts_per_shard
        last = min(first + run.info.parts_per_shard, run.info.parts)
        listed = pa.concat_tables(run.folder.part_rows(part) for part in range(first, last))
        is_listed = pc.is_in(quarantined["crop_id"], value_set=listed["crop_id"].combine_chunks())
        lock.require()
        run.write_compacted(shard, _rows_of(plan, listed), sort_like(quarantined.filter(is_listed), listed))


def _rows_of(plan: LoadPlan, listed: pa.Table) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a plan whose crops are listed; shards without any are not read."""
    ids = np.sort(crop_ids(listed))
    for shard in plan.shards:
        if any(np.isin(crop_ids(batch), ids).any() for batch in shard.batches(65_536, ["crop_id"])):
            for batch in shard.batches(ROW_GROUP_ROWS):
                rows = batch.filter(pa.array(np.isin(crop_ids(batch), ids)))
                yield rows.replace_schema_metadata()


def _require_equal(run: Run, sources: Sequence[Run], erased: ErasedCrops) -> None:
    """Raise CountMismatch unless a run gives a load the rows that its sources give, each value the same.

    It must hide the same crops of earlier runs, too. Every shard is read again and compared with its record,
    and the counts of all these runs are checked.
    """
    expected = _row_digests(plan_load(sources, latest_wins=True))
    written = _row_digests(plan_load([run]))
    hidden, hides = _hidden_before(sources, erased), _hidden_before([run], erased)
    if not (np.array_equal(expected, written) and np.array_equal(hidden, hides)):
        raise CountMismatch(
            f"run {run.run_id} has {len(written):,} rows and hides {len(hides):,}, which are not the "
            f"{len(expected):,} and {len(hidden):,} of {sources[0].run_id} to {sources[-1].run_id}; these "
            "stay as they are",
            remedy="Report this as a bug; CLVR_MERGE_RUNS=0 switches merges off.",
        )


def _hidden_before(runs: Sequence[Run], erased: ErasedCrops) -> Ids:
    """Return the crop_ids (n,), ascending, whose rows in earlier runs do not count because of these runs."""
    found = [NO_IDS]
    for run in runs:
        found += [
            shard_ids(run.store, info, fingerprint=run.fingerprint, run_id=run.run_id)
            for info in run.shards()
        ]
        found.append(_vanished(run)[1])
    ids = np.unique(np.concatenate(found))
    return ids[~erased.is_erased(ids)]


def _row_digests(plan: LoadPlan) -> NDArray[Any]:
    """Return crop_id and a digest of all values of each row (n, 2) of a plan, by crop_id."""
    found = [np.empty((0, 2), np.int64)]
    for batch in plan.batches(ROW_GROUP_ROWS):
        vectors = np.ascontiguousarray(batch.column("embedding").flatten()).reshape(len(batch), -1)
        scalars = batch.drop_columns(["embedding"]).to_pylist()
        digests = [
            hashlib.blake2b(vector.tobytes() + repr(row).encode(), digest_size=8).digest()
            for vector, row in zip(vectors, scalars, strict=True)
        ]
        found.append(np.stack([crop_ids(batch), np.frombuffer(b"".join(digests), np.int64)], axis=1))
    rows = np.concatenate(found)
    return rows[np.argsort(rows[:, 0], kind="stable")]


def _embedded(run: Run, plan: LoadPlan) -> Ids:
    """Return the crop_ids (n,) of the rows of a run that a plan loads."""
    shards = [shard for shard in plan.shards if shard.run_id == run.run_id]
    ids = [crop_ids(batch) for shard in shards for batch in shard.batches(65_536, ["crop_id"])]
    return np.concatenate([NO_IDS, *ids])


def _vanished(run: Run) -> tuple[list[str], Ids]:
    """Return the URIs and the crop_ids (n,) of the crops that a run lists as vanished."""
    uris = vanished_uris(run)["uri"].to_pylist()
    return uris, read_reassigned(run.store).ids_of(uris) if uris else NO_IDS


def _is_anonymous(rows: pa.Table) -> NDArray[np.bool_]:
    """Return a mask (n,) of the rows that stand for purged crops."""
    return np.asarray(pc.equal(rows["uri"], ERASED_URI), bool)
