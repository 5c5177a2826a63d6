"""The crop_ids of a catalogue in a few files: which are taken, without opening every partition.

catalogue/taken/<digest>.parquet    crop_ids, ascending; a catalogue names all of its files

A run adds one file of its new ids. Files of like size are joined, up to MAX_IDS, so there are few of them,
and an id is written again a few times at most. Ids of crops that vanished stay: an id that is found here may
be taken, and the partitions tell; an id that is not found is free.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from index.catalogue.records import FOLDER, Catalogue
from index.parquet import StoredFile, open_parquet, write_table
from index.runs.accounting import Ids, crop_ids
from index.runs.tombstones import ErasedCrops
from infra.errors import CorruptObject
from infra.store import Store

MAX_IDS = 1 << 22
"""Ids of a file, 32 MiB: as many are in memory to join two, or to add a whole archive."""

_JOINED = 4
_NO_IDS = np.empty(0, np.int64)


class TakenIds:
    """Collects the ids that runs add to a catalogue, and writes them as it goes."""

    def __init__(self, store: Store, files: Sequence[StoredFile]) -> None:
        self._store = store
        self._files = list(files)
        self._pending: list[Ids] = []
        self._count = 0

    def add(self, ids: Ids) -> None:
        """Add ids (n,), none of which was added before."""
        self._pending.append(ids)
        self._count += len(ids)
        if self._count >= MAX_IDS:
            self._write()

    def files(self) -> tuple[StoredFile, ...]:
        """Write what is left; return the files, the oldest first."""
        if self._count:
            self._write()
        return tuple(self._files)

    def _write(self) -> None:
        ids = np.sort(np.concatenate(self._pending))
        self._pending, self._count = [], 0
        while self._files and self._files[-1].rows < _JOINED * len(ids):
            if self._files[-1].rows + len(ids) > MAX_IDS:
                break
            ids = np.union1d(ids, _read(self._store, self._files.pop()))
        self._files.append(_write(self._store, ids))


def find_taken(store: Store, files: Iterable[StoredFile], ids: Ids) -> Ids:
    """Return those of some ids (n,) that may be taken, ascending; all others are free."""
    found = [_NO_IDS]
    for file in files:
        there = _read(store, file)
        places = np.searchsorted(there, ids)
        is_there = places < len(there)
        is_there[is_there] = there[places[is_there]] == ids[is_there]
        found.append(ids[is_there])
    return np.unique(np.concatenate(found))


def without_erased(store: Store, file: StoredFile, erased: ErasedCrops) -> Iterator[StoredFile]:
    """Write a file again without erased ids, if it has any; yield the file, or nothing if no id is left."""
    ids = _read(store, file)
    is_erased = erased.is_erased(ids)
    if not is_erased.any():
        yield file
    elif not is_erased.all():
        yield _write(store, ids[~is_erased])


def _write(store: Store, ids: Ids) -> StoredFile:
    key = f"{FOLDER}/taken/{{digest}}.parquet"
    rows, metadata = pa.table({"crop_id": ids}), {"clvr.taken": "crop_ids"}
    # Hashes do not compress, and every night reads all of them: this takes a quarter of the time.
    return write_table(store, key, rows, metadata=metadata, compress=False)


def _read(store: Store, stated: StoredFile) -> Ids:
    with open_parquet(store, stated.key) as file:
        if file.num_rows != stated.rows:
            raise CorruptObject(
                f"{file.uri} has {file.num_rows:,} rows, its catalogue states {stated.rows:,}",
                remedy=Catalogue.REMEDY,
            )
        return crop_ids(file.read(["crop_id"]))
