"""Compare an archive with an earlier run: new, changed and vanished crops."""

from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.archive.listing import day_of
from index.schema import MANIFEST_SCHEMA


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed since a run.

    `to_embed`: manifest rows that are new or changed. `vanished`: string Array of URIs that are gone.
    """

    to_embed: pa.Table
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


def diff_manifests(listed: pa.Table, before: pa.Table, *, listed_mask: Any = None) -> Changes:
    """Compare a manifest with the crops of earlier runs; a crop with another etag is changed.

    before: columns `uri` and `etag`. listed_mask: bool Array over `before`, true for the rows that the
    listing covers; without it the listing covers all of them. A row without an etag, on either side, counts
    as unchanged.
    """
    uris, etags = listed["uri"].combine_chunks(), listed["etag"].combine_chunks()
    uris_before = before["uri"].combine_chunks()
    positions = pc.index_in(uris, value_set=uris_before)
    is_known = positions.is_valid()
    etags_before = before["etag"].combine_chunks().take(positions)
    have_etags = pc.and_(pc.not_equal(etags_before, ""), pc.not_equal(etags, ""))
    is_changed = pc.fill_null(pc.and_(have_etags, pc.not_equal(etags_before, etags)), False)
    still_listed = pc.is_in(uris_before, value_set=uris)
    is_gone = pc.invert(still_listed) if listed_mask is None else pc.and_not(listed_mask, still_listed)
    num_changed = pc.sum(is_changed, min_count=0).as_py()
    num_known = pc.sum(is_known, min_count=0).as_py()
    return Changes(
        to_embed=listed.filter(pc.or_(pc.invert(is_known), is_changed)).select(MANIFEST_SCHEMA.names),
        new=listed.num_rows - num_known,
        changed=num_changed,
        unchanged=num_known - num_changed,
        vanished=uris_before.filter(is_gone),
    )


def days_of(uris: Any, archive: str) -> dict[str, date]:
    """Return the day of each folder dt=… that occurs in URIs of an archive, by the folder's name."""
    folders = pc.unique(_first_folder(uris, archive)).to_pylist()
    days = {folder: day_of(f"{folder}/") for folder in folders if folder is not None}
    return {folder: day for folder, day in days.items() if day is not None}


def in_lookback(uris: Any, archive: str, since: date) -> Any:
    """Return a bool Array: which URIs are in a folder dt=… of `since` or a later day."""
    folders = sorted(folder for folder, day in days_of(uris, archive).items() if day >= since)
    return pc.is_in(_first_folder(uris, archive), value_set=pa.array(folders, pa.string()))


def _first_folder(uris: Any, archive: str) -> Any:
    keys = pc.utf8_slice_codeunits(uris.combine_chunks(), len(archive.rstrip("/")) + 1)
    return pc.struct_field(pc.extract_regex(keys, r"\A(?P<folder>dt=[^/]*)/"), "folder")
