"""S3 Inventory: the listing that S3 itself writes, daily or weekly, as Parquet or CSV beside a manifest.json.

Form: https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
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
_REMEDY = "Name the manifest.json of an S3 Inventory in CSV or Parquet."


@dataclass(frozen=True, slots=True)
class _Inventory:
    """What a manifest.json says: where the data files are, and their columns."""

    bucket: str
    store: Store
    kind: str
    columns: tuple[str, ...]
    files: tuple[dict[str, Any], ...]


def is_inventory(uri: str) -> bool:
    """Whether a URI looks like an inventory rather than a list of keys."""
    return uri.rpartition("/")[2] == "manifest.json"


def read_inventory(
    uri: str,
    *,
    archive: Store,
    pattern: KeyPattern | None = None,
    settings: StoreSettings | None = None,
) -> Listing:
    """Turn an S3 Inventory of the archive's bucket into a manifest of the pictures below the archive's root.

    Older versions and delete markers are left out. The data files are read from the inventory's destination
    bucket, one at a time, and held to the MD5 that the manifest states.
    Raises BadInput for another bucket, format or digest, EmptyArchive, and what `Store.get` raises.
    """
    inventory = _opened(uri, settings)
    bucket, _, prefix = archive.uri.removeprefix("s3://").partition("/")
    if inventory.bucket != bucket:
        raise BadInput(
            f"{uri} is an inventory of the bucket {inventory.bucket}, the archive is {archive.uri}",
            remedy="Name the inventory of the archive's own bucket.",
        )
    below = f"{prefix}/" if prefix else ""
    batches: list[pa.RecordBatch] = []
    ignored = unmatched = 0
    for file in inventory.files:
        listed = _current(_read(inventory, file))
        listed = listed.filter(pc.starts_with(listed["key"], below))
        pictures = listed.filter(_is_picture(listed["key"]))
        ignored += listed.num_rows - pictures.num_rows
        for batch in pictures.combine_chunks().to_batches():
            made, missed = _manifest_rows(batch, archive, len(below), pattern)
            batches.append(made)
            unmatched += missed
    if not any(batch.num_rows for batch in batches):
        raise EmptyArchive(f"{uri} lists no picture below {archive.uri}", remedy="Check the prefix.")
    return Listing(normalize_manifest(pa.Table.from_batches(batches)), ignored, unmatched)


def _opened(uri: str, settings: StoreSettings | None) -> _Inventory:
    root, name = split_uri(uri)
    data = open_store(root, settings).get(name)
    try:
        found = json.loads(data)
        kind = found["fileFormat"].upper()
        schema = str(found["fileSchema"])
        names = tuple(_plain(name) for name in schema.split(",")) if kind == "CSV" else ()
        destination = found["destinationBucket"].rpartition(":")[2]
        files = tuple({"key": file["key"], "md5": file.get("MD5checksum")} for file in found["files"])
        source = found["sourceBucket"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{uri} is not the manifest of an S3 Inventory: {error!r}", remedy=_REMEDY) from error
    if kind not in ("CSV", "PARQUET"):
        raise BadInput(f"{uri} is an inventory in the format {kind}", remedy=_REMEDY)
    return _Inventory(source, open_store(f"s3://{destination}", settings), kind, names, files)


def _read(inventory: _Inventory, file: dict[str, Any]) -> pa.Table:
    where = inventory.store.uri_of(file["key"])
    data = inventory.store.get(file["key"])
    if file["md5"] and hashlib.md5(data, usedforsecurity=False).hexdigest() != file["md5"].lower():
        raise BadInput(f"{where} is not the file that its manifest names (MD5)", remedy="Copy it again.")
    try:
        if inventory.kind == "PARQUET":
            table = pq.read_table(io.BytesIO(data))
            table = table.rename_columns([_plain(name) for name in table.schema.names])
        else:
            text = gzip.decompress(data) if file["key"].endswith(".gz") else data
            table = pyarrow.csv.read_csv(
                io.BytesIO(text),
                read_options=pyarrow.csv.ReadOptions(column_names=inventory.columns),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(inventory.columns, pa.string())
                ),
            )
            # In CSV, and there only, keys are written as in a URL.
            keys = [unquote(key) if "%" in key else key for key in table["key"].to_pylist()]
            table = table.set_column(table.schema.get_field_index("key"), "key", pa.array(keys, pa.string()))
        known = [name for name in table.schema.names if name in _COLUMNS]
        return table.select(known).rename_columns([_COLUMNS[name] for name in known])
    except (pa.ArrowException, KeyError, OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{where} is not a usable inventory file: {error}", remedy=_REMEDY) from error


def _plain(name: str) -> str:
    """Join 'LastModifiedDate' (CSV) and 'last_modified_date' (Parquet) into one spelling."""
    return name.strip().replace("_", "").lower()


def _current(table: pa.Table) -> pa.Table:
    for name, wanted in (("latest", "true"), ("deleted", "false")):
        if name in table.schema.names:
            said = pc.utf8_lower(table[name].cast(pa.string()))
            table = table.filter(pc.or_kleene(said.is_null(), pc.equal(said, wanted)))
    return table


def _is_picture(keys: Any) -> Any:
    lower = pc.utf8_lower(keys)
    found = pc.ends_with(lower, IMAGE_SUFFIXES[0])
    for suffix in IMAGE_SUFFIXES[1:]:
        found = pc.or_(found, pc.ends_with(lower, suffix))
    return found


def _manifest_rows(
    batch: pa.RecordBatch, archive: Store, cut: int, pattern: KeyPattern | None
) -> tuple[pa.RecordBatch, int]:
    names = batch.schema.names
    keys = pc.utf8_slice_codeunits(batch["key"].cast(pa.string()), cut)
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
        columns["last_modified"] = _epoch_ms(batch["last_modified"])
    return manifest_batch(columns, keys, pattern)


def _epoch_ms(column: Any) -> Any:
    if pa.types.is_integer(column.type):
        return pc.fill_null(column.cast(pa.int64()), -1)
    if not pa.types.is_timestamp(column.type):
        text = pc.replace_substring_regex(column.cast(pa.string()), r"(\.\d+)?Z?$", "")
        column = pc.strptime(text, format="%Y-%m-%dT%H:%M:%S", unit="ms", error_is_null=True)
    return pc.fill_null(column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64()), -1)
