"""S3 Inventory: a listing that S3 writes daily or weekly, as Parquet, ORC or CSV with a manifest.json.

Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.orc

from index.archive.key_choice import VISIBLE_KEYS, KeyChoice
from index.archive.key_pattern import KeyPattern
from index.archive.listing import IMAGE_SUFFIXES, ContainerCounts, Listing, list_members
from index.archive.manifest import BATCH_ROWS, crop_ids_of, manifest_batch
from index.archive.members import container_suffix
from index.archive.skipped import SkippedObjects
from index.archive.spool import Spool
from index.schema import MANIFEST_SCHEMA, UNKNOWN_TIME
from infra.errors import BadInput, EmptyArchive
from infra.store import UNADDRESSABLE, Store, StoreSettings, is_usable_key, open_store, split_uri
from infra.store.cells import Kind, Place, convert
from infra.store.parquet_tables import OVER_BUDGET, decoded_parquet
from infra.store.tables import decompress_gzip

_COLUMNS = {
    "key": "key",
    "size": "size",
    "lastmodifieddate": "last_modified",
    "etag": "etag",
    "islatest": "latest",
    "isdeletemarker": "deleted",
}
_KINDS: dict[str, Kind] = {
    "key": "text",
    "size": "integer",
    "last_modified": "time",
    "etag": "text",
    "latest": "text",
    "deleted": "text",
}
_PARQUET_NAMES = ("key", "size", "last_modified_date", "e_tag", "is_latest", "is_delete_marker")
_MIN_BUDGET = 1 << 30
_MAX_RATIO = 100
_REMEDY = "Give the manifest.json of an S3 Inventory in CSV, Parquet or ORC."


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
    choice: KeyChoice = VISIBLE_KEYS,
) -> Listing:
    """Read an S3 Inventory of the archive's bucket into manifest rows of the images below the archive's root.

    Older versions, delete markers and keys that are not in `choice` are left out; containers of crops
    are opened. The data files are read from the inventory's destination bucket, one at a time, and their MD5
    is checked against the manifest.
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
    skipped, crops = SkippedObjects(), Spool(archive.uri, MANIFEST_SCHEMA)
    container_keys: list[str] = []
    num_not_images = unmatched = 0
    for objects in _pages(inventory, skipped):
        objects = objects.filter(pc.starts_with(objects["key"], prefix))
        images = objects.filter(_is_image(objects["key"]))
        num_not_images += objects.num_rows - images.num_rows
        container_keys += [key for key in objects["key"].to_pylist() if container_suffix(key)]
        images = _chosen(images, len(prefix), choice, skipped)
        for batch in images.combine_chunks().to_batches():
            rows, missed = _manifest_rows(batch, archive, len(prefix), pattern)
            crops.add(pa.Table.from_batches([rows]))
            unmatched += missed
    counts = ContainerCounts()
    for key in container_keys:
        container = None if choice.why_not_inside(key[len(prefix) :]) else archive.head(key[len(prefix) :])
        if container is not None:
            found = list_members(archive, container, pattern, choice, skipped, crops)
            num_not_images += found.num_not_images - 1
            unmatched += found.unmatched
            counts += found.containers
    if not crops.num_rows:
        raise EmptyArchive(
            "; ".join([f"{uri} lists no images below {archive.uri}", *skipped.notes()]),
            remedy="Check the prefix.",
        )
    return Listing(crops, num_not_images, unmatched, skipped, counts)


def _pages(inventory: _Inventory, skipped: SkippedObjects) -> Iterator[pa.Table]:
    """Yield the present objects of an inventory, some at a time: the keys become Python objects."""
    for file in inventory.files:
        table = _read_data_file(inventory, file)
        for first in range(0, table.num_rows, BATCH_ROWS):
            page = table.slice(first, BATCH_ROWS)
            if inventory.file_format == "CSV":
                page = _with_decoded_keys(page, skipped)
            yield _latest_versions(page)


def _chosen(images: pa.Table, prefix_chars: int, choice: KeyChoice, skipped: SkippedObjects) -> pa.Table:
    mask = []
    for key in images["key"].to_pylist():
        relative = key[prefix_chars:]
        cause = choice.why_not(relative) if is_usable_key(relative) else UNADDRESSABLE
        if cause:
            skipped.add(cause, key)
        mask.append(not cause)
    return images.filter(pa.array(mask, pa.bool_()))


def _open_inventory(uri: str, settings: StoreSettings | None) -> _Inventory:
    root, name = split_uri(uri)
    data = open_store(root, settings).get(name)
    try:
        document = json.loads(data)
        file_format = document["fileFormat"].upper()
        schema = str(document.get("fileSchema", ""))
        columns = tuple(_column_key(name) for name in schema.split(",")) if file_format == "CSV" else ()
        destination = document["destinationBucket"].rpartition(":")[2]
        files = tuple({"key": str(file["key"]), "md5": file.get("MD5checksum")} for file in document["files"])
        source = str(document["sourceBucket"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{uri} is not the manifest of an S3 Inventory: {error!r}", remedy=_REMEDY) from error
    if file_format not in ("CSV", "PARQUET", "ORC"):
        raise BadInput(f"{uri} is an inventory in the format {file_format[:40]}", remedy=_REMEDY)
    if file_format == "CSV" and (columns.count("key") != 1 or len(set(columns)) < len(columns)):
        raise BadInput(f"{uri} has the fileSchema {schema[:200]!r}, with other than one Key", remedy=_REMEDY)
    return _Inventory(
        bucket=source,
        store=open_store(f"s3://{destination}", settings),
        file_format=file_format,
        columns=columns,
        files=files,
    )


def _read_data_file(inventory: _Inventory, file: dict[str, Any]) -> pa.Table:
    """Read one data file into the columns of _KINDS that it has."""
    where = inventory.store.uri_of(file["key"])
    data = inventory.store.get(file["key"])
    if file["md5"] and hashlib.md5(data, usedforsecurity=False).hexdigest() != str(file["md5"]).lower():
        raise BadInput(f"{where} does not have the MD5 that its manifest states", remedy="Copy it again.")
    if not data:
        return pa.table({name: pa.array([], pa.string()) for name in ("key",)})
    try:
        if inventory.file_format == "PARQUET":
            batches = _parquet_batches(where, data)
        elif inventory.file_format == "ORC":
            batches = pyarrow.orc.ORCFile(io.BytesIO(data)).read().to_batches()
        else:
            batches = _csv_batches(where, data, inventory.columns)
        tables = list(_converted(where, batches))
    except (pa.ArrowException, KeyError, OSError, EOFError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise BadInput(f"{where} is not a usable inventory file: {reason}", remedy=_REMEDY) from error
    if not tables:
        return pa.table({"key": pa.array([], pa.string())})
    table = pa.concat_tables(tables)
    if "key" not in table.column_names:
        raise BadInput(f"{where} has no column key", remedy=_REMEDY)
    return table.filter(table["key"].is_valid())


def _parquet_batches(where: str, data: bytes) -> list[pa.RecordBatch]:
    budget = max(_MIN_BUDGET, _MAX_RATIO * len(data))
    with decoded_parquet(data, _PARQUET_NAMES, budget) as parquet:
        if parquet.stopped or parquet.nested:
            reason = parquet.stopped or f"{next(iter(parquet.nested))} is nested"
            reason = "it decodes to far more than it has bytes" if reason == OVER_BUDGET else reason
            raise BadInput(f"{where} is not a usable inventory file: {reason}", remedy=_REMEDY)
        if "key" not in parquet.names:
            raise BadInput(f"{where} has no column key", remedy=_REMEDY)
        return list(parquet.batches())


def _csv_batches(where: str, data: bytes, columns: tuple[str, ...]) -> list[pa.RecordBatch]:
    if data[:2] == b"\x1f\x8b":
        data = decompress_gzip(where, data)
    if not data.strip():
        return []
    table = pyarrow.csv.read_csv(
        io.BytesIO(data),
        read_options=pyarrow.csv.ReadOptions(column_names=columns),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
    )
    return table.to_batches()  # type: ignore[no-any-return]


def _converted(where: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    first_row = 1
    for batch in batches:
        columns = {}
        for position, in_file in enumerate(batch.schema.names):
            name = _COLUMNS.get(_column_key(in_file))
            if name is not None:
                place = Place(where, in_file, first_row, BadInput)
                columns[name] = convert(batch.column(position), _KINDS[name], place)
        yield pa.table(columns)
        first_row += batch.num_rows


def _with_decoded_keys(table: pa.Table, skipped: SkippedObjects) -> pa.Table:
    """Decode keys as S3 encodes them in CSV: as in a form, with '+' for a space."""
    keys: list[str | None] = []
    for key in table["key"].to_pylist():
        try:
            keys.append(unquote_to_bytes(key.replace("+", " ")).decode() if "%" in key or "+" in key else key)
        except UnicodeDecodeError:
            skipped.add(UNADDRESSABLE, key)
            keys.append(None)
    decoded = pa.array(keys, pa.string())
    table = table.set_column(table.schema.get_field_index("key"), "key", decoded)
    return table.filter(table["key"].is_valid())


def _column_key(name: str) -> str:
    """Return the same name for 'LastModifiedDate' (CSV) and 'last_modified_date' (Parquet)."""
    return name.strip().replace("_", "").lower()


def _latest_versions(table: pa.Table) -> pa.Table:
    for name, expected in (("latest", "true"), ("deleted", "false")):
        if name in table.schema.names:
            values = pc.utf8_lower(table[name])
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
    keys = pc.utf8_slice_codeunits(batch["key"], prefix_chars)
    uris = pc.binary_join_element_wise(archive.uri, keys, "/")
    columns: dict[str, Any] = {
        "crop_id": pa.array(crop_ids_of(uris.to_pylist())),
        "uri": uris,
    }
    if "etag" in names:
        columns["etag"] = pc.replace_substring(pc.fill_null(batch["etag"], ""), '"', "")
    if "size" in names:
        columns["size"] = pc.fill_null(batch["size"], -1)
    if "last_modified" in names:
        columns["last_modified"] = pc.fill_null(batch["last_modified"], UNKNOWN_TIME)
    return manifest_batch(columns, keys, pattern)
