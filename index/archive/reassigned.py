"""Crops whose crop_id another crop had first: each gets a further one, and keeps it.

    catalogue/ids.json      URI -> crop_id, of these crops alone; most folders of runs have none

A crop_id is a hash of the URI, so two crops may have the same: one pair in 20 archives of a billion. The crop
that is known already keeps it; of crops that are new together, the first by URI. The other one hashes its
URI with the seeds 1, 2, … until the id is free. Every run of the folder, of whatever model, reads this list
before it compares, so a crop has one id in all of them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.archive.manifest import crop_id_of, crop_ids_of
from index.archive.reader import open_uri
from index.documents import JsonDocument
from infra.errors import ObjectChanged, ObjectExists, ObjectMissing
from infra.store import Store, ignore_missing_root

Ids = NDArray[np.int64]
_KEY = "catalogue/ids.json"
_SORTED_IDS = 1 << 24
_BUCKETS = 256


@dataclass(frozen=True, slots=True)
class ReassignedIds(JsonDocument):
    """The list of a folder of runs: URI -> crop_id."""

    NOUN = "list of reassigned crop_ids"
    REMEDY = "Restore it from a copy: without it a crop gets another crop_id."

    ids: dict[str, int] = field(default_factory=dict)

    def apply(self, rows: pa.Table) -> pa.Table:
        """Return rows with columns crop_id and uri, with these ids."""
        if not self.ids:
            return rows
        uris = pa.array(list(self.ids), pa.string())
        others = pa.array(list(self.ids.values()), pa.int64())
        crop_ids = pc.coalesce(others.take(pc.index_in(rows["uri"], value_set=uris)), rows["crop_id"])
        return rows.set_column(rows.schema.get_field_index("crop_id"), "crop_id", crop_ids)

    def id_at(self, uri: str) -> int:
        """Return the crop_id of the crop at any path or URI, whether it exists or not."""
        return int(self.ids_of([open_uri(uri)[1]])[0])

    def ids_of(self, uris: Iterable[str]) -> Ids:
        """Return the crop_ids (n,) of URIs."""
        names = list(uris)
        ids = crop_ids_of(names)
        if self.ids:
            pairs = zip(names, ids, strict=True)
            ids = np.fromiter((self.ids.get(uri, crop_id) for uri, crop_id in pairs), np.int64)
        return ids


def read_reassigned(*stores: Store) -> ReassignedIds:
    """Return the list of a folder of runs, or of several. Raises CorruptObject, SchemaMismatch."""
    ids: dict[str, int] = {}
    for store in stores:
        with ignore_missing_root(store), suppress(ObjectMissing):
            ids |= ReassignedIds.read(store, _KEY).ids
    return ReassignedIds(ids)


def record_reassigned(store: Store, ids: Mapping[str, int]) -> None:
    """Add crops to the list of a folder of runs; several processes may do so at the same time."""
    while True:
        body = None
        with ignore_missing_root(store), suppress(ObjectMissing):
            body = store.fetch(_KEY)
        with suppress(ObjectChanged, ObjectExists):
            if body is None:
                store.create(_KEY, ReassignedIds(dict(ids)).to_json())
            else:
                known = ReassignedIds.from_json(body.data, store.uri_of(_KEY)).ids
                store.replace(_KEY, ReassignedIds({**known, **ids}).to_json(), etag=body.etag)
            return


def drop_reassigned(store: Store, is_erased: Callable[[Ids], NDArray[np.bool_]]) -> None:
    """Remove erased crops from the list of a folder of runs, when their names are purged."""
    while True:
        known = read_reassigned(store).ids
        erased = is_erased(np.fromiter(known.values(), np.int64)) if known else np.zeros(0, bool)
        if not erased.any():
            return
        with suppress(ObjectChanged):
            etag = store.fetch(_KEY).etag
            kept = (pair for pair, is_gone in zip(known.items(), erased, strict=True) if not is_gone)
            store.replace(_KEY, ReassignedIds(dict(kept)).to_json(), etag=etag)


def free_ids(uris: Iterable[str], chunks: Callable[[], Iterable[Ids]]) -> dict[str, int]:
    """Return a further id for each of some URIs, none of which is in the arrays that `chunks()` yields."""
    given: dict[str, int] = {}
    waiting, attempt = sorted(set(uris)), 1
    while waiting:
        wanted = {uri: crop_id_of(uri, attempt) for uri in waiting}
        taken = _occurring(set(wanted.values()), chunks()) | set(given.values())
        for uri in waiting:
            if wanted[uri] not in taken:
                given[uri] = wanted[uri]
                taken.add(wanted[uri])
        waiting = [uri for uri in waiting if uri not in given]
        attempt += 1
    return given


def _occurring(ids: set[int], chunks: Iterable[Ids]) -> set[int]:
    wanted = np.fromiter(ids, np.int64)
    return {crop_id for chunk in chunks for crop_id in chunk[np.isin(chunk, wanted)].tolist()}


def repeated_ids(chunks: Iterable[Ids]) -> tuple[Ids, int]:
    """Return the ids that occur more than once in arrays (n,) of ids, and how often beyond the first time.

    Memory for 16 million ids; more of them are sorted on local disk.
    """
    pending: list[Ids] = []
    count = 0
    iterator = iter(chunks)
    for chunk in iterator:
        pending.append(chunk)
        count += len(chunk)
        if count > _SORTED_IDS:
            return _repeated_on_disk(pending, iterator)
    return _repeated(np.concatenate([np.empty(0, np.int64), *pending]))


def _repeated_on_disk(pending: list[Ids], rest: Iterator[Ids]) -> tuple[Ids, int]:
    # The ids are a hash, so a bucket by the highest bits holds one of _BUCKETS parts of them.
    with ExitStack() as stack:
        files = [stack.enter_context(TemporaryFile()) for _ in range(_BUCKETS)]
        for chunk in pending:
            _scatter(chunk, files)
        pending.clear()
        for chunk in rest:
            _scatter(chunk, files)
        found = []
        for file in files:
            file.seek(0)
            found.append(_repeated(np.frombuffer(file.read(), np.int64)))
        return np.concatenate([ids for ids, _ in found]), sum(surplus for _, surplus in found)


def _scatter(ids: Ids, files: Sequence[IO[bytes]]) -> None:
    ordered = np.sort(ids)
    ends = np.searchsorted(ordered >> 55, np.arange(_BUCKETS + 1))
    for number, file in enumerate(files):
        file.write(ordered[ends[number] : ends[number + 1]].tobytes())


def _repeated(ids: Ids) -> tuple[Ids, int]:
    ordered = np.sort(ids)
    repeats = ordered[1:][ordered[1:] == ordered[:-1]]
    return np.unique(repeats), len(repeats)
