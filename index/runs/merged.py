"""Runs that were merged into another one: whoever names them means that one.

    runs/merged.json    every merge of this folder, the oldest first: its run, and the runs that it replaced

Small runs are merged by `index.generations.merge`. This document is its one switch: chains of runs, records
of generations and commands read the ids of runs through it, so all of them change at once.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from index.documents import JsonDocument, UtcTime, require_keys_inside
from infra.errors import Locked, ObjectChanged, ObjectExists, ObjectMissing
from infra.store import Store, ignore_missing_root

_KEY = "runs/merged.json"


@dataclass(frozen=True, slots=True)
class Merge(JsonDocument):
    """One merge: the run that was made, and the runs whose crops it has, the oldest first."""

    run_id: str
    sources: tuple[str, ...]
    merged: UtcTime


@dataclass(frozen=True, slots=True)
class Merges(JsonDocument):
    """All merges of a folder of runs."""

    NOUN = "list of merged runs"
    REMEDY = "Restore it from a copy: without it generations name runs that are gone."

    merges: tuple[Merge, ...] = ()
    changes: int = 0
    """How often this document was written."""

    def check(self, where: str) -> None:
        """Raise CorruptObject for a name that leaves the folder of runs."""
        names = [name for merge in self.merges for name in (merge.run_id, *merge.sources)]
        require_keys_inside(names, where)

    def run_of(self, run_id: str) -> str:
        """Return the run that has the crops of a run now: itself if it was not merged."""
        for merge in self.merges:
            if run_id in merge.sources:
                run_id = merge.run_id
        return run_id

    def apply(self, run_ids: Sequence[str]) -> tuple[str, ...]:
        """Return ids of runs, each merge in the place of its sources where all of them are named."""
        names = list(run_ids)
        for merge in self.merges:
            if set(merge.sources) <= set(names):
                names.insert(names.index(merge.sources[0]), merge.run_id)
                names = [name for name in names if name not in merge.sources]
        return tuple(dict.fromkeys(names))


def read_merges(store: Store) -> Merges:
    """Return the merges of a folder of runs. Raises CorruptObject, SchemaMismatch."""
    with ignore_missing_root(store), suppress(ObjectMissing):
        return Merges.read(store, _KEY)
    return Merges()


class MergeSwitch:
    """The right to add one merge, as long as no other process changes the document."""

    def __init__(self, store: Store) -> None:
        """Change the document, so that a process that stood still since it read it adds nothing."""
        self._store = store
        body = None
        with ignore_missing_root(store), suppress(ObjectMissing):
            body = store.fetch(_KEY)
        merges = Merges.from_json(body.data, store.uri_of(_KEY)) if body else Merges()
        self.merges = replace(merges, changes=merges.changes + 1)
        try:
            if body:
                store.replace(_KEY, self.merges.to_json(), etag=body.etag)
            else:
                store.create(_KEY, self.merges.to_json())
        except (ObjectChanged, ObjectExists) as changed:
            raise _changed(store) from changed
        body = store.fetch(_KEY)
        if Merges.from_json(body.data, store.uri_of(_KEY)) != self.merges:
            raise _changed(store)
        self._etag = body.etag

    def add(self, merge: Merge) -> None:
        """Add a merge. Raises Locked if the document was changed meanwhile."""
        added = replace(self.merges, merges=(*self.merges.merges, merge), changes=self.merges.changes + 1)
        try:
            self._store.replace(_KEY, added.to_json(), etag=self._etag)
        except (ObjectChanged, ObjectMissing) as changed:
            raise _changed(self._store) from changed
        self.merges = added


def _changed(store: Store) -> Locked:
    return Locked(
        f"{store.uri_of(_KEY)} was changed by another process", remedy="Run the same command again."
    )
