"""The order of rows in a shard, which makes the ranges of its row groups narrow: days, cameras, times.

A manifest is in the order of its URIs, and these may have neither a camera nor a time. A shard is cut into
slices of whole days, of at least eight row groups; within a slice rows are by camera, then by time. So a
filter by a day reads about its slice, and one by a camera a row group or two of each slice.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.parquet import lists_of
from index.runs.shards import ROW_GROUP_ROWS, vectors_of
from index.schema import EMBEDDING_DIM

SLICE_ROWS = 8 * ROW_GROUP_ROWS
_DAY_MS = 86_400_000
_ROW_BYTES = 4 * EMBEDDING_DIM


def in_shard_order(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a shard in its order; rows of the same camera and time keep theirs.

    In memory are all columns but the vectors, which lie on local disk meanwhile (4 KB a row), and those of
    one row group. Raises CorruptObject for a vector of another length, OSError for a full disk.
    """
    scalars: list[pa.RecordBatch] = []
    names: list[str] = []
    with tempfile.TemporaryFile(prefix="clvr-") as file:
        for batch in batches:
            names = batch.schema.names
            file.write(np.ascontiguousarray(vectors_of(batch)).data)
            scalars.append(batch.drop_columns(["embedding"]))
        if not sum(map(len, scalars)):
            return
        file.flush()
        rows = pa.Table.from_batches(scalars).replace_schema_metadata()
        order = shard_order(rows["camera_id"], np.asarray(rows["captured_at"]))
        for first in range(0, len(order), ROW_GROUP_ROWS):
            positions = order[first : first + ROW_GROUP_ROWS]
            group = rows.take(pa.array(positions))
            group = group.append_column("embedding", lists_of(_vectors_at(file, positions)))
            yield from group.select(names).combine_chunks().to_batches()


def shard_order(cameras: pa.ChunkedArray, times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions (n) of rows in the order of a shard, given their cameras and times (n, ms)."""
    keys = pa.table({"slice": _slices(times // _DAY_MS), "camera": cameras, "time": times})
    order = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names])
    positions: NDArray[np.int64] = np.asarray(order).astype(np.int64)
    return positions


def _slices(days: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of the slice (n) of each day (n): consecutive days of at least SLICE_ROWS rows."""
    known, counts = np.unique(days, return_counts=True)
    slices, rows, left = [], 0, len(days)
    number = 0
    for count in counts.tolist():
        slices.append(number)
        rows, left = rows + count, left - count
        if rows >= SLICE_ROWS and left >= SLICE_ROWS:
            number, rows = number + 1, 0
    return np.array(slices, np.int64)[np.searchsorted(known, days)]


def _vectors_at(file: IO[bytes], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return vectors (n, EMBEDDING_DIM) of the file; unlike a memory map this does not count as memory."""
    vectors = np.empty((len(positions), EMBEDDING_DIM), np.float32)
    starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1)  # of neighbours in the file
    for start, end in zip(starts, [*starts[1:], len(positions)], strict=True):
        os.preadv(file.fileno(), [vectors[start:end].data], int(positions[start]) * _ROW_BYTES)
    return vectors
