"""The columns on disk: shards and manifests that exist were written with these, in this order."""

from index.schema import MANIFEST_SCHEMA, SHARD_SCHEMA


def test_shards_keep_their_columns_types_and_order() -> None:
    assert [f"{column.name}: {column.type}" for column in SHARD_SCHEMA] == [
        "crop_id: int64",
        "embedding: list<item: float>",
        "uri: string",
        "camera_id: string",
        "track_id: string",
        "captured_at: int64",
        "model_id: int32",
        "model_confidence: float",
    ]


def test_manifests_keep_their_columns_types_and_order() -> None:
    assert [f"{column.name}: {column.type}" for column in MANIFEST_SCHEMA] == [
        "crop_id: int64",
        "uri: string",
        "etag: string",
        "size: int64",
        "last_modified: int64",
        "camera_id: string",
        "captured_at: int64",
        "track_id: string",
        "vehicle_id: int64",
        "model_id: int32",
    ]
