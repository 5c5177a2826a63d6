"""An S3 Inventory, Parquet or CSV, gives the same manifest as a listing, or is refused."""

import gzip
import hashlib
import io
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from index.archive.inventory import is_inventory, read_inventory
from index.archive.key_choice import KeyChoice
from index.archive.key_pattern import KeyPattern
from index.archive.listing import Listing, list_crops
from index.archive.manifest import normalize_manifest
from index.archive.skipped import HIDDEN
from infra.errors import BadInput, EmptyArchive
from infra.servers import SeaweedFs
from infra.store import UNADDRESSABLE, Store, open_store

PATTERN = KeyPattern("dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg")
KEYS = [
    "dt=2026-11-21/cam=001/1793000000000_t1.jpg",
    "dt=2026-11-22/cam=002/1793000000001_t2.jpg",
    "dt=2026-11-22/cam=002/odd name+ä.jpg",
    "dt=2026-11-22/cam=002/notes.txt",
]
PARQUET_NAMES = ["bucket", "key", "size", "last_modified_date", "e_tag", "is_latest", "is_delete_marker"]
CSV_NAMES = ["Bucket", "Key", "Size", "LastModifiedDate", "ETag", "IsLatest", "IsDeleteMarker"]


def table_of(listing: Listing) -> pa.Table:
    """The rows of a listing, sorted by URI."""
    return normalize_manifest(listing.crops.read())


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
    elif kind == "ORC":
        table = pa.table(dict(zip(PARQUET_NAMES, zip(*rows, strict=True), strict=True)))
        pyarrow.orc.write_table(table, buffer := io.BytesIO())
        data, schema, name = buffer.getvalue(), "struct<...>", "inventory/data/1.orc"
    else:
        lines = [
            (
                row[0],
                quote_plus(row[1], safe="/"),
                row[2],
                f"{row[3]:%Y-%m-%dT%H:%M:%S}.000Z",
                row[4],
                *map(_word, row[5:]),
            )
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


def _time(value: datetime) -> str:
    return f"{value:%Y-%m-%dT%H:%M:%S}.000Z"


def _word(value: bool) -> str:
    return str(value).lower()


@pytest.mark.parametrize("kind", ["Parquet", "ORC", "CSV"])
def test_an_inventory_gives_the_same_manifest_as_a_listing(archive: Store, kind: str) -> None:
    read = read_inventory(write(archive, kind), archive=archive, pattern=PATTERN, settings=archive.settings)
    listed = list_crops(archive, pattern=PATTERN)
    names = ["crop_id", "uri", "etag", "size", "camera_id", "captured_at", "track_id"]
    assert table_of(read).select(names).equals(table_of(listed).select(names))
    assert (read.num_not_images, read.unmatched) == (listed.num_not_images, listed.unmatched) == (1, 1)
    seconds = [round(value / 1000) for value in table_of(read)["last_modified"].to_pylist()]
    assert all(abs(second - datetime.now(UTC).timestamp()) < 600 for second in seconds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sourceBucket": "another"}, "inventory of the bucket another"),
        ({"fileFormat": "XML"}, "format XML"),
        ({"fileSchema": "Bucket, Size"}, "with other than one Key"),
        ({"fileSchema": "Key, Key"}, "with other than one Key"),
        ({"files": [{}]}, "not the manifest of an S3 Inventory"),
        ({"destinationBucket": 5}, "not the manifest of an S3 Inventory"),
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


def write_csv(archive: Store, files: list[bytes], schema: str = "Bucket, Key, Size") -> str:
    """Write an inventory of data files without a digest; return its URI."""
    bucket = archive.uri.removeprefix("s3://").partition("/")[0]
    store = open_store(f"s3://{bucket}", archive.settings)
    for number, data in enumerate(files):
        store.put(f"inventory/{number}.csv.gz", data)
    manifest = {
        "sourceBucket": bucket,
        "destinationBucket": f"arn:aws-cn:s3:::{bucket}",
        "fileFormat": "CSV",
        "fileSchema": schema,
        "files": [{"key": f"inventory/{number}.csv.gz"} for number in range(len(files))],
    }
    store.put("inventory/manifest.json", json.dumps(manifest).encode())
    return store.uri_of("inventory/manifest.json")


def keys_of(uri: str, archive: Store, **options: Any) -> list[str]:
    listing = read_inventory(uri, archive=archive, settings=archive.settings, **options)
    return [text.removeprefix(archive.uri_of("")) for text in table_of(listing)["uri"].to_pylist()]


def test_keys_of_a_csv_file_are_decoded_as_s3_encodes_them(archive: Store) -> None:
    text = b"".join(
        b'"b","crops/%s","1"\n' % key
        for key in (b"cam+1/a+b.jpg", b"caf%C3%A9+%2B.jpg", b"50%25.jpg", b"plain.jpg", b"space%20old.jpg")
    )
    uri = write_csv(archive, [gzip.compress(text)])
    assert keys_of(uri, archive) == ["50%.jpg", "café +.jpg", "cam 1/a b.jpg", "plain.jpg", "space old.jpg"]


def test_empty_files_odd_keys_and_hidden_ones_are_left_out(archive: Store) -> None:
    rows = [b"ok.jpg", b"a//b.jpg", b"t%09ab.jpg", b"%FF.jpg", b"../up.jpg", b".hidden/c.jpg", b"x.jpg/"]
    text = b"".join(b'"b","crops/%s",""\n' % key for key in rows)
    files = [b"", gzip.compress(b""), gzip.compress(text), gzip.compress(b'"b","",""\n')]
    uri = write_csv(archive, files)
    listing = read_inventory(uri, archive=archive, settings=archive.settings)
    assert table_of(listing)["uri"].to_pylist() == [archive.uri_of("ok.jpg")]
    assert table_of(listing)["size"].to_pylist() == [-1]
    assert listing.skipped.counts == {UNADDRESSABLE: 4, HIDDEN: 1}
    assert keys_of(uri, archive, choice=KeyChoice(include=(".hidden/**",))) == [".hidden/c.jpg"]


def test_only_the_key_is_required(archive: Store) -> None:
    uri = write_csv(archive, [b"crops/a.jpg\n"], schema="Key")
    row = table_of(read_inventory(uri, archive=archive, settings=archive.settings)).to_pylist()[0]
    assert (row["etag"], row["size"], row["last_modified"]) == ("", -1, -1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'"b","crops/a.jpg"\n', "not a usable inventory file: .*Expected 3 columns"),
        (b'"b","crops/a.jpg","big"\n', "data row 1, column size: 'big' is not a whole number"),
        (b'"b","crops/\xff.jpg","1"\n', "not a usable inventory file"),
        (gzip.compress(b'"b","crops/a.jpg","1"\n', mtime=0)[:-9], "cut short"),
        (gzip.compress(bytes(300 << 20), 1, mtime=0), "decodes to more"),
    ],
)
def test_a_damaged_data_file_is_refused(archive: Store, data: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        keys_of(write_csv(archive, [data]), archive)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"Schluessel": ["a.jpg"]}, "no column key"),
        ({"key": [["a.jpg"]]}, "key is nested"),
        ({"key": ["crops/a.jpg"], "size": ["big"]}, "data row 1, column size"),
    ],
)
def test_a_parquet_file_with_odd_columns_is_refused(
    archive: Store, table: dict[str, Any], message: str
) -> None:
    pq.write_table(pa.table(table), buffer := io.BytesIO())
    uri = write_csv(archive, [buffer.getvalue()])
    store = open_store(uri.rpartition("/")[0], archive.settings)
    document = json.loads(store.get("manifest.json")) | {"fileFormat": "Parquet"}
    store.put("manifest.json", json.dumps(document).encode())
    with pytest.raises(BadInput, match=message):
        keys_of(uri, archive)
