"""Rows of shards as Milvus wants them, sent in batches, and rows removed by their ids."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.load_plan import LoadPlan
from index.milvus import Milvus
from index.shards import vectors_of

INSERT_ROWS = 1000
"""4 MB of vectors; a request may have 64 MB, and larger batches were not faster."""

_IDS_A_CALL = 5000


def send(milvus: Milvus, how: Literal["insert", "upsert"], name: str, plan: LoadPlan) -> Iterator[int]:
    """Send all rows of a plan, and yield after each batch how many have been sent. Does not flush."""
    done = 0
    for shard in plan.shards:
        for batch in shard.batches(INSERT_ROWS):
            milvus.call(how, name, list(_as_rows(batch)), timeout=120)
            done += batch.num_rows
            yield done


def count_of(milvus: Milvus, name: str, crop_ids: NDArray[np.int64]) -> int:
    """Return how many of the crop_ids (n,) a loaded generation holds."""
    found = 0
    for filter_ in _filters(crop_ids):
        answer = milvus.call(
            "query",
            name,
            filter=filter_,
            output_fields=["count(*)"],
            consistency_level="Strong",
            timeout=60,
        )
        found += int(answer[0]["count(*)"])
    return found


def delete(milvus: Milvus, name: str, crop_ids: NDArray[np.int64]) -> None:
    """Delete the rows of the crop_ids (n,) and flush; ids that are not there are fine."""
    for filter_ in _filters(crop_ids):
        milvus.call("delete", name, filter=filter_, timeout=120)
    if crop_ids.size:
        milvus.call("flush", name, timeout=600)


def ids_in(milvus: Milvus, name: str, expression: str = "") -> NDArray[np.int64]:
    """Return the crop_ids (n,) of a loaded generation, ascending: all, or those that pass a filter."""
    pages = milvus.call(
        "query_iterator",
        name,
        batch_size=10_000,
        filter=expression,
        output_fields=["crop_id"],
        consistency_level="Strong",
        timeout=120,
    )
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    try:
        while page := pages.next():
            found.append(np.fromiter((row["crop_id"] for row in page), np.int64, len(page)))
    finally:
        pages.close()
    return np.sort(np.concatenate(found))


def _filters(crop_ids: Sequence[int] | NDArray[np.int64]) -> Iterator[str]:
    for first in range(0, len(crop_ids), _IDS_A_CALL):
        yield f"crop_id in [{', '.join(str(int(one)) for one in crop_ids[first : first + _IDS_A_CALL])}]"


def _as_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    names = [name for name in batch.schema.names if name != "embedding"]
    columns = [batch.column(name).to_pylist() for name in names]
    for values, vector in zip(zip(*columns, strict=True), vectors_of(batch), strict=True):
        yield {**dict(zip(names, values, strict=True)), "embedding": vector}
