"""S3 Inventory: a listing that S3 writes daily or weekly, as Parquet or CSV with a manifest.json.

Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

import gzip
import hashlib
import io
import json
import zlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from index.archive.key_pattern import KeyPattern
from index.archive.listing import IMAGE_SUFFIXES, Listing
from index.archive.manifest import crop_id_of, manifest_batch, normalize_manifest
from infra.errors import BadInput, EmptyArchive
from infra.store import Store, StoreSettings, open_store, split_uri

_COLUMNS = {
    "key": "key",
    "size": "size",
    "lastmodifieddate": "last_modified",
    "etag": "etag",
    "islatest": "latest",
    "isdeletemarker": "deleted",
}
_REMEDY = "Give the manifest.json of an S3 Inventory in CSV or Parquet."


@dataclass(frozen=True, slots=True)
class _Inventory:
    """Contents of a manifest.json. `store` holds the data files, `columns` are those of CSV files."""

    bucket: str
    store: Store
    file_format: str
    columns: tuple[str, ...]
    files: tuple[dict[str, Any], ...]


def is_inventory(uri: str) -> bool:
    """Return whether a URI is that of an inventory rather than of a list of keys."""
    return uri.rpartition("/")[2] == "manifest.json"


def read_inventory(
    uri: str,
    *,
    archive: Store,
    pattern: KeyPattern | None = None,
    settings: StoreSettings | None = None,
) -> Listing:
    """Read an S3 Inventory of the archive's bucket into a manifest of the images below the archive's root.

    Older versions and delete markers are left out. The data files are read from the inventory's destination
    bucket, one at a time, and their MD5 is checked against the manifest.
    Raises BadInput for another bucket, format or digest, EmptyArchive, and what `Store.get` raises.
    """
    inventory = _open_inventory(uri, settings)
    bucket, _, prefix = archive.uri.removeprefix("s3://").partition("/")
    if inventory.bucket != bucket:
        raise BadInput(
            f"{uri} is an inventory of the bucket {inventory.bucket}, the archive is {archive.uri}",
            remedy="Give the inventory of the archive's bucket.",
        )
    prefix = f"{prefix}/" if prefix else ""
    batches: list[pa.RecordBatch] = []
    num_not_images = unmatched = 0
    for file in inventory.files:
        objects = _latest_versions(_read_data_file(inventory, file))
        objects = objects.filter(pc.starts_with(objects["key"], prefix))
        images = objects.filter(_is_image(objects["key"]))
        num_not_images += objects.num_rows - images.num_rows
        for batch in images.combine_chunks().to_batches():
            rows, missed = _manifest_rows(batch, archive, len(prefix), pattern)
            batches.append(rows)
            unmatched += missed
    if not any(batch.num_rows for batch in batches):
        raise EmptyArchive(f"{uri} lists no images below {archive.uri}", remedy="Check the prefix.")
    return Listing(normalize_manifest(pa.Table.from_batches(batches)), num_not_images, unmatched)


def _open_inventory(uri: str, settings: StoreSettings | None) -> _Inventory:
    root, name = split_uri(uri)
    data = open_store(root, settings).get(name)
    try:
        document = json.loads(data)
        file_format = document["fileFormat"].upper()
        schema = str(document["fileSchema"])
        columns = tuple(_column_key(name) for name in schema.split(",")) if file_format == "CSV" else ()
        destination = document["destinationBucket"].rpartition(":")[2]
        files = tuple({"key": file["key"], "md5": file.get("MD5checksum")} for file in document["files"])
        source = document["sourceBucket"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{uri} is not the manifest of an S3 Inventory: {error!r}", remedy=_REMEDY) from error
    if file_format not in ("CSV", "PARQUET"):
        raise BadInput(f"{uri} is an inventory in the format {file_format}", remedy=_REMEDY)
    return _Inventory(
        bucket=source,
        store=open_store(f"s3://{destination}", settings),
        file_format=file_format,
        columns=columns,
        files=files,
    )


def _read_data_file(inventory: _Inventory, file: dict[str, Any]) -> pa.Table:
    where = inventory.store.uri_of(file["key"])
    data = inventory.store.get(file["key"])
    if file["md5"] and hashlib.md5(data, usedforsecurity=False).hexdigest() != file["md5"].lower():
        raise BadInput(f"{where} does not have the MD5 that its manifest states", remedy="Copy it again.")
    try:
        if inventory.file_format == "PARQUET":
            table = pq.read_table(io.BytesIO(data))
            table = table.rename_columns([_column_key(name) for name in table.schema.names])
        else:
            text = gzip.decompress(data) if file["key"].endswith(".gz") else data
            table = pyarrow.csv.read_csv(
                io.BytesIO(text),
                read_options=pyarrow.csv.ReadOptions(column_names=inventory.columns),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(inventory.columns, pa.string())
                ),
            )
            # Only in CSV are keys encoded as in a URL.
            keys = [unquote(key) if "%" in key else key for key in table["key"].to_pylist()]
            table = table.set_column(table.schema.get_field_index("key"), "key", pa.array(keys, pa.string()))
        names = [name for name in table.schema.names if name in _COLUMNS]
        return table.select(names).rename_columns([_COLUMNS[name] for name in names])
    except (pa.ArrowException, KeyError, OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{where} is not a usable inventory file: {error}", remedy=_REMEDY) from error


def _column_key(name: str) -> str:
    """Return the same name for 'LastModifiedDate' (CSV) and 'last_modified_date' (Parquet)."""
    return name.strip().replace("_", "").lower()


def _latest_versions(table: pa.Table) -> pa.Table:
    for name, expected in (("latest", "true"), ("deleted", "false")):
        if name in table.schema.names:
            values = pc.utf8_lower(table[name].cast(pa.string()))
            table = table.filter(pc.or_kleene(values.is_null(), pc.equal(values, expected)))
    return table


def _is_image(keys: Any) -> Any:
    lowercase = pc.utf8_lower(keys)
    mask = pc.ends_with(lowercase, IMAGE_SUFFIXES[0])
    for suffix in IMAGE_SUFFIXES[1:]:
        mask = pc.or_(mask, pc.ends_with(lowercase, suffix))
    return mask


def _manifest_rows(
    batch: pa.RecordBatch, archive: Store, prefix_chars: int, pattern: KeyPattern | None
) -> tuple[pa.RecordBatch, int]:
    names = batch.schema.names
    keys = pc.utf8_slice_codeunits(batch["key"].cast(pa.string()), prefix_chars)
    uris = pc.binary_join_element_wise(archive.uri, keys, "/")
    columns: dict[str, Any] = {
        "crop_id": pa.array([crop_id_of(uri) for uri in uris.to_pylist()], pa.int64()),
        "uri": uris,
    }
    if "etag" in names:
        columns["etag"] = pc.replace_substring(pc.fill_null(batch["etag"].cast(pa.string()), ""), '"', "")
    if "size" in names:
        columns["size"] = pc.fill_null(batch["size"].cast(pa.int64()), -1)
    if "last_modified" in names:
        columns["last_modified"] = _to_epoch_ms(batch["last_modified"])
    return manifest_batch(columns, keys, pattern)


def _to_epoch_ms(column: Any) -> Any:
    if pa.types.is_integer(column.type):
        return pc.fill_null(column.cast(pa.int64()), -1)
    if not pa.types.is_timestamp(column.type):
        text = pc.replace_substring_regex(column.cast(pa.string()), r"(\.\d+)?Z?$", "")
        column = pc.strptime(text, format="%Y-%m-%dT%H:%M:%S", unit="ms", error_is_null=True)
    return pc.fill_null(column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64()), -1)
