"""Columns, limits and the values that stand for "unknown": the contract between manifest, run and index."""

import pyarrow as pa

UNKNOWN_TIME = -1
"""`captured_at` where nothing tells the time. Unknown cameras and tracks are the empty string."""

EMBEDDING_DIM = 1024
MAX_URI_BYTES = 1024
MAX_NAME_BYTES = 128
"""The longest camera_id and track_id. Milvus imports over-long strings without a word, so we refuse them."""

MANIFEST_SCHEMA = pa.schema(
    [
        ("crop_id", pa.int64()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("size", pa.int64()),
        ("last_modified", pa.int64()),
        ("camera_id", pa.string()),
        ("captured_at", pa.int64()),
        ("track_id", pa.string()),
        ("vehicle_id", pa.int64()),
        ("model_id", pa.int32()),
    ]
)
"""One row a crop; times in ms since the epoch, UTC. Only vehicle_id and model_id (the labels) may be null."""

SHARD_VERSION = 1
SHARD_SCHEMA = pa.schema(
    [
        ("crop_id", pa.int64()),
        ("embedding", pa.list_(pa.float32())),
        ("uri", pa.string()),
        ("camera_id", pa.string()),
        ("track_id", pa.string()),
        ("captured_at", pa.int64()),
        ("model_id", pa.int32()),
        ("model_confidence", pa.float32()),
    ]
)
"""One row an embedded crop, no nulls. Plain lists and strings, because Milvus 2.3 refuses the fixed-size,
large and dictionary kinds."""

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
