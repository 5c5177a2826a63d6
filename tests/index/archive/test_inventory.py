"""An S3 Inventory, Parquet or CSV, gives the same manifest as a listing, or is refused."""

import gzip
import hashlib
import io
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.archive.inventory import is_inventory, read_inventory
from index.archive.key_pattern import KeyPattern
from index.archive.listing import list_crops
from infra.errors import BadInput, EmptyArchive
from infra.servers import SeaweedFs
from infra.store import Store, open_store

PATTERN = KeyPattern("dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg")
KEYS = [
    "dt=2026-11-21/cam=001/1793000000000_t1.jpg",
    "dt=2026-11-22/cam=002/1793000000001_t2.jpg",
    "dt=2026-11-22/cam=002/odd name+ä.jpg",
    "dt=2026-11-22/cam=002/notes.txt",
]
PARQUET_NAMES = ["bucket", "key", "size", "last_modified_date", "e_tag", "is_latest", "is_delete_marker"]
CSV_NAMES = ["Bucket", "Key", "Size", "LastModifiedDate", "ETag", "IsLatest", "IsDeleteMarker"]


@pytest.fixture
def archive(bucket: str, seaweedfs: SeaweedFs) -> Store:
    store = open_store(f"{bucket}/crops", seaweedfs.settings)
    for key in KEYS:
        store.put(key, key.encode())
    open_store(bucket, seaweedfs.settings).put("crops-of-others/1.jpg", b"x")
    return store


def write(archive: Store, kind: str, **changes: Any) -> str:
    """Write an inventory of the archive's bucket into the same bucket, the way S3 does; return its URI."""
    bucket = archive.uri.removeprefix("s3://").partition("/")[0]
    store = open_store(f"s3://{bucket}", archive.settings)
    infos = [info for info in store.list() if not info.key.startswith("inventory/")]
    rows = [
        (bucket, info.key, info.size, info.last_modified, info.etag, latest, deleted)
        for info in infos
        for latest, deleted in ((True, False), (False, False), (True, True))
        if (latest and not deleted) or info.key.endswith("t1.jpg")
    ]
    if kind == "Parquet":
        table = pa.table(dict(zip(PARQUET_NAMES, zip(*rows, strict=True), strict=True)))
        pq.write_table(table, buffer := io.BytesIO())
        data, schema, name = buffer.getvalue(), "message s3.inventory { ... }", "inventory/data/1.parquet"
    else:
        lines = [
            (row[0], quote(row[1]), row[2], f"{row[3]:%Y-%m-%dT%H:%M:%S}.000Z", row[4], *map(_word, row[5:]))
            for row in rows
        ]
        text = "\n".join(",".join(f'"{value}"' for value in line) for line in lines)
        data, schema = gzip.compress(text.encode()), ", ".join(CSV_NAMES)
        name = "inventory/data/1.csv.gz"
    store.put(name, data)
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    manifest = {
        "sourceBucket": bucket,
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "fileFormat": kind,
        "fileSchema": schema,
        "files": [{"key": name, "size": len(data), "MD5checksum": digest}],
    }
    store.put("inventory/manifest.json", json.dumps(manifest | changes).encode())
    return store.uri_of("inventory/manifest.json")


def _word(value: bool) -> str:
    return str(value).lower()


@pytest.mark.parametrize("kind", ["Parquet", "CSV"])
def test_an_inventory_gives_the_same_manifest_as_a_listing(archive: Store, kind: str) -> None:
    read = read_inventory(write(archive, kind), archive=archive, pattern=PATTERN, settings=archive.settings)
    listed = list_crops(archive, pattern=PATTERN)
    names = ["crop_id", "uri", "etag", "size", "camera_id", "captured_at", "track_id"]
    assert read.manifest.select(names).equals(listed.manifest.select(names))
    assert (read.num_not_images, read.unmatched) == (listed.num_not_images, listed.unmatched) == (1, 1)
    seconds = [round(value / 1000) for value in read.manifest["last_modified"].to_pylist()]
    assert all(abs(second - datetime.now(UTC).timestamp()) < 600 for second in seconds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sourceBucket": "another"}, "inventory of the bucket another"),
        ({"fileFormat": "ORC"}, "format ORC"),
        ({"files": 3}, "not the manifest of an S3 Inventory"),
    ],
)
def test_another_bucket_or_format_is_refused(archive: Store, changes: dict[str, Any], message: str) -> None:
    uri = write(archive, "CSV", **changes)
    with pytest.raises(BadInput, match=message):
        read_inventory(uri, archive=archive, settings=archive.settings)


def test_a_data_file_with_another_md5_is_refused(archive: Store) -> None:
    uri = write(archive, "CSV")
    open_store(uri.rpartition("/")[0], archive.settings).put("data/1.csv.gz", gzip.compress(b"a,b"))
    with pytest.raises(BadInput, match="MD5"):
        read_inventory(uri, archive=archive, settings=archive.settings)


def test_a_prefix_without_images_is_an_empty_archive(archive: Store) -> None:
    elsewhere = open_store(f"{archive.uri}-none", archive.settings)
    with pytest.raises(EmptyArchive):
        read_inventory(write(archive, "Parquet"), archive=elsewhere, settings=archive.settings)


def test_an_inventory_is_recognised_by_its_name() -> None:
    assert is_inventory("s3://b/inv/2026-11-22T01-00Z/manifest.json")
    assert not is_inventory("s3://b/keys.parquet")
