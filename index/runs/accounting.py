"""Accounting: each listed crop is embedded or quarantined, and a quarantined crop has stage and cause."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.archive.reassigned import repeated_ids
from index.runs.folder import RunFolder
from index.runs.shards import ShardInfo, require_unique, shard_ids
from index.runs.tombstones import ErasedCrops
from index.schema import MAX_BYTES, QUARANTINE_SCHEMA, QUARANTINE_STAGES
from infra.errors import CountMismatch, DuplicateCropId, SchemaMismatch

Ids = NDArray[np.int64]
ERASED_CAUSE = "erased"
"""Cause in the quarantine of a crop that was erased."""

ERASED_URI = ""
"""URI of a row that stands for a crop whose bytes were purged: see `index.runs.purge`."""

_MAX_EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class QuarantinedCrop:
    """One crop without an embedding.

    `stage` is one of QUARANTINE_STAGES, `cause` a short word ('truncated'), `detail` a sentence.
    """

    crop_id: int
    uri: str
    stage: str
    cause: str
    detail: str = ""


def quarantine_table(crops: Iterable[QuarantinedCrop] = ()) -> pa.Table:
    """Return crops as a table of QUARANTINE_SCHEMA."""
    rows = [astuple(crop) for crop in crops]
    columns = list(zip(*rows, strict=True)) or [()] * len(QUARANTINE_SCHEMA)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, QUARANTINE_SCHEMA, strict=True)],
        schema=QUARANTINE_SCHEMA,
    )


def check_quarantine(table: pa.Table, where: str) -> None:
    """Raise SchemaMismatch for other columns, a null, or a stage that does not exist."""
    if not table.schema.equals(QUARANTINE_SCHEMA):
        raise SchemaMismatch(
            f"{where} does not have the columns of a quarantine: {', '.join(table.schema.names)}"
        )
    for name in table.schema.names:
        if table[name].null_count:
            raise SchemaMismatch(f"{where} has a null in column {name}")
    unknown_stages = set(pc.unique(table["stage"]).to_pylist()) - set(QUARANTINE_STAGES)
    if unknown_stages:
        raise SchemaMismatch(
            f"{where} names the stage '{min(unknown_stages)}', which is not one of {QUARANTINE_STAGES}"
        )


def count_causes(table: pa.Table) -> Counter[str]:
    """Count quarantined crops by 'stage/cause'."""
    groups = table.group_by(["stage", "cause"]).aggregate([([], "count_all")]).to_pylist()
    return Counter({f"{group['stage']}/{group['cause']}": group["count_all"] for group in groups})


def split_usable(manifest: pa.Table, erased: ErasedCrops) -> tuple[Any, pa.Table]:
    """Find rows (n) that no shard may hold: erased crops, and those with a string too long for Milvus.

    Returns a bool Array (n,), true where usable, and the other rows as a quarantine table.
    """
    is_usable = pa.repeat(True, manifest.num_rows)
    is_erased = pc.or_(pa.array(erased.is_erased(crop_ids(manifest))), pc.equal(manifest["uri"], ERASED_URI))
    refusals = [(is_erased, ERASED_CAUSE, "the crop was erased")]
    for name, limit in MAX_BYTES.items():
        if name not in manifest.schema.names:
            continue
        is_too_long = pc.greater(pc.binary_length(manifest[name]), limit)
        refusals.append(
            (is_too_long, f"{name.removesuffix('_id')}-too-long", f"{name} is longer than {limit} bytes")
        )
    tables: list[pa.Table] = []
    for is_refused, cause, detail in refusals:
        rows = manifest.filter(pc.and_(is_usable, is_refused))
        if rows.num_rows:
            for column, value in (("stage", "manifest"), ("cause", cause), ("detail", detail)):
                rows = rows.append_column(column, pa.repeat(value, rows.num_rows))
            tables.append(rows.select(QUARANTINE_SCHEMA.names))
            is_usable = pc.and_not(is_usable, is_refused)
    return is_usable, pa.concat_tables([quarantine_table(), *tables]).combine_chunks()


def verify_partition(where: str, *, listed: Ids, embedded: Ids, quarantined: Ids) -> None:
    """Check that each listed crop_id, (n,) each, is embedded or quarantined exactly once, and no other is.

    Raises DuplicateCropId and CountMismatch, with up to ten ids.
    """
    require_unique(embedded, where)
    require_unique(quarantined, f"{where} (quarantine)")
    both = np.intersect1d(embedded, quarantined, assume_unique=True)
    accounted = np.concatenate([embedded, quarantined])
    lost = np.setdiff1d(listed, accounted)
    unexpected = np.setdiff1d(accounted, listed)
    for ids, problem in (
        (lost, "lost"),
        (unexpected, "not in the manifest"),
        (both, "embedded and quarantined"),
    ):
        if ids.size:
            raise CountMismatch(
                f"{where}: {listed.size:,} crops, {embedded.size:,} embedded, "
                f"{quarantined.size:,} quarantined; "
                f"{ids.size:,} {problem}: {', '.join(map(str, ids[:_MAX_EXAMPLES]))}",
                remedy="Embed the archive again as a new run, and report this as a bug.",
            )


@dataclass(slots=True)
class ShardCounts:
    """Counts of crops in shards and in their quarantine, and of the quarantine by 'stage/cause'."""

    embedded: int = 0
    quarantined: int = 0
    causes: Counter[str] = field(default_factory=Counter)


def verify_shards(folder: RunFolder, shards: Iterable[tuple[ShardInfo, pa.Table]]) -> ShardCounts:
    """Check the crop_ids of a compacted run shard by shard, and count them.

    shards: each with its quarantine, in order; keys are those in the store. A shard has the crops of its
    parts, so what it should hold follows from the manifest, and memory is that of one shard. Raises
    DuplicateCropId and CountMismatch, with up to ten ids, and CorruptObject.
    """
    info, counts = folder.info, ShardCounts()
    last = 0
    for number, (shard, quarantine) in enumerate(shards):
        first = number * info.parts_per_shard
        last = min(first + info.parts_per_shard, info.parts)
        embedded = shard_ids(folder.store, shard, fingerprint=info.fingerprint, run_id=info.run_id)
        verify_partition(
            f"shard {number} of run {info.run_id}",
            listed=_ids_of_parts(folder, range(first, last)),
            embedded=embedded,
            quarantined=crop_ids(quarantine),
        )
        counts.embedded += len(embedded)
        counts.quarantined += quarantine.num_rows
        counts.causes += count_causes(quarantine)
    if last != info.parts:
        lost = _ids_of_parts(folder, range(last, last + 1))[:_MAX_EXAMPLES]
        rows = sum(map(info.rows_of_part, range(last, info.parts)))
        raise CountMismatch(
            f"run {info.run_id}: {info.rows:,} crops, and shards for {info.rows - rows:,} of them; "
            f"{rows:,} lost: {', '.join(map(str, lost))}",
            remedy="Restore the run from a copy, or embed the archive as a new run.",
        )
    _, surplus = repeated_ids(manifest_ids(folder))
    if surplus:
        raise DuplicateCropId(
            f"the manifest of run {info.run_id} holds {surplus:,} crop_ids more than once",
            remedy="Embed the archive again as a new run.",
        )
    return counts


def manifest_ids(folder: RunFolder) -> Iterator[Ids]:
    """Yield the crop_ids (n,) of a manifest, file by file, in its order. Raises CorruptObject."""
    for number in range(len(folder.manifest_keys())):
        with folder.open_manifest(number) as file:
            yield crop_ids(file.read(["crop_id"]))


def _ids_of_parts(folder: RunFolder, parts: range) -> Ids:
    ids = [np.empty(0, np.int64)]
    for number, groups in folder.manifest_slices(parts):
        with folder.open_manifest(number) as file:
            ids += [crop_ids(file.read_row_group(group, ["crop_id"])) for group in groups]
    return np.concatenate(ids)


def checked_sum(where: str, total: tuple[str, int], *terms: tuple[str, int]) -> str:
    """Return 'listed 3 = embedded 2 + quarantined 1', of names and numbers; every printed sum is made here.

    A term whose name begins with '-' is subtracted. A total without a name comes last: 'embedded 2 = 2'.
    Raises CountMismatch if the terms do not add up to the total.
    """
    amount = sum(-number if name.startswith("-") else number for name, number in terms)
    words = "".join(
        f" - {name[1:]} {number:,}" if name.startswith("-") else f" + {name} {number:,}"
        for name, number in terms
    ).removeprefix(" + ")
    name, number = total
    if amount != number:
        raise CountMismatch(
            f"{where}: {name or 'the total'} {number:,} is not {words}, which is {amount:,}",
            remedy="Embed the archive again as a new run, and report this as a bug.",
        )
    return f"{name} {number:,} = {words}" if name else f"{words} = {number:,}"


def crop_ids(table: Any) -> Ids:
    """Return the crop_ids (n,) of a table or batch."""
    ids: Ids = np.asarray(table["crop_id"])
    return ids


def sort_like(table: pa.Table, like: pa.Table) -> pa.Table:
    """Sort rows by the position of their crop_id in another table, which has each of them once."""
    positions = pc.index_in(like["crop_id"], value_set=table["crop_id"].combine_chunks()).drop_null()
    if np.array_equal(positions, np.arange(table.num_rows)):
        return table
    return table.take(positions)
