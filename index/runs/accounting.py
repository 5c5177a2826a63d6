"""Quarantine: the crops of a run that have no embedding, each with stage, cause and detail."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.runs.folder import RunFolder
from index.runs.shards import ShardInfo, read_shards, require_unique
from index.schema import MAX_BYTES, QUARANTINE_SCHEMA, QUARANTINE_STAGES
from infra.errors import CountMismatch, SchemaMismatch


@dataclass(frozen=True, slots=True)
class QuarantinedCrop:
    """One crop without an embedding.

    `stage` is one of QUARANTINE_STAGES, `cause` one short word ('truncated'), `detail` a sentence.
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
        [pa.array(column, kind.type) for column, kind in zip(columns, QUARANTINE_SCHEMA, strict=True)],
        schema=QUARANTINE_SCHEMA,
    )


def check_quarantine(table: pa.Table, where: str) -> None:
    """Raise SchemaMismatch for other columns, a null, or a stage that does not exist."""
    if not table.schema.equals(QUARANTINE_SCHEMA):
        raise SchemaMismatch(f"{where} has not the columns of a quarantine: {', '.join(table.schema.names)}")
    for name in table.schema.names:
        if table[name].null_count:
            raise SchemaMismatch(f"{where} has a null in column {name}")
    strange = set(pc.unique(table["stage"]).to_pylist()) - set(QUARANTINE_STAGES)
    if strange:
        raise SchemaMismatch(
            f"{where} names the stage '{min(strange)}', which is none of {QUARANTINE_STAGES}"
        )


def count_causes(table: pa.Table) -> Counter[str]:
    """Count quarantined crops by 'stage/cause'."""
    groups = table.group_by(["stage", "cause"]).aggregate([([], "count_all")]).to_pylist()
    return Counter({f"{group['stage']}/{group['cause']}": group["count_all"] for group in groups})


def split_usable(manifest: pa.Table) -> tuple[Any, pa.Table]:
    """Find rows (n) that no shard can hold, because a string is too long for the index.

    Returns a bool Array (n,), true where usable, and the others as a quarantine table.
    """
    usable = pa.repeat(True, manifest.num_rows)
    found: list[pa.Table] = []
    for name, limit in MAX_BYTES.items():
        longer = pc.and_(usable, pc.greater(pc.binary_length(manifest[name]), limit))
        rows = manifest.filter(longer)
        if rows.num_rows:
            words = {
                "stage": "manifest",
                "cause": f"{name.removesuffix('_id')}-too-long",
                "detail": f"{name} is longer than {limit} bytes",
            }
            for word, text in words.items():
                rows = rows.append_column(word, pa.repeat(text, rows.num_rows))
            found.append(rows.select(QUARANTINE_SCHEMA.names))
            usable = pc.and_not(usable, longer)
    return usable, pa.concat_tables([quarantine_table(), *found]).combine_chunks()


Ids = NDArray[np.int64]


def verify_partition(where: str, *, listed: Ids, embedded: Ids, quarantined: Ids) -> None:
    """Check crop_ids, (n,) each: each listed crop is embedded once or quarantined once, and nothing else is.

    Raises DuplicateCropId and CountMismatch, with up to ten ids.
    """
    require_unique(embedded, where)
    require_unique(quarantined, f"{where} (quarantine)")
    both = np.intersect1d(embedded, quarantined, assume_unique=True)
    found = np.concatenate([embedded, quarantined])
    lost = np.setdiff1d(listed, found)
    foreign = np.setdiff1d(found, listed)
    for ids, what in ((lost, "lost"), (foreign, "not in the manifest"), (both, "embedded and quarantined")):
        if ids.size:
            raise CountMismatch(
                f"{where}: {listed.size:,} crops, {embedded.size:,} embedded, "
                f"{quarantined.size:,} quarantined; "
                f"{ids.size:,} {what}: {', '.join(map(str, ids[:10]))}",
                remedy="Embed the archive again as a new run, and report how this one came about.",
            )


def verify_run(folder: RunFolder, shards: Iterable[ShardInfo]) -> Counter[str]:
    """Check that the crop_ids of a compacted run balance, and count its quarantine by 'stage/cause'.

    Raises DuplicateCropId and CountMismatch, with up to ten ids.
    """
    keys = [folder.key(shard.key) for shard in shards]
    embedded = [crop_ids(batch) for batch in read_shards(folder.store, keys, columns=["crop_id"])]
    listed = [crop_ids(folder.read(key, ["crop_id"])) for key in folder.manifest_keys()]
    quarantine = folder.read_tables(QUARANTINE_SCHEMA, map(folder.quarantine_key, range(folder.info.shards)))
    verify_partition(
        f"run {folder.info.run_id}",
        listed=np.concatenate([np.empty(0, np.int64), *listed]),
        embedded=np.concatenate([np.empty(0, np.int64), *embedded]),
        quarantined=crop_ids(quarantine),
    )
    return count_causes(quarantine)


def crop_ids(table: Any) -> Ids:
    """Return the crop_ids (n,) of a table or batch."""
    ids: Ids = np.asarray(table["crop_id"])
    return ids


def sort_like(table: pa.Table, like: pa.Table) -> pa.Table:
    """Sort a table's rows by the place of their crop_id in another table, which has each of them once."""
    places = pc.index_in(like["crop_id"], value_set=table["crop_id"].combine_chunks()).drop_null()
    return table.take(places)
