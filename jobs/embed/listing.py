"""List an archive: in this process, or a large one by Ray tasks, whose work survives the planner."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from types import TracebackType
from typing import Self

from index.archive.key_choice import KeyChoice
from index.archive.key_pattern import KeyPattern
from index.archive.listing import Listing, TooManyCrops, list_sections
from index.archive.sections import FolderNotFlat, Section, sections_of
from index.archive.stored_listing import StoredListing
from index.catalogue.comparison import Mapper
from index.documents import package_version
from infra.errors import ClvrError, StoreError, WorkerLost
from infra.logging import logger
from infra.store import Store

MAX_LOCAL_CROPS = 1 << 18
"""Up to so many crops are listed and compared by the planner itself: tasks would take longer to start."""

SECTIONS = 64
"""So many sections or more, where the folders of the archive allow that."""

_SECTIONS_PER_TASK = 16
_MEMBER_THREADS = 4


class PlanningTasks:
    """The tasks of one planner, and the stored listing that they make: what a kill leaves goes on later.

    A context: at its end the listing is deleted, unless something failed that a repeat may not meet.
    each: `map` over processes.
    """

    def __init__(self, each: Mapper) -> None:
        self.each = each
        self.listing: StoredListing | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        is_final = isinstance(error, ClvrError) and not isinstance(error, (StoreError, WorkerLost))
        if self.listing is not None and (error is None or is_final):
            self.listing.delete()


@dataclass(frozen=True, slots=True)
class ListingRequest:
    """What decides a listing. pattern_text: pattern and plausible times, in words."""

    pattern: KeyPattern | None
    pattern_text: str
    choice: KeyChoice
    since: date | None

    def to_text(self) -> str:
        """Return it as text: equal requests have equal texts."""
        choice = [*self.choice.include, None, *self.choice.exclude]
        return json.dumps([self.pattern_text, choice, str(self.since), package_version()])


def list_archive(
    archive: Store, runs: Store, request: ListingRequest, tasks: PlanningTasks | None
) -> Listing:
    """List an archive; beyond MAX_LOCAL_CROPS by tasks, if any are given.

    Raises EmptyArchive, BadSetting, CorruptObject, StoreError.
    """
    stored = StoredListing.open(runs, archive.uri, request.to_text()) if tasks else None
    listing = None
    if stored is None:
        sections = sections_of(archive, SECTIONS, request.since)
        can_spread = tasks is not None and (len(sections) > 1 or not archive.local)
        limit = MAX_LOCAL_CROPS if can_spread else None
        with suppress(TooManyCrops):
            listing = list_sections(
                archive, sections, pattern=request.pattern, choice=request.choice, limit=limit
            )
    if listing is None:
        assert tasks is not None  # noqa: S101  for the type checker
        tasks.listing = stored or StoredListing.start(runs, archive.uri, request.to_text())
        try:
            listing = _list_by_tasks(archive, tasks.listing, request, tasks, cut_flat=True)
        except FolderNotFlat:
            listing = _list_by_tasks(archive, tasks.listing, request, tasks, cut_flat=False)
    listing.require_crops(archive)
    return listing


def _list_by_tasks(
    archive: Store, stored: StoredListing, request: ListingRequest, tasks: PlanningTasks, *, cut_flat: bool
) -> Listing:
    sections = sections_of(archive, SECTIONS, request.since, cut_flat=cut_flat)
    pending = stored.pending(sections)
    logger.info(
        f"listing {archive.uri} by tasks: {len(pending):,} of {len(sections):,} sections are not listed yet"
    )
    work = partial(list_and_store, archive, stored, request)
    for _ in tasks.each(work, _groups(pending)):
        pass
    return stored.read(sections)


def list_and_store(
    archive: Store, stored: StoredListing, request: ListingRequest, sections: Sequence[Section]
) -> None:
    """List some sections at the same time, and store each with its mark."""

    def work(section: Section) -> None:
        listed = list_sections(
            archive, [section], pattern=request.pattern, workers=_MEMBER_THREADS, choice=request.choice
        )
        stored.write(section, listed)

    with ThreadPoolExecutor(len(sections), thread_name_prefix="list-section") as pool:
        list(pool.map(work, sections))


def _groups(sections: Sequence[Section]) -> Iterator[Sequence[Section]]:
    """Yield sections in groups, of which there are SECTIONS or more where that is possible."""
    size = max(1, min(_SECTIONS_PER_TASK, len(sections) // SECTIONS))
    for first in range(0, len(sections), size):
        yield sections[first : first + size]
