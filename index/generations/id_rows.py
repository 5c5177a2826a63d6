"""The crop_ids of many rows, range by range: those of one range are in memory, the others on local disk.

A crop_id is a hash, so ranges of equal width hold about equally many. Up to IN_MEMORY rows are one range.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.store import ScratchFolder

Ids = NDArray[np.int64]

IN_MEMORY = 1 << 20
"""Rows, 16 bytes each, up to which nothing goes to local disk."""

RANGES = 256
_SHIFT = 63 - 8  # crop_ids are not negative
_ROW = np.dtype([("crop_id", np.int64), ("run", np.int32), ("shard", np.int32)])


@dataclass(frozen=True, slots=True)
class IdRange:
    """The rows of one range of crop_ids, by crop_id and run: (n,) each. low, high: its ends, None: no end."""

    low: int | None
    high: int | None
    ids: Ids
    runs: NDArray[np.int32]
    shards: NDArray[np.int32]

    def expression(self) -> str:
        """Return the range as a Milvus filter; "" for all crop_ids."""
        ends = ((">=", self.low), ("<", self.high))
        return " and ".join(f"crop_id {sign} {end}" for sign, end in ends if end is not None)


class IdRows:
    """Rows of a crop_id and the numbers of its run and shard, added in any order."""

    def __init__(self) -> None:
        self.count = 0
        self._pending: list[NDArray[Any]] = []
        self._held = 0
        self._folder: ScratchFolder | None = None

    def add(self, ids: Ids, *, run: int = 0, shard: int = 0) -> None:
        """Add rows (n,) of one shard of a run. Raises OSError for a full disk."""
        rows = np.empty(len(ids), _ROW)
        rows["crop_id"], rows["run"], rows["shard"] = ids, run, shard
        self._pending.append(rows)
        self.count += len(rows)
        self._held += len(rows)
        if self._held > IN_MEMORY:
            self._folder = self._folder or ScratchFolder()
            self._spill(self._folder)

    def ranges(self) -> Iterator[IdRange]:
        """Yield the rows, the ranges ascending."""
        if self._folder is None:
            yield _range(None, None, np.concatenate([np.empty(0, _ROW), *self._pending]))
            return
        self._spill(self._folder)
        for number in range(RANGES):
            path = self._folder.path / str(number)
            rows = np.frombuffer(path.read_bytes() if path.exists() else b"", _ROW)
            low = number << _SHIFT if number else None
            yield _range(low, (number + 1) << _SHIFT if number + 1 < RANGES else None, rows)

    def _spill(self, folder: ScratchFolder) -> None:
        rows = np.concatenate([np.empty(0, _ROW), *self._pending])
        self._pending, self._held = [], 0
        numbers = rows["crop_id"] >> _SHIFT
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], np.arange(RANGES + 1))
        for number in range(RANGES):
            with (folder.path / str(number)).open("ab") as file:
                file.write(rows[order[ends[number] : ends[number + 1]]].tobytes())


def _range(low: int | None, high: int | None, rows: NDArray[Any]) -> IdRange:
    rows = rows[np.lexsort((rows["run"], rows["crop_id"]))]
    return IdRange(low, high, rows["crop_id"].copy(), rows["run"].copy(), rows["shard"].copy())
