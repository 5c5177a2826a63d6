"""`clvr forget` and `clvr retain`: rows are erased for good, with a receipt."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from index.archive.reader import crop_id_at
from index.generations.erasure import EraseSelection, Receipt, forget
from index.runs.run import list_runs
from infra.errors import BadSetting
from infra.settings import Settings
from infra.store import open_store
from jobs.runtime.resolve import epoch_ms, open_milvus


@dataclass(frozen=True, slots=True)
class ForgetRequest:
    """What `clvr forget` was asked for; times are ISO 8601, UTC where no zone is given."""

    reason: str
    vehicles: tuple[int, ...] = ()
    crops: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None
    dry_run: bool = True


def forget_crops(request: ForgetRequest, settings: Settings) -> Receipt:
    """Erase what the request means, or say what would be erased. Raises what `forget` raises."""
    wanted = EraseSelection(
        vehicles=request.vehicles,
        crop_ids=tuple(_crop_id(crop) for crop in request.crops),
        cameras=request.cameras,
        captured_from=epoch_ms("--from", request.since),
        captured_to=epoch_ms("--until", request.until),
    )
    return _erase(wanted, settings, reason=request.reason, dry_run=request.dry_run)


def retain_days(days: int, cameras: Sequence[str], settings: Settings, *, dry_run: bool) -> Receipt:
    """Erase crops that were captured more than `days` days ago, of some cameras or of all."""
    if days < 1:
        raise BadSetting(f"--days {days} would erase everything", remedy="Keep at least one day.")
    end = datetime.now(UTC) - timedelta(days=days)
    wanted = EraseSelection(cameras=tuple(cameras), captured_to=int(end.timestamp() * 1000))
    where = f" of {', '.join(cameras)}" if cameras else ""
    reason = f"retention{where}: {days} days"
    return _erase(wanted, settings, reason=reason, dry_run=dry_run)


def receipt_text(receipt: Receipt) -> str:
    """The receipt as a person reads it."""
    title = f"erasure {receipt.erasure_id} ({receipt.state})" if receipt.erasure_id else receipt.state
    lines = [
        f"{title}: {receipt.crops:,} crops match",
        f"  reason       {receipt.reason}",
        f"  shards       {_named(receipt.runs) or 'no embedded row'}",
    ]
    for one in receipt.generations:
        after = "" if one.rows_after is None else f", {one.rows_after:,} after, {one.left:,} of them left"
        lines.append(
            f"  {one.generation}{' (live)' if one.live else ''}: {one.rows_before:,} rows, "
            f"{one.matching:,} match{after}"
        )
    if receipt.unknown_time:
        lines.append(f"  not touched  {receipt.unknown_time:,} crops of unknown time")
    if receipt.state == "dry run":
        lines.append("nothing was changed; to erase, run it again with --yes")
    return "\n".join(lines)


def _erase(wanted: EraseSelection, settings: Settings, *, reason: str, dry_run: bool) -> Receipt:
    store = open_store(settings.runs)
    return forget(open_milvus(settings), store, list_runs(store), wanted, reason=reason, dry_run=dry_run)


def _named(counts: dict[str, int]) -> str:
    return ", ".join(f"{run_id} {rows:,} rows" for run_id, rows in counts.items())


def _crop_id(crop: str) -> int:
    if crop.removeprefix("crop:").isdecimal():
        return int(crop.removeprefix("crop:"))
    return crop_id_at(crop)
