"""The columns of manifests, shards and collections: one table, from which all of their schemas are made."""

from collections.abc import Collection
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
MAX_VALUE_BYTES = 64
"""The longest name of an attribute's value."""

ATTRIBUTES = ("color", "body_type")
"""What a model may predict of a crop beside its vehicle model; each has a column of the confidence too."""


@dataclass(frozen=True, slots=True)
class Column:
    """One scalar column.

    unknown: the value of a crop of which nothing is known; None for labels, which may be null.
    max_bytes: of a string in UTF-8; crops with a longer one are quarantined, because Milvus keeps no more.
    shard: its place in a shard and in a collection, from 1; 0 for a column of manifests only. manifest: False
    for what only the network knows. label: whether a label table may give it. repeats: whether few values
    fill it, so that a dictionary makes Parquet files smaller. required: whether no crop can be without it.
    version: of the shards that have it, and of later ones.
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
    version: int = 1


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
    # Only of models that predict attributes, so that the shards of the others stay as they were.
    Column("color", pa.string(), "", MAX_VALUE_BYTES, shard=9, manifest=False, repeats=True, version=2),
    Column("color_confidence", pa.float32(), shard=10, manifest=False, version=2),
    Column("body_type", pa.string(), "", MAX_VALUE_BYTES, shard=11, manifest=False, repeats=True, version=2),
    Column("body_type_confidence", pa.float32(), shard=12, manifest=False, version=2),
)

MANIFEST_SCHEMA = pa.schema([(column.name, column.type) for column in COLUMNS if column.manifest])
"""One row a crop; times in ms since the epoch, UTC. Only vehicle_id and model_id (the labels) may be null."""

SCALARS = tuple(sorted((column for column in COLUMNS if column.shard), key=lambda column: column.shard))
"""The scalar columns of shards and collections, in their order."""


def scalar_names(version: int) -> tuple[str, ...]:
    """Return the scalar columns of shards of a version, and of their collections."""
    return tuple(column.name for column in SCALARS if column.version <= version)


def _shard_schema(version: int) -> pa.Schema:
    columns = [(column.name, column.type) for column in SCALARS if column.version <= version]
    return pa.schema(columns).insert(_EMBEDDING - 1, pa.field("embedding", pa.list_(pa.float32())))


SHARD_SCHEMAS = {version: _shard_schema(version) for version in (1, 2)}
"""One row an embedded crop, no nulls; version 2 is of models that predict attributes. Plain lists and
strings, because Milvus 2.3 refuses the fixed-size, large and dictionary types."""

SHARD_SCHEMA = SHARD_SCHEMAS[1]
"""The columns of every shard."""


def shard_version(names: Collection[str]) -> int:
    """Return the version of shards with these columns."""
    return max(column.version for column in SCALARS if column.name in names or column.version == 1)


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
    "color": "text",
    "body_type": "text",
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

CONFIDENCES = tuple(column.name for column in SCALARS if column.name.endswith("_confidence"))
"""The columns of probabilities."""

RANGE_COLUMNS = {"camera_id", "captured_at", "model_id", "crop_id"}
"""Columns whose ranges let a scan leave out row groups."""

REPEATING_COLUMNS = {column.name for column in COLUMNS if column.repeats} | {"stage", "cause"}
"""Columns that Parquet files keep as dictionaries."""
