"""`clvr forget` and `clvr retain`: erase crops from all generations, with a receipt."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from index.archive.reader import crop_id_at
from index.generations.erasure import forget
from index.generations.receipt import Receipt
from index.generations.selection import EraseSelection
from index.lock import boot_time
from index.milvus.client import Milvus
from infra.errors import BadSetting, Locked
from infra.logging import logger
from infra.settings import Settings
from infra.store import open_store
from jobs.runtime.resolve import epoch_ms, open_milvus


@dataclass(frozen=True, slots=True)
class ForgetRequest:
    """The request of `clvr forget`; times are ISO 8601, UTC without a zone.

    wait: how long to wait for a running load or increment, in s.
    """

    reason: str
    vehicles: tuple[int, ...] = ()
    crops: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None
    dry_run: bool = True
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
        for erased in receipt.generations:
            after = (
                "" if erased.rows_after is None else f", {erased.rows_after:,} after, {erased.left:,} left"
            )
            lines.append(
                f"  {erased.generation}{' (live)' if erased.live else ''}: {erased.rows_before:,} rows, "
                f"{erased.matching:,} match{after}"
            )
        if receipt.unknown_time:
            lines.append(f"  not touched  {receipt.unknown_time:,} crops of unknown time")
        if receipt.state == "dry run":
            lines.append("nothing was changed; to erase, run it again with --yes")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as a JSON object."""
        return asdict(self.receipt)


def forget_crops(request: ForgetRequest, settings: Settings) -> Receipt:
    """Erase the requested crops, or count them in a dry run. Raises the errors of `forget`."""
    selection = EraseSelection(
        vehicles=request.vehicles,
        crop_ids=tuple(_crop_id(crop) for crop in request.crops),
        cameras=request.cameras,
        captured_from=epoch_ms("--from", request.since),
        captured_to=epoch_ms("--until", request.until),
    )
    return _erase(selection, settings, reason=request.reason, dry_run=request.dry_run, wait=request.wait)


def retain_days(
    days: int, cameras: Sequence[str], settings: Settings, *, dry_run: bool, wait: float = 0.0
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
    return _erase(selection, settings, reason=reason, dry_run=dry_run, wait=wait)


def _erase(
    selection: EraseSelection, settings: Settings, *, reason: str, dry_run: bool, wait: float
) -> Receipt:
    store = open_store(settings.runs)
    deadline = boot_time() + wait
    milvus = _open_when_free(settings, deadline)
    return forget(milvus, store, selection, reason=reason, dry_run=dry_run, wait=_left(deadline))


def _left(deadline: float) -> float:
    return max(0.0, deadline - boot_time())


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
                logger.info(f"waiting up to {(deadline - boot_time()) / 60:.0f} min: {refused.message}")
                is_announced = True
            time.sleep(1)


def _crop_id(crop: str) -> int:
    number = crop.removeprefix("crop:")
    return int(number) if number.isdecimal() else crop_id_at(crop)
