"""Erasure: rows leave every generation, tombstones keep them out of every later one, a receipt says so.

    erasures/<erasure_id>/receipt.json      first: what is to go, and what each generation held then
                          crops.parquet     the tombstones; nothing is deleted before they stand

An erasure that was cut off is finished by the next one, and by every load.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.documents import JsonDocument, current_user, utc_now
from index.filters import Filters
from index.generations import records
from index.lock import ROWS, acquire
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.runs import tombstones
from index.runs.run import Run
from index.runs.shards import read_shards
from index.schema import UNKNOWN_TIME
from infra.errors import BadSetting, ClvrError, CountMismatch, ObjectMissing
from infra.store import Store

_COLUMNS = ["crop_id", "uri", "camera_id", "captured_at", "vehicle_id"]


@dataclass(frozen=True, slots=True)
class EraseSelection:
    """The crops that are meant; everything given must hold. Times in ms since the epoch, UTC, from inclusive,
    to exclusive. `vehicles` are labels, so they are known of labelled crops only."""

    vehicles: tuple[int, ...] = ()
    crop_ids: tuple[int, ...] = ()
    cameras: tuple[str, ...] = ()
    captured_from: int | None = None
    captured_to: int | None = None

    def require_something(self) -> None:
        """Raise BadSetting if nothing is given, or if the window is empty."""
        start, end = self.captured_from, self.captured_to
        if not (self.vehicles or self.crop_ids or self.cameras) and start is None and end is None:
            raise BadSetting(
                "nothing says what is to be erased",
                remedy="Give --vehicle, --crop, --camera, --from or --until.",
            )
        if start is not None and end is not None and start >= end:
            raise BadSetting("the time window is empty", remedy="--from must be before --until.")

    def expression(self) -> str:
        """Return the same as a Milvus filter; '' where Milvus cannot tell, because it knows no vehicles."""
        if self.vehicles:
            return ""
        return Filters(
            cameras=self.cameras,
            captured_from=self.captured_from,
            captured_to=self.captured_to,
            crop_ids=self.crop_ids,
        ).expression()

    def document(self) -> dict[str, Any]:
        """Return what was given, for the receipt."""
        given = {name: value for name, value in asdict(self).items() if value not in ((), None)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def select_crops(runs: Sequence[Run], wanted: EraseSelection) -> tuple[NDArray[np.int64], int]:
    """Return the crop_ids (n,) that match in any manifest, and how many crops fail by unknown time only."""
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    undated: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    timed = wanted.captured_from is not None or wanted.captured_to is not None
    for run in runs:
        for key in run.folder.manifest_keys():
            crops = run.folder.read(key, _COLUMNS)
            crops = crops.filter(_by_identity(crops, wanted))
            if timed:
                unknown = pc.equal(crops["captured_at"], UNKNOWN_TIME)
                undated.append(np.asarray(crops.filter(unknown)["crop_id"]))
                crops = crops.filter(_by_time(crops, wanted))
            found.append(np.asarray(crops["crop_id"]))
    return np.unique(np.concatenate(found)), int(np.unique(np.concatenate(undated)).size)


def rows_by_run(runs: Sequence[Run], crop_ids: NDArray[np.int64]) -> dict[str, int]:
    """Count the embedded rows of the crop_ids (n,) in the shards of each finished run that has any."""
    counts = {}
    for run in runs:
        if run.finished and crop_ids.size:
            batches = read_shards(run.store, run.shard_keys(), columns=["crop_id"])
            rows = sum(int(np.isin(batch.column("crop_id").to_numpy(), crop_ids).sum()) for batch in batches)
            if rows:
                counts[run.run_id] = rows
    return counts


def _by_identity(crops: pa.Table, wanted: EraseSelection) -> Any:
    keep = pc.is_valid(crops["crop_id"])
    for name, values, kind in (
        ("vehicle_id", wanted.vehicles, pa.int64()),
        ("crop_id", wanted.crop_ids, pa.int64()),
        ("camera_id", wanted.cameras, pa.string()),
    ):
        if values:
            keep = pc.and_(keep, pc.is_in(crops[name], value_set=pa.array(values, kind)))
    return keep


def _by_time(crops: pa.Table, wanted: EraseSelection) -> Any:
    times = crops["captured_at"]
    keep = pc.not_equal(times, UNKNOWN_TIME)
    if wanted.captured_from is not None:
        keep = pc.and_(keep, pc.greater_equal(times, wanted.captured_from))
    if wanted.captured_to is not None:
        keep = pc.and_(keep, pc.less(times, wanted.captured_to))
    return keep


Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GenerationErasure:
    """One generation: rows before, rows of them that match, rows after, and matching rows still found."""

    generation: str
    alias: str
    live: bool
    rows_before: int
    matching: int
    rows_after: int | None = None
    left: int | None = None


@dataclass(frozen=True, slots=True)
class Receipt(JsonDocument):
    """What was erased, where, when, by whom and why. A dry run has no id and changes nothing.

    `crops` counts the crops that match in all manifests and generations; `runs` the embedded rows of them by
    run, which stay in the shards behind a tombstone. `unknown_time` counts crops that pass everything else,
    but whose time is unknown: they are not erased.
    """

    NOUN = "receipt"

    erasure_id: str
    state: Literal["dry run", "nothing matches", "begun", "done"]
    wanted: dict[str, Any]
    reason: str
    by: str
    begun: str
    crops: int
    unknown_time: int
    runs: dict[str, int]
    generations: tuple[GenerationErasure, ...]
    tombstones: str = ""
    finished: str = ""


def forget(
    milvus: Milvus, store: Store, runs: Sequence[Run], wanted: EraseSelection, *, reason: str, dry_run: bool
) -> Receipt:
    """Erase the crops that match from all generations and from all future ones, whatever their alias.

    runs: all runs of the store, finished or not. With `dry_run` the receipt says what would be erased.
    Raises BadSetting for no reason or for nothing wanted, Locked if rows are changed right now, CountMismatch
    if matching rows are left.
    """
    if not reason.strip():
        raise BadSetting("an erasure needs a reason", remedy="Give --reason; it is kept with the receipt.")
    wanted.require_something()
    if dry_run:
        return _plan_erasure(milvus, store, runs, wanted, reason)[0]
    with acquire(store, ROWS, "an erasure"):
        resume_erasures(milvus, store)
        draft, crop_ids = _plan_erasure(milvus, store, runs, wanted, reason)
        if not crop_ids.size:
            return replace(draft, state="nothing matches")
        receipt = replace(draft, erasure_id=tombstones.new_erasure_id(), state="begun")
        tombstones.write_tombstones(store, receipt.erasure_id, crop_ids)
        store.create(_key(receipt.erasure_id), receipt.to_json())
        return _finish(milvus, store, receipt, crop_ids)


def resume_erasures(milvus: Milvus, store: Store) -> list[Receipt]:
    """Finish erasures that were cut off. The caller holds the lock on rows."""
    found = []
    for erasure_id in tombstones.erasure_ids(store):
        with suppress(ObjectMissing):  # cut off before its receipt: nothing was deleted, the tombstones hold
            receipt = read_receipt(store, erasure_id)
            if receipt.state == "begun":
                found.append(_finish(milvus, store, receipt, tombstones.read_tombstones(store, erasure_id)))
    return found


def read_receipt(store: Store, erasure_id: str) -> Receipt:
    """Read a receipt back. Raises ObjectMissing, SchemaMismatch."""
    key = _key(erasure_id)
    return Receipt.read(store, key)


def _plan_erasure(
    milvus: Milvus, store: Store, runs: Sequence[Run], wanted: EraseSelection, reason: str
) -> tuple[Receipt, Ids]:
    crop_ids, unknown_time = select_crops(runs, wanted)
    kept = _kept(milvus, store)
    if expression := wanted.expression():
        # What no manifest knows any more, because its run was deleted, must go all the same.
        crop_ids = np.unique(
            np.concatenate([crop_ids, *(collection.fetch_ids(milvus, one.name, expression) for one in kept)])
        )
    receipt = Receipt(
        erasure_id="",
        state="dry run",
        wanted=wanted.document(),
        reason=reason,
        by=current_user(),
        begun=utc_now(),
        crops=int(crop_ids.size),
        unknown_time=unknown_time,
        runs=rows_by_run(runs, crop_ids),
        generations=tuple(_before(milvus, one, crop_ids) for one in kept),
    )
    return receipt, crop_ids


def _finish(milvus: Milvus, store: Store, receipt: Receipt, crop_ids: Ids) -> Receipt:
    after = tuple(_erase(milvus, store, receipt.erasure_id, one, crop_ids) for one in receipt.generations)
    done = replace(
        receipt,
        state="done",
        generations=after,
        tombstones=store.uri_of(f"erasures/{receipt.erasure_id}/crops.parquet"),
        finished=utc_now(),
    )
    left = [one for one in after if one.left]
    if left:
        raise CountMismatch(
            f"{left[0].left:,} rows that match are still in {left[0].generation}",
            remedy="Run the same command again; the tombstones stand already.",
        )
    store.put(_key(receipt.erasure_id), done.to_json())
    return done


def _erase(
    milvus: Milvus, store: Store, erasure_id: str, one: GenerationErasure, crop_ids: Ids
) -> GenerationErasure:
    if not milvus.call("has_collection", one.generation):
        return replace(one, rows_after=0, left=0)
    generation = collection.get_generation(milvus, one.generation)
    collection.ensure_loaded(milvus, generation)
    collection.delete(milvus, one.generation, crop_ids)
    with suppress(ClvrError):
        # The bytes go when Milvus rewrites its segments; it does so by itself later, this asks for it now.
        milvus.call("compact", one.generation, timeout=60)
    done = replace(
        one,
        rows_after=collection.row_count(milvus, generation),
        left=collection.count_of(milvus, one.generation, crop_ids),
    )
    entry = records.read(store, one.generation)
    if entry and erasure_id not in {change.get("erasure_id") for change in entry.changes}:
        # Less what was erased, not what is counted now: rows that were lost otherwise must still be noticed.
        change = {
            "at": utc_now(),
            "kind": "erasure",
            "erasure_id": erasure_id,
            "rows_before": entry.rows,
            "rows_after": entry.rows - one.matching,
        }
        records.update(
            store, one.generation, rows=entry.rows - one.matching, changes=(*entry.changes, change)
        )
    return done


def _kept(milvus: Milvus, store: Store) -> list[Generation]:
    """Return all generations but those of a load that was cut off: the next load drops them."""
    found = []
    for generation in collection.list_generations(milvus):
        entry = records.read(store, generation.name)
        if entry is None or entry.state != "loading":
            collection.ensure_loaded(milvus, generation)
            found.append(generation)
    return found


def _before(milvus: Milvus, generation: Generation, crop_ids: Ids) -> GenerationErasure:
    current = collection.live_generation(milvus, generation.alias)
    return GenerationErasure(
        generation=generation.name,
        alias=generation.alias,
        live=current is not None and current.name == generation.name,
        rows_before=collection.row_count(milvus, generation),
        matching=collection.count_of(milvus, generation.name, crop_ids),
    )


def _key(erasure_id: str) -> str:
    return f"erasures/{erasure_id}/receipt.json"
