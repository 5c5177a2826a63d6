"""An audit looks for erased crops again, by another reading: with pyarrow alone, in every object."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.generations import records
from index.generations.receipt import Place
from index.generations.traces import erased_tokens, rows_of_erased
from index.generations.units import FOLDER, kept_rows, list_units, read_units
from index.milvus import collection
from index.milvus.client import Milvus
from index.runs.tombstones import ErasedCrops
from infra.errors import ClvrError
from infra.store import Store
from infra.store.interrupted import interrupted_writes

DELETED_ROWS = "deleted rows; `clvr forget --purge --yes` removes them"

_MAX_TEXT_BYTES = 64 << 20


def audit_folder(store: Store, erased: ErasedCrops) -> Iterator[Place]:
    """Look into every object of a folder of runs; yield those that hold erased crops, and one sum.

    Tombstones are keyed hashes and are not looked into. Linear in the bytes of the folder.
    """
    objects = 0
    for info in store.list():
        if info.key.startswith("erasures/") and info.key.endswith(("hashes.parquet", "key.json")):
            continue
        objects += 1
        try:
            found, note = count_in_object(store.get(info.key), erased)
        except ClvrError as error:
            found, note = 0, f"not looked at: {error.message}"
        if found or note:
            yield Place(info.key.partition("/")[0], store.uri_of(info.key), found, 0, note)
    for units_id in list_units(store):
        if found := _shares(store, units_id, erased):
            yield Place("tracks", store.uri_of(f"{FOLDER}/{units_id}"), found, 0, "means with an erased crop")
    for name in interrupted_writes(store):
        yield Place("folder", store.uri_of(name), 1, 0, "an interrupted write, which may hold any crop")
    yield Place("folder", store.uri, 0, 0, f"{objects:,} objects looked at")


def audit_index(milvus: Milvus, erased: ErasedCrops, stores: Sequence[Store] = ()) -> Iterator[Place]:
    """Look for erased crops among all primary keys of all generations, and in the files of Milvus Lite.

    stores: the folders of runs, whose records tell which generations are of tracks. Of such a row every crop
    must be known and not erased.
    """
    for generation in collection.list_generations(milvus):
        collection.ensure_loaded(milvus, generation)
        crop_ids = collection.fetch_ids(milvus, generation.name)
        is_found = erased.is_erased(crop_ids)
        for store in stores:
            record = records.read(store, generation.name)
            if record is not None and record.units:
                is_found |= ~np.isin(crop_ids, kept_rows(store, record.units, erased))
        note = f"{len(crop_ids):,} primary keys looked at"
        yield Place("generation", generation.name, int(is_found.sum()), 0, note)
    if milvus.capabilities.lite and (folder := Path(milvus.uri)).is_dir():
        files = [path for path in folder.rglob("*.parquet") if path.is_file()]
        for path in files:
            found, note = count_in_object(path.read_bytes(), erased)
            if found or note:
                yield Place("index file", str(path), found, 0, note or DELETED_ROWS)
        yield Place("index files", str(folder), 0, 0, f"{len(files):,} files looked at")


def _shares(store: Store, units_id: str, erased: ErasedCrops) -> int:
    """Count the stored rows of tracks in which an erased crop has a share, and which it does not name."""
    kept, found = kept_rows(store, units_id, erased), 0
    for info in read_units(store, units_id).shards:
        with pq.ParquetFile(io.BytesIO(store.get(info.key))) as file:
            crop_ids = np.asarray(file.read(["crop_id"])["crop_id"])
            found += int((~np.isin(crop_ids, kept) & ~erased.is_erased(crop_ids)).sum())
    return found


def count_in_object(data: bytes, erased: ErasedCrops) -> tuple[int, str]:
    """Count the rows of a Parquet file, or the names and numbers in any other one, of erased crops.

    Returns the count, and what was not looked at and why, '' if nothing.
    """
    if data[:4] == b"PAR1":
        try:
            return _count_rows(data, erased), ""
        except (pa.ArrowException, OSError, ValueError) as failure:
            return 0, f"not looked at: {str(failure).splitlines()[0]}"
    note = f"looked at the first {_MAX_TEXT_BYTES:,} bytes only" if len(data) > _MAX_TEXT_BYTES else ""
    return len(erased_tokens(data[:_MAX_TEXT_BYTES].decode(errors="replace"), erased)), note


def _count_rows(data: bytes, erased: ErasedCrops) -> int:
    found = 0
    with pq.ParquetFile(io.BytesIO(data)) as file:
        names = [name for name in ("crop_id", "uri") if name in file.schema_arrow.names]
        if names:
            for batch in file.iter_batches(65_536, columns=names):
                mask = rows_of_erased(pa.Table.from_batches([batch]), erased)
                found += int(pc.sum(mask, min_count=0).as_py())
    return found
