"""Which crops an erasure or a retention rule means, found in the manifests of all runs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.filters import Filters
from index.runs import Run
from index.schemas import UNKNOWN_TIME
from index.shards import read_shards
from infra.errors import BadSetting

_COLUMNS = ["crop_id", "uri", "camera_id", "captured_at", "vehicle_id"]


@dataclass(frozen=True, slots=True)
class Wanted:
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
                remedy="Give --vehicle, --crop, --camera, --from or --to.",
            )
        if start is not None and end is not None and start >= end:
            raise BadSetting("the time window is empty", remedy="--from must be before --to.")

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


def matching_crops(runs: Sequence[Run], wanted: Wanted) -> tuple[NDArray[np.int64], int]:
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


def _by_identity(crops: pa.Table, wanted: Wanted) -> Any:
    keep = pc.is_valid(crops["crop_id"])
    for name, values, kind in (
        ("vehicle_id", wanted.vehicles, pa.int64()),
        ("crop_id", wanted.crop_ids, pa.int64()),
        ("camera_id", wanted.cameras, pa.string()),
    ):
        if values:
            keep = pc.and_(keep, pc.is_in(crops[name], value_set=pa.array(values, kind)))
    return keep


def _by_time(crops: pa.Table, wanted: Wanted) -> Any:
    times = crops["captured_at"]
    keep = pc.not_equal(times, UNKNOWN_TIME)
    if wanted.captured_from is not None:
        keep = pc.and_(keep, pc.greater_equal(times, wanted.captured_from))
    if wanted.captured_to is not None:
        keep = pc.and_(keep, pc.less(times, wanted.captured_to))
    return keep
