"""`clvr forget` and `clvr retain`: erase crops, purge their bytes, and look for them again."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from typing_extensions import TypedDict

from index.archive.reassigned import ReassignedIds, read_reassigned
from index.generations.audit import audit_folder, audit_index
from index.generations.erasure import folders_of, forget
from index.generations.purge import purge
from index.generations.receipt import Place, Receipt, read_receipt
from index.generations.selection import EraseSelection
from index.lock import boot_time
from index.milvus.client import Milvus
from index.runs.tombstones import ErasedCrops, erasure_ids, read_erasures
from infra.errors import BadInput, BadSetting, CountMismatch, Locked
from infra.logging import logger
from infra.settings import Settings
from infra.store import Store, open_store
from jobs.generations.outputs import find_in_outputs, purge_outputs
from jobs.runtime.json_fields import FieldsOf
from jobs.runtime.resolve import LATEST, epoch_ms, open_milvus


@dataclass(frozen=True, slots=True)
class ForgetRequest:
    """The request of `clvr forget`; times are ISO 8601, UTC without a zone.

    purge: remove their bytes too. wait: how long to wait for a running load or increment, in s.
    """

    reason: str
    vehicles: tuple[int, ...] = ()
    crops: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None
    dry_run: bool = True
    purge: bool = False
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class EraseResult:
    """The result of `clvr forget` and of `clvr retain`."""

    receipt: Receipt

    def to_text(self) -> str:
        """Return the receipt as several lines."""
        receipt = self.receipt
        runs = ", ".join(f"{run_id} {rows:,} rows" for run_id, rows in receipt.runs.items())
        title = f"erasure {receipt.erasure_id} ({receipt.state})" if receipt.erasure_id else receipt.state
        lines = [
            f"{title}: {receipt.crops:,} crops match",
            f"  reason       {receipt.reason}",
            f"  shards       {runs or 'no embedded row'}",
        ]
        withdrawn = 0
        for erased in receipt.generations:
            after = (
                "" if erased.rows_after is None else f", {erased.rows_after:,} after, {erased.left:,} left"
            )
            share = (
                f" with {erased.crops or 0:,} of the crops and {erased.withdrawn:,} others"
                if erased.unit == "track"
                else ""
            )
            lines.append(
                f"  {erased.generation}{' (live)' if erased.live else ''}: {erased.rows_before:,} rows, "
                f"{erased.matching:,} match{share}{after}"
            )
            withdrawn += erased.withdrawn if erased.live else 0
        if receipt.copies:
            lines.append(f"  copies       {receipt.copies:,} of them have other names and the same bytes")
        if receipt.unread:
            lines.append(f"  by name only {receipt.unread:,} crops, whose bytes could not be read")
        if receipt.unknown_time:
            lines.append(f"  not touched  {receipt.unknown_time:,} crops of unknown time")
        lines += places_text(receipt.places)
        if receipt.state == "dry run":
            lines.append("nothing was changed; to erase, run it again with --yes")
        elif receipt.state == "done":
            if not receipt.purge:
                lines.append("hidden from every search; to remove their bytes too: clvr forget --purge --yes")
            if withdrawn:
                lines.append(
                    f"{withdrawn:,} other crops of these tracks are not found until the next `clvr load "
                    "--unit track`"
                )
            lines += [f"  not reached  {note}" for note in receipt.by_design]
        return "\n".join(lines)

    def to_json(self) -> Annotated[dict[str, Any], FieldsOf(Receipt)]:
        """Return the receipt as a JSON object."""
        return asdict(self.receipt)


class AuditedPlaces(TypedDict):
    """Every place that was looked at for the crops of an erasure; found: in all of them."""

    erasure_id: str
    found: int
    places: list[Annotated[dict[str, Any], FieldsOf(Place)]]


@dataclass(frozen=True, slots=True)
class AuditResult:
    """The result of `clvr forget --audit`: every place that was looked at, and what was found there."""

    receipt: Receipt
    places: tuple[Place, ...]

    @property
    def found(self) -> int:
        """How many rows and names of erased crops were found."""
        return sum(place.found for place in self.places)

    @property
    def shown(self) -> int:
        """How many are where a search could show them, which an erasure rules out with or without a purge."""
        return sum(place.found for place in self.places if place.kind == "generation")

    def require_gone(self) -> None:
        """Raise CountMismatch if an erased crop is in a generation, or anywhere after a purge."""
        where = [place.where for place in self.places if place.found]
        if self.shown or (self.receipt.purge and self.found):
            raise CountMismatch(
                f"erasure {self.receipt.erasure_id}: {self.found:,} traces are left, the first in {where[0]}",
                remedy="Run `clvr forget --purge --yes`.",
            )

    def to_text(self) -> str:
        """Return the places as lines."""
        receipt = self.receipt
        kind = "purged" if receipt.purge else "hidden"
        state = f"{kind} {receipt.finished[:16]}" if receipt.state == "done" else f"{receipt.state}, not done"
        title = f"erasure {receipt.erasure_id} ({state}): {self.found:,} traces found"
        return "\n".join([title, *places_text(self.places)])

    def to_json(self) -> AuditedPlaces:
        """Return the audit as a JSON object."""
        return {
            "erasure_id": self.receipt.erasure_id,
            "found": self.found,
            "places": list(map(asdict, self.places)),
        }


def places_text(places: Sequence[Place]) -> list[str]:
    """Return one line per place that was looked at."""
    return [
        f"  {place.kind:<12} {place.where}: {place.found:,} found"
        + (f", {place.removed:,} removed" if place.removed else "")
        + (f" ({place.note})" if place.note else "")
        for place in places
    ]


def audit_erasure(name: str, settings: Settings) -> AuditResult:
    """Look again for the crops of an erasure, `latest` or by its id; after a purge for all that it removed.

    Raises BadInput if there is no such erasure.
    """
    store = open_store(settings.runs)
    names = erasure_ids(store)
    name = names[-1] if name == LATEST and names else name
    if name not in names:
        raise BadInput(
            f"there is no erasure {name} in {store.uri}",
            remedy=f"The last one is {names[-1]}." if names else "Nothing was erased yet.",
        )
    receipt = read_receipt(store, name)
    # A purge removes the crops of every erasure before it.
    erased = read_erasures(store, names[: names.index(name) + 1] if receipt.purge else [name])
    with open_milvus(settings) as milvus:
        stores = folders_of(milvus, store)
        places = [place for folder in stores for place in audit_folder(folder, erased)]
        places += [*audit_index(milvus, erased, stores), *find_in_outputs(stores, erased)]
        places += _cases(settings, erased, purge=False)
    return AuditResult(receipt, tuple(places))


def forget_crops(request: ForgetRequest, settings: Settings) -> Receipt:
    """Erase the requested crops, or count them in a dry run; with nothing requested, purge what was erased.

    Raises the errors of `forget` and of `purge`.
    """
    reassigned = read_reassigned(open_store(settings.runs)) if request.crops else ReassignedIds()
    selection = EraseSelection(
        vehicles=request.vehicles,
        crop_ids=tuple(_crop_id(crop, reassigned) for crop in request.crops),
        cameras=request.cameras,
        captured_from=epoch_ms("--from", request.since),
        captured_to=epoch_ms("--until", request.until),
    )
    return _erase(
        selection,
        settings,
        reason=request.reason,
        dry_run=request.dry_run,
        purge_bytes=request.purge,
        wait=request.wait,
    )


def retain_days(
    days: int,
    cameras: Sequence[str],
    settings: Settings,
    *,
    dry_run: bool,
    purge_bytes: bool = False,
    wait: float = 0.0,
) -> Receipt:
    """Erase crops that were captured more than `days` days ago, of the cameras or of all cameras.

    wait: how long to wait for a running load or increment, in s. Raises the errors of `forget`.
    """
    if days < 1:
        raise BadSetting(f"--days {days} would erase everything", remedy="Keep at least one day.")
    end = datetime.now(UTC) - timedelta(days=days)
    selection = EraseSelection(cameras=tuple(cameras), captured_to=int(end.timestamp() * 1000))
    of_cameras = f" of {', '.join(cameras)}" if cameras else ""
    reason = f"retention{of_cameras}: {days} days"
    return _erase(selection, settings, reason=reason, dry_run=dry_run, purge_bytes=purge_bytes, wait=wait)


def _erase(
    selection: EraseSelection,
    settings: Settings,
    *,
    reason: str,
    dry_run: bool,
    purge_bytes: bool,
    wait: float,
) -> Receipt:
    store = open_store(settings.runs)
    deadline = boot_time() + wait

    def left() -> float:
        return max(0.0, deadline - boot_time())

    def elsewhere(stores: Sequence[Store], erased: ErasedCrops) -> list[Place]:
        return [*purge_outputs(stores, erased), *_cases(settings, erased, purge=True)]

    with _open_when_free(settings, deadline) as milvus:
        if selection == EraseSelection() and purge_bytes:
            if dry_run:
                raise BadSetting(
                    "a purge of all erased crops has no dry run",
                    remedy="See what is left by `clvr forget --audit latest`, then add --yes.",
                )
            return purge(milvus, store, elsewhere, reason=reason, wait=left())
        receipt = forget(
            milvus,
            store,
            selection,
            reason=reason,
            dry_run=dry_run,
            purge=purge_bytes,
            wait=left(),
            times=settings.plausible_times(),
        )
        if purge_bytes and not dry_run:
            return purge(milvus, store, elsewhere, reason=reason, wait=left())
        return receipt


def _cases(settings: Settings, erased: ErasedCrops, *, purge: bool) -> list[Place]:
    """Purge the database of cases, or look into it, where there is one."""
    if not settings.has_cases():
        return []
    # Whoever has no cases needs no database.
    from jobs.cases.erasure import find_in_cases, purge_cases

    return (purge_cases if purge else find_in_cases)(settings, erased)


def _open_when_free(settings: Settings, deadline: float) -> Milvus:
    """Connect to Milvus; wait until a boot time for another process that has a local file open."""
    is_announced = False
    while True:
        try:
            return open_milvus(settings)
        except Locked as refused:
            if not boot_time() < deadline:
                raise
            if not is_announced:
                logger.info(f"waiting up to {(deadline - boot_time()) / 60:.3g} min: {refused.message}")
                is_announced = True
            time.sleep(1)


def _crop_id(crop: str, reassigned: ReassignedIds) -> int:
    number = crop.removeprefix("crop:")
    return int(number) if number.isdecimal() else reassigned.id_at(crop)
