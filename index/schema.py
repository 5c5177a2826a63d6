"""The columns of manifests, shards and collections: one table, from which all of their schemas are made."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from infra.store.cells import Kind

UNKNOWN_TIME = -1
"""`captured_at` where nothing gives the time. Unknown cameras and tracks are the empty string."""

UNKNOWN_LABEL = -1
"""`model_id` of a shard whose network has no classifier."""

EMBEDDING_DIM = 1024
MAX_URI_BYTES = 1024
MAX_NAME_BYTES = 128
"""The longest camera_id and track_id. Milvus silently imports over-long strings, so we reject them."""


@dataclass(frozen=True, slots=True)
class Column:
    """One scalar column.

    unknown: the value of a crop of which nothing is known; None for labels, which may be null.
    max_bytes: of a string in UTF-8; crops with a longer one are quarantined, because Milvus keeps no more.
    shard: its place in a shard and in a collection, from 1; 0 for a column of manifests only. manifest: False
    for what only the network knows. label: whether a label table may give it. repeats: whether few values
    fill it, so that a dictionary makes Parquet files smaller. required: whether no crop can be without it.
    """

    name: str
    type: pa.DataType
    unknown: Any = None
    max_bytes: int | None = None
    shard: int = 0
    manifest: bool = True
    label: bool = False
    repeats: bool = False
    required: bool = False


_EMBEDDING = 2  # the place of the embedding in a shard
COLUMNS = (
    Column("crop_id", pa.int64(), shard=1, required=True),
    Column("uri", pa.string(), max_bytes=MAX_URI_BYTES, shard=3, required=True),
    Column("etag", pa.string(), ""),
    Column("size", pa.int64(), -1),
    Column("last_modified", pa.int64(), UNKNOWN_TIME),
    Column("camera_id", pa.string(), "", max_bytes=MAX_NAME_BYTES, shard=4, label=True, repeats=True),
    Column("captured_at", pa.int64(), UNKNOWN_TIME, shard=6, label=True),
    Column("track_id", pa.string(), "", max_bytes=MAX_NAME_BYTES, shard=5, label=True, repeats=True),
    Column("vehicle_id", pa.int64(), label=True),
    # In a manifest the label, or null; in a shard what the network predicts.
    Column("model_id", pa.int32(), shard=7, label=True),
    Column("model_confidence", pa.float32(), shard=8, manifest=False),
)

MANIFEST_SCHEMA = pa.schema([(column.name, column.type) for column in COLUMNS if column.manifest])
"""One row a crop; times in ms since the epoch, UTC. Only vehicle_id and model_id (the labels) may be null."""

SCALARS = tuple(sorted((column for column in COLUMNS if column.shard), key=lambda column: column.shard))
"""The scalar columns of shards and collections, in their order."""

SCALAR_NAMES = tuple(column.name for column in SCALARS)

SHARD_VERSION = 1
SHARD_SCHEMA = pa.schema([(column.name, column.type) for column in SCALARS]).insert(
    _EMBEDDING - 1, pa.field("embedding", pa.list_(pa.float32()))
)
"""One row an embedded crop, no nulls. Plain lists and strings, because Milvus 2.3 refuses the fixed-size,
large and dictionary types."""

MAX_BYTES = {column.name: column.max_bytes for column in SCALARS if column.max_bytes is not None}
"""The longest value of each string column that Milvus keeps."""

UNKNOWN = {column.name: column.unknown for column in COLUMNS if column.manifest and not column.required}
"""What a manifest says of a crop where nothing is known."""

LABEL_COLUMNS = tuple(column.name for column in COLUMNS if column.label)
"""What a label table may say of a crop."""

COLUMN_KINDS: dict[str, Kind] = {
    "key": "text",
    "uri": "text",
    "crop_id": "integer",
    "etag": "text",
    "size": "integer",
    "last_modified": "time",
    "camera_id": "text",
    "captured_at": "time",
    "track_id": "text",
    "vehicle_id": "id",
    "model_id": "small_id",
    "split": "text",
}
"""What the columns of tables that users write hold, see `infra.store.cells`."""

QUARANTINE_STAGES = ("manifest", "fetch", "decode", "embed")
QUARANTINE_SCHEMA = pa.schema(
    [
        ("crop_id", pa.int64()),
        ("uri", pa.string()),
        ("stage", pa.string()),
        ("cause", pa.string()),
        ("detail", pa.string()),
    ]
)
"""One row a crop that could not be embedded; `cause` is one short word, `detail` a sentence."""

RANGE_COLUMNS = {"camera_id", "captured_at", "model_id", "crop_id"}
"""Columns whose ranges let a scan leave out row groups."""

REPEATING_COLUMNS = {column.name for column in COLUMNS if column.repeats} | {"stage", "cause"}
"""Columns that Parquet files keep as dictionaries."""
