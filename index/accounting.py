"""The proof that no crop is lost and none appears from nowhere: listed = embedded + quarantined."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.quarantine import count_causes
from index.run_folder import RunFolder
from index.schemas import QUARANTINE_SCHEMA
from index.shard_checks import require_unique
from index.shards import ShardFacts, read_shards
from infra.errors import CountMismatch

Ids = NDArray[np.int64]


def require_balance(where: str, *, listed: Ids, embedded: Ids, quarantined: Ids) -> None:
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


def prove(folder: RunFolder, shards: Iterable[ShardFacts]) -> Counter[str]:
    """Check that the crop_ids of a compacted run balance, and count its quarantine by 'stage/cause'.

    Raises DuplicateCropId and CountMismatch, with up to ten ids.
    """
    keys = [folder.key(shard.key) for shard in shards]
    embedded = [ids_of(batch) for batch in read_shards(folder.store, keys, columns=["crop_id"])]
    listed = [ids_of(folder.read(key, ["crop_id"])) for key in folder.manifest_keys()]
    quarantine = folder.read_tables(QUARANTINE_SCHEMA, map(folder.quarantine_key, range(folder.info.shards)))
    require_balance(
        f"run {folder.info.run_id}",
        listed=np.concatenate([np.empty(0, np.int64), *listed]),
        embedded=np.concatenate([np.empty(0, np.int64), *embedded]),
        quarantined=ids_of(quarantine),
    )
    return count_causes(quarantine)


def ids_of(table: Any) -> Ids:
    """Return the crop_ids (n,) of a table or batch."""
    ids: Ids = np.asarray(table["crop_id"])
    return ids


def in_order(table: pa.Table, like: pa.Table) -> pa.Table:
    """Sort a table's rows by the place of their crop_id in another table, which has each of them once."""
    places = pc.index_in(like["crop_id"], value_set=table["crop_id"].combine_chunks()).drop_null()
    return table.take(places)
