"""Compare what an archive lists with what is known of it: new, changed and vanished crops of a partition."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.schema import MANIFEST_SCHEMA


@dataclass(frozen=True, slots=True)
class PartitionChanges:
    """What changed in a partition.

    `to_embed`: manifest rows that are new or changed. `is_new`: bool (rows of to_embed,). `vanished`: string
    Array of URIs that are gone.
    """

    to_embed: pa.Table
    is_new: NDArray[np.bool_]
    changed: int
    unchanged: int
    vanished: Any


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed in an archive since a run. `vanished`: string Array of URIs that are gone."""

    new: int
    changed: int
    unchanged: int
    vanished: Any

    def counts(self) -> dict[str, int]:
        """Return the counts as run.json records them."""
        return {
            "new": self.new,
            "changed": self.changed,
            "unchanged": self.unchanged,
            "vanished": len(self.vanished),
        }

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.new:,} new, {self.changed:,} changed, {self.unchanged:,} unchanged, "
            f"{len(self.vanished):,} vanished"
        )


def diff_partition(listed: pa.Table, known: pa.Table) -> PartitionChanges:
    """Compare the listed crops of a partition with the known ones; a crop with another etag is changed.

    known: columns `uri` and `etag`, each URI once. A row without an etag, on either side, counts as
    unchanged.
    """
    uris, etags = listed["uri"].combine_chunks(), listed["etag"].combine_chunks()
    known_uris = known["uri"].combine_chunks()
    positions = pc.index_in(uris, value_set=known_uris)
    is_known = positions.is_valid()
    known_etags = known["etag"].combine_chunks().take(positions)
    have_etags = pc.and_(pc.not_equal(known_etags, ""), pc.not_equal(etags, ""))
    is_changed = pc.fill_null(pc.and_(have_etags, pc.not_equal(known_etags, etags)), False)
    num_changed = pc.sum(is_changed, min_count=0).as_py()
    num_known = pc.sum(is_known, min_count=0).as_py()
    is_embedded = pc.or_(pc.invert(is_known), is_changed)
    return PartitionChanges(
        to_embed=listed.filter(is_embedded).select(MANIFEST_SCHEMA.names),
        is_new=np.asarray(pc.invert(is_known).filter(is_embedded)),
        changed=num_changed,
        unchanged=num_known - num_changed,
        vanished=known_uris.filter(pc.invert(pc.is_in(known_uris, value_set=uris))),
    )
