"""Erasure: crops leave every generation, tombstones keep them out of later ones, a receipt records it.

    erasures/<erasure_id>/crops.parquet     first: the tombstones
                          receipt.json      before any row is deleted, and again at the end

An interrupted erasure is finished by the next erasure and by every load.
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

Ids = NDArray[np.int64]
_COLUMNS = ["crop_id", "uri", "camera_id", "captured_at", "vehicle_id"]


@dataclass(frozen=True, slots=True)
class EraseSelection:
    """Criteria of the crops to erase; a crop must match all of them.

    Times are in ms since the epoch, UTC, from inclusive, to exclusive. `vehicles` are labels, so they match
    labelled crops only.
    """

    vehicles: tuple[int, ...] = ()
    crop_ids: tuple[int, ...] = ()
    cameras: tuple[str, ...] = ()
    captured_from: int | None = None
    captured_to: int | None = None

    @property
    def has_time_window(self) -> bool:
        """Whether the capture time is a criterion."""
        return self.captured_from is not None or self.captured_to is not None

    def require_criteria(self) -> None:
        """Raise BadSetting if there are no criteria, or if the time window is empty."""
        if not (self.vehicles or self.crop_ids or self.cameras or self.has_time_window):
            raise BadSetting(
                "nothing selects the crops to erase",
                remedy="Give --vehicle, --crop, --camera, --from or --until.",
            )
        start, end = self.captured_from, self.captured_to
        if start is not None and end is not None and start >= end:
            raise BadSetting("the time window is empty", remedy="--from must be before --until.")

    def expression(self) -> str:
        """Return the criteria as a Milvus filter; '' if they name vehicles, which Milvus does not store."""
        if self.vehicles:
            return ""
        return Filters(
            cameras=self.cameras,
            captured_from=self.captured_from,
            captured_to=self.captured_to,
            crop_ids=self.crop_ids,
        ).expression()

    def document(self) -> dict[str, Any]:
        """Return the criteria for the receipt."""
        given = {name: value for name, value in asdict(self).items() if value not in ((), None)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


@dataclass(frozen=True, slots=True)
class GenerationErasure:
    """One generation: rows before, matching rows of them, rows after, and matching rows that are `left`."""

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

    `crops` counts the matching crops of all manifests and generations; `runs` counts their embedded rows by
    run, which stay in the shards but are never loaded again. `unknown_time` counts crops that match except
    for their unknown time: they are not erased.
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
    milvus: Milvus,
    store: Store,
    runs: Sequence[Run],
    selection: EraseSelection,
    *,
    reason: str,
    dry_run: bool,
    wait: float = 0.0,
) -> Receipt:
    """Erase the selected crops from all generations of all aliases, and from all future ones.

    runs: all runs of the store, finished or not. With `dry_run` the receipt tells what would be erased.
    wait: how long to wait for another operation that changes rows, in s.
    Raises BadSetting for an empty reason or selection, Locked if another operation changes rows,
    CountMismatch if matching rows remain.
    """
    if not reason.strip():
        raise BadSetting("an erasure needs a reason", remedy="Give --reason; the receipt records it.")
    selection.require_criteria()
    if dry_run:
        return _plan_erasure(milvus, store, runs, selection, reason)[0]
    with acquire(store, ROWS, "an erasure", wait=wait):
        resume_erasures(milvus, store)
        draft, crop_ids = _plan_erasure(milvus, store, runs, selection, reason)
        if not crop_ids.size:
            return replace(draft, state="nothing matches")
        receipt = replace(draft, erasure_id=tombstones.new_erasure_id(), state="begun")
        tombstones.write_tombstones(store, receipt.erasure_id, crop_ids)
        store.create(_key(receipt.erasure_id), receipt.to_json())
        return _finish(milvus, store, receipt, crop_ids)


def resume_erasures(milvus: Milvus, store: Store) -> list[Receipt]:
    """Finish interrupted erasures; return their receipts. The caller holds the lock on rows."""
    receipts = []
    for erasure_id in tombstones.erasure_ids(store):
        with suppress(ObjectMissing):  # interrupted before its receipt: it deleted nothing
            receipt = read_receipt(store, erasure_id)
            if receipt.state == "begun":
                crop_ids = tombstones.read_tombstones(store, erasure_id)
                receipts.append(_finish(milvus, store, receipt, crop_ids))
    return receipts


def read_receipt(store: Store, erasure_id: str) -> Receipt:
    """Read the receipt of an erasure. Raises ObjectMissing, SchemaMismatch."""
    return Receipt.read(store, _key(erasure_id))


def select_crops(runs: Sequence[Run], selection: EraseSelection) -> tuple[Ids, int]:
    """Return the crop_ids (n,) that match in any manifest, and how many fail by an unknown time only."""
    matching: list[Ids] = [np.empty(0, np.int64)]
    undated: list[Ids] = [np.empty(0, np.int64)]
    for run in runs:
        for key in run.folder.manifest_keys():
            crops = run.folder.read(key, _COLUMNS)
            crops = crops.filter(_matches_identity(crops, selection))
            if selection.has_time_window:
                is_undated = pc.equal(crops["captured_at"], UNKNOWN_TIME)
                undated.append(np.asarray(crops.filter(is_undated)["crop_id"]))
                crops = crops.filter(_matches_time(crops, selection))
            matching.append(np.asarray(crops["crop_id"]))
    return np.unique(np.concatenate(matching)), int(np.unique(np.concatenate(undated)).size)


def rows_by_run(runs: Sequence[Run], crop_ids: Ids) -> dict[str, int]:
    """Count the embedded rows of the crop_ids (n,) in each finished run that has any."""
    counts = {}
    for run in runs:
        if run.finished and crop_ids.size:
            batches = read_shards(run.store, run.shard_keys(), columns=["crop_id"])
            rows = sum(int(np.isin(batch.column("crop_id").to_numpy(), crop_ids).sum()) for batch in batches)
            if rows:
                counts[run.run_id] = rows
    return counts


def _matches_identity(crops: pa.Table, selection: EraseSelection) -> Any:
    mask = pc.is_valid(crops["crop_id"])
    for name, values, data_type in (
        ("vehicle_id", selection.vehicles, pa.int64()),
        ("crop_id", selection.crop_ids, pa.int64()),
        ("camera_id", selection.cameras, pa.string()),
    ):
        if values:
            mask = pc.and_(mask, pc.is_in(crops[name], value_set=pa.array(values, data_type)))
    return mask


def _matches_time(crops: pa.Table, selection: EraseSelection) -> Any:
    times = crops["captured_at"]
    mask = pc.not_equal(times, UNKNOWN_TIME)
    if selection.captured_from is not None:
        mask = pc.and_(mask, pc.greater_equal(times, selection.captured_from))
    if selection.captured_to is not None:
        mask = pc.and_(mask, pc.less(times, selection.captured_to))
    return mask


def _plan_erasure(
    milvus: Milvus, store: Store, runs: Sequence[Run], selection: EraseSelection, reason: str
) -> tuple[Receipt, Ids]:
    crop_ids, unknown_time = select_crops(runs, selection)
    generations = _loaded_generations(milvus, store)
    if expression := selection.expression():
        # Rows of runs that were deleted are in no manifest, but must be erased too.
        indexed = [collection.fetch_ids(milvus, generation.name, expression) for generation in generations]
        crop_ids = np.unique(np.concatenate([crop_ids, *indexed]))
    receipt = Receipt(
        erasure_id="",
        state="dry run",
        wanted=selection.document(),
        reason=reason,
        by=current_user(),
        begun=utc_now(),
        crops=int(crop_ids.size),
        unknown_time=unknown_time,
        runs=rows_by_run(runs, crop_ids),
        generations=tuple(_count_before(milvus, generation, crop_ids) for generation in generations),
    )
    return receipt, crop_ids


def _loaded_generations(milvus: Milvus, store: Store) -> list[Generation]:
    """Load and return all generations except those of interrupted loads, which the next load drops."""
    generations = []
    for generation in collection.list_generations(milvus):
        record = records.read(store, generation.name)
        if record is None or record.state != "loading":
            collection.ensure_loaded(milvus, generation)
            generations.append(generation)
    return generations


def _count_before(milvus: Milvus, generation: Generation, crop_ids: Ids) -> GenerationErasure:
    current = collection.live_generation(milvus, generation.alias)
    return GenerationErasure(
        generation=generation.name,
        alias=generation.alias,
        live=current is not None and current.name == generation.name,
        rows_before=collection.row_count(milvus, generation),
        matching=collection.count_of(milvus, generation.name, crop_ids),
    )


def _finish(milvus: Milvus, store: Store, receipt: Receipt, crop_ids: Ids) -> Receipt:
    erased = tuple(
        _erase(milvus, store, receipt.erasure_id, planned, crop_ids) for planned in receipt.generations
    )
    finished = replace(
        receipt,
        state="done",
        generations=erased,
        tombstones=store.uri_of(f"erasures/{receipt.erasure_id}/crops.parquet"),
        finished=utc_now(),
    )
    incomplete = [generation for generation in erased if generation.left]
    if incomplete:
        raise CountMismatch(
            f"{incomplete[0].left:,} rows that match are still in {incomplete[0].generation}",
            remedy="Run the same command again; the tombstones are already written.",
        )
    store.put(_key(receipt.erasure_id), finished.to_json())
    return finished


def _erase(
    milvus: Milvus, store: Store, erasure_id: str, planned: GenerationErasure, crop_ids: Ids
) -> GenerationErasure:
    name = planned.generation
    if not milvus.call("has_collection", name):
        return replace(planned, rows_after=0, left=0)
    generation = collection.get_generation(milvus, name)
    collection.ensure_loaded(milvus, generation)
    collection.delete(milvus, name, crop_ids)
    with suppress(ClvrError):
        # Milvus frees the bytes when it rewrites its segments: now by this request, otherwise later.
        milvus.call("compact", name, timeout=60)
    erased = replace(
        planned,
        rows_after=collection.row_count(milvus, generation),
        left=collection.count_of(milvus, name, crop_ids),
    )
    record = records.read(store, name)
    if record and erasure_id not in {change.get("erasure_id") for change in record.changes}:
        # Subtract the erased rows instead of counting again: rows lost otherwise must still be noticed.
        rows_after = record.rows - planned.matching
        change = {
            "at": utc_now(),
            "kind": "erasure",
            "erasure_id": erasure_id,
            "rows_before": record.rows,
            "rows_after": rows_after,
        }
        records.update(store, name, rows=rows_after, changes=(*record.changes, change))
    return erased


def _key(erasure_id: str) -> str:
    return f"erasures/{erasure_id}/receipt.json"
