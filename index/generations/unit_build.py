"""Make the rows of a generation of tracks: one row a track, in bounded memory.

The rows of the shards go to files on local disk, by the hash of camera and track, so that all crops of a
track are in one file. Each file becomes rows of shards.

The vector of a row is the mean of its crops' features. If all of these have length 1, as those of a network
that normalises have, the mean is brought to length 1 again: the rule of a probe of several images. The mean
is of the network's features, and a transform is applied to it as to the feature of a crop: so these are
ordinary shards, and serve every transform. All other columns are those of the crop nearest to the mean.
"""

import hashlib
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.archive.spool import TableFile
from index.generations.load_plan import LoadPlan
from index.generations.units import FOLDER, MEMBERS_SCHEMA, Units, plan_units, units_key, write_members
from index.parquet import lists_of
from index.runs.shards import ShardInfo, check_bytes, vectors_of, write_shard
from index.schema import SHARD_SCHEMAS, UNKNOWN_TIME
from index.transforms.tracks import track_hashes
from index.transforms.transform import UNIT_TOLERANCE, normalized
from infra.store import Store

BUCKET_ROWS = 32_768
"""Crops of a file on local disk, which is read into memory as a whole: 134 MB of features."""
MAX_BUCKETS = 1024
SHARD_ROWS = 122_880
_BATCH_ROWS = 8192
_CHUNK_ROWS = 4096
_SORTED_BITS = 20  # of members, so many rows are sorted at once
_ID_BITS = 63
_DIGITS = 6

Ids = NDArray[np.int64]


def build_units(store: Store, plan: LoadPlan, check: Callable[[], None] = lambda: None) -> LoadPlan:
    """Return the plan of the tracks of a plan of crops, whose rows are written first unless they exist.

    The caller holds the lock on rows; check: called from time to time, raises if it is lost. Local disk:
    4.2 KB a crop. Memory: BUCKET_ROWS crops, above 33 million crops a 1024th of all, and those of the longest
    track. Raises DiskFull, StoreError, CorruptObject.
    """
    units_id = units_id_of(plan)
    if store.head(units_key(units_id)) is None:
        _write_units(store, plan, units_id, check)
    tracks = plan_units(store, units_id, plan.transform)
    for shard in tracks.shards:
        check_bytes(store, shard.info)
        check()
    return tracks


def units_id_of(plan: LoadPlan) -> str:
    """Return the name of the folder of a plan of crops: it follows from their rows."""
    digest = hashlib.sha256(f"mean 1 {plan.fingerprint}".encode())
    for shard in plan.shards:
        digest.update(f" {shard.run_id} {shard.info.sha256} ".encode())
        digest.update(shard.excluded_ids.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _write_units(store: Store, plan: LoadPlan, units_id: str, check: Callable[[], None]) -> None:
    members = _MembersSpool(plan.rows)
    stream = _unit_rows(plan, members, check)
    shards: list[ShardInfo] = []
    for first in stream:
        key = f"{FOLDER}/{units_id}/shard-{len(shards):05d}-{{digest}}.parquet"
        rows = chain([first], _up_to(stream, SHARD_ROWS - first.num_rows))
        shards.append(write_shard(store, key, rows, fingerprint=plan.fingerprint, run_id=units_id))
    units = Units(
        units_id=units_id,
        fingerprint=plan.fingerprint,
        schema_version=plan.schema_version,
        run_ids=plan.run_ids,
        crops=plan.rows,
        shards=tuple(shards),
        members=write_members(store, units_id, members.sorted()),
    )
    store.put(units_key(units_id), units.to_json())


def _up_to(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches until so many rows are reached."""
    while rows > 0 and (batch := next(batches, None)) is not None:
        rows -= batch.num_rows
        yield batch


def _unit_rows(
    plan: LoadPlan, members: "_MembersSpool", check: Callable[[], None]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all tracks, and add their crops to the members."""
    schema = SHARD_SCHEMAS[plan.schema_version]
    buckets = [TableFile(schema) for _ in range(min(MAX_BUCKETS, -(-plan.rows // BUCKET_ROWS)))]
    for shard in plan.shards:
        for batch in shard.batches(_BATCH_ROWS):
            table = pa.Table.from_batches([batch]).cast(schema)
            hashes = track_hashes(table["camera_id"].to_pylist(), table["track_id"].to_pylist())
            crop_ids = np.asarray(table["crop_id"]).astype(np.uint64)
            numbers = np.where(hashes == 0, crop_ids, hashes) % np.uint64(len(buckets))
            for number in np.unique(numbers).tolist():
                buckets[number].append(table.filter(pa.array(numbers == number)))
            check()
    while buckets:
        crops = buckets.pop(0).read().combine_chunks()
        if crops.num_rows:
            rows, of_crops = rows_of_tracks(crops)
            members.append(of_crops)
            check()
            yield from rows.combine_chunks().to_batches(_BATCH_ROWS)


def rows_of_tracks(crops: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return one row for each track of crops (n), and the members (n), by the tracks.

    The crop that stands for a track is the nearest to the mean, of equally near ones that with the lowest
    crop_id; distances that differ by less than a millionth are equal.
    """
    groups = _groups(crops)
    crop_ids = np.asarray(crops["crop_id"])
    order = np.lexsort((crop_ids, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(order)))
    features = vectors_of(crops)
    vectors = np.empty((len(starts), features.shape[1]), np.float32)
    chosen = order[starts]
    vectors[sizes == 1] = features[chosen[sizes == 1]]
    for tracks in _chunks(np.flatnonzero(sizes > 1), sizes):
        counts = sizes[tracks]
        rows = np.concatenate([order[starts[track] : starts[track] + sizes[track]] for track in tracks])
        firsts = np.cumsum(counts) - counts
        values = features[rows].astype(np.float64)
        means = np.add.reduceat(values, firsts, axis=0) / counts[:, None]
        off = np.abs(np.linalg.norm(values, axis=1) - 1) > UNIT_TOLERANCE
        is_unit = ~np.logical_or.reduceat(off, firsts)
        means[is_unit] = normalized(means[is_unit])
        of_track = np.repeat(np.arange(len(tracks)), counts)
        distances = np.round(np.linalg.norm(values - means[of_track], axis=1), _DIGITS)
        nearest = np.lexsort((crop_ids[rows], distances, of_track))[firsts]
        vectors[tracks], chosen[tracks] = means, rows[nearest]
    return _with_vectors(crops, chosen, vectors), _members(crops, order, starts, sizes, chosen)


def _groups(crops: pa.Table) -> Ids:
    """Number the tracks of crops (n) in the order of their first crops; a crop without one is alone."""
    numbers: dict[object, int] = {}
    keys = zip(crops["camera_id"].to_pylist(), crops["track_id"].to_pylist(), strict=True)
    named = (key if key[1] else row for row, key in enumerate(keys))
    return np.fromiter((numbers.setdefault(key, len(numbers)) for key in named), np.int64, crops.num_rows)


def _chunks(tracks: Ids, sizes: Ids) -> Iterator[Ids]:
    """Cut tracks (m) into runs of about so many crops as are compared at once."""
    total = np.cumsum(sizes[tracks])
    yield from filter(len, np.split(tracks, np.flatnonzero(np.diff(total // _CHUNK_ROWS)) + 1))


def _with_vectors(crops: pa.Table, chosen: Ids, vectors: NDArray[np.float32]) -> pa.Table:
    position = crops.schema.get_field_index("embedding")
    scalars = crops.remove_column(position).take(pa.array(chosen))
    return scalars.add_column(position, crops.schema.field(position), lists_of(vectors))


def _members(crops: pa.Table, order: Ids, starts: Ids, sizes: Ids, chosen: Ids) -> pa.Table:
    crop_ids, times = (np.asarray(crops[name]) for name in ("crop_id", "captured_at"))
    known = times[order]
    last = np.maximum.reduceat(known, starts)
    first = np.minimum.reduceat(np.where(known == UNKNOWN_TIME, np.iinfo(np.int64).max, known), starts)
    columns = {
        "row_id": np.repeat(crop_ids[chosen], sizes),
        "crops": np.repeat(sizes, sizes).astype(np.int32),
        "captured_from": np.repeat(np.where(last == UNKNOWN_TIME, UNKNOWN_TIME, first), sizes),
        "captured_to": np.repeat(last, sizes),
    }
    taken = crops.select(["crop_id", "camera_id", "captured_at"]).take(pa.array(order))
    arrays = [pa.array(columns[name]) if name in columns else taken[name] for name in MEMBERS_SCHEMA.names]
    return pa.table(arrays, schema=MEMBERS_SCHEMA)


class _MembersSpool:
    """Members on local disk, read back by crop_id: the ids are hashes, so ranges are equally full."""

    def __init__(self, rows: int) -> None:
        self._bits = max(0, (rows - 1).bit_length() - _SORTED_BITS)
        self._files = [TableFile(MEMBERS_SCHEMA) for _ in range(1 << self._bits)]

    def append(self, members: pa.Table) -> None:
        numbers = np.asarray(members["crop_id"]) >> (_ID_BITS - self._bits)
        for number in np.unique(numbers).tolist():
            self._files[number].append(members.filter(pa.array(numbers == number)))

    def sorted(self) -> Iterator[pa.Table]:
        """Yield all members by crop_id, one file at a time."""
        for file in self._files:
            yield file.read().sort_by("crop_id")
