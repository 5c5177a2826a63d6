"""What changed in an archive since a run: new, changed and vanished crops."""

from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.archive.listing import day_of
from index.schema import MANIFEST_SCHEMA

EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Changes:
    """`fresh` (manifest rows) is what is new or changed; `vanished` are the URIs that are gone."""

    fresh: pa.Table
    new: int
    changed: int
    unchanged: int
    vanished: Any
    """string Array"""

    def counts(self) -> dict[str, int]:
        """The figures, as they stand in run.json."""
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


def diff_manifests(listed: pa.Table, before: pa.Table, *, shown: Any = None) -> Changes:
    """Compare a manifest with what was committed: a crop is changed if its etag is another.

    shown: bool Array over `before`, the rows that the listing would have shown if they were still there;
    without it all of them. A row without an etag, on either side, counts as unchanged.
    """
    places = pc.index_in(listed["uri"], value_set=before["uri"].combine_chunks())
    known = places.is_valid()
    etags = before["etag"].combine_chunks().take(places.combine_chunks())
    both = pc.and_(pc.not_equal(etags, ""), pc.not_equal(listed["etag"].combine_chunks(), ""))
    changed = pc.fill_null(pc.and_(both, pc.not_equal(etags, listed["etag"].combine_chunks())), False)
    fresh = listed.filter(pc.or_(pc.invert(known.combine_chunks()), changed)).select(MANIFEST_SCHEMA.names)
    there = pc.is_in(before["uri"].combine_chunks(), value_set=listed["uri"].combine_chunks())
    gone = pc.invert(there) if shown is None else pc.and_not(shown, there)
    count_changed = pc.sum(changed, min_count=0).as_py()
    count_known = pc.sum(known, min_count=0).as_py()
    return Changes(
        fresh,
        new=listed.num_rows - count_known,
        changed=count_changed,
        unchanged=count_known - count_changed,
        vanished=before["uri"].combine_chunks().filter(gone),
    )


def days_of(uris: Any, archive: str) -> dict[str, date]:
    """Return the folders dt=… that occur in URIs of an archive, as they are written, with their days."""
    texts = pc.unique(_first_folder(uris, archive)).to_pylist()
    days = {text: day_of(f"{text}/") for text in texts if text is not None}
    return {text: day for text, day in days.items() if day is not None}


def in_lookback(uris: Any, archive: str, since: date) -> Any:
    """Return a bool Array: which URIs lie in a folder dt=… of a day or later."""
    wanted = sorted(text for text, day in days_of(uris, archive).items() if day >= since)
    return pc.is_in(_first_folder(uris, archive), value_set=pa.array(wanted, pa.string()))


def _first_folder(uris: Any, archive: str) -> Any:
    keys = pc.utf8_slice_codeunits(uris.combine_chunks(), len(archive.rstrip("/")) + 1)
    return pc.struct_field(pc.extract_regex(keys, r"\A(?P<folder>dt=[^/]*)/"), "folder")
