"""Tombstones: which crops were erased, as keyed hashes of no meaning without the key. Readers ask here.

    erasures/key.json                     the key of this folder's hashes, written once
    erasures/<erasure_id>/hashes.parquet  one row a crop: of its crop_id, and of its bytes if known
                          receipt.json    see generations.receipt; without it the tombstones do not count

A crop is erased if its URI was (through its crop_id, which is a hash of the URI), or if its bytes were, under
any name. Whoever can read this folder can test a guess; without the key the hashes are random numbers.
"""

import hashlib
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.documents import JsonDocument, utc_now
from index.parquet import open_parquet, write_table
from index.runs.siphash import KEY_BYTES, siphash
from infra.errors import CorruptObject, ObjectExists, ObjectMissing
from infra.store import Store, ignore_missing_root

Ids = NDArray[np.int64]
MD5_BYTES = 16
_SCHEMA = pa.schema([("crop_hash", pa.uint64()), ("content_hash", pa.binary())])
_ID_SCHEMA = pa.schema([("crop_id", pa.int64())])
_KEY = "erasures/key.json"
_MAX_AGE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class TombstoneKey(JsonDocument):
    """The key of the hashes, in hex."""

    NOUN = "key of tombstones"
    REMEDY = "Restore it from a backup: without it erased crops cannot be recognised."

    key: str
    created: str


@dataclass(frozen=True, slots=True)
class Tombstones:
    """The erased crops of one folder of runs. `ids` are those of erasures by release 0.1, which kept them."""

    key: bytes = field(default=bytes(KEY_BYTES), repr=False)
    crop_hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64), repr=False)
    content_hashes: frozenset[bytes] = field(default=frozenset(), repr=False)
    ids: Ids = field(default_factory=lambda: np.empty(0, np.int64), repr=False)

    def __len__(self) -> int:
        return len(self.crop_hashes) + len(self.ids)

    def is_erased(self, crop_ids: Ids) -> NDArray[np.bool_]:
        """Return a mask (n,) of the crop_ids (n,) that were erased."""
        mask = np.isin(crop_ids, self.ids) if len(self.ids) else np.zeros(len(crop_ids), bool)
        if len(self.crop_hashes) and len(crop_ids):
            mask |= np.isin(siphash(self.key, crop_ids), self.crop_hashes)
        return mask

    def is_erased_content(self, md5: bytes) -> bool:
        """Return whether a crop with bytes of this MD5 was erased, under whatever name."""
        return bool(self.content_hashes) and _content_hash(self.key, md5) in self.content_hashes

    def is_erased_anonymous(self, numbers: Ids) -> NDArray[np.bool_]:
        """Return a mask (n,) of the numbers (n,), made by `anonymous_ids`, that stand for erased crops."""
        known = np.concatenate([self.crop_hashes, siphash(self.key, self.ids)])
        return np.isin(numbers, _anonymous(known))


@dataclass(frozen=True, slots=True)
class ErasedCrops:
    """The tombstones of several folders of runs: a crop is erased if one of them has it."""

    folders: tuple[Tombstones, ...] = ()

    def __len__(self) -> int:
        return sum(len(folder) for folder in self.folders)

    @property
    def knows_content(self) -> bool:
        """Whether bytes must be compared too, and not names alone."""
        return any(folder.content_hashes for folder in self.folders)

    def is_erased(self, crop_ids: Ids) -> NDArray[np.bool_]:
        """Return a mask (n,) of the crop_ids (n,) that were erased: the one place that decides it."""
        mask = np.zeros(len(crop_ids), bool)
        for folder in self.folders:
            mask |= folder.is_erased(crop_ids)
        return mask

    def is_erased_anonymous(self, numbers: Iterable[int]) -> bool:
        """Return whether any of some numbers, made by `anonymous_ids`, stands for an erased crop."""
        known = np.fromiter(numbers, np.int64)
        return any(folder.is_erased_anonymous(known).any() for folder in self.folders)

    def erased_ids(self, crop_ids: Iterable[int]) -> set[int]:
        """Return those of some crop_ids that were erased."""
        ids = np.fromiter(crop_ids, np.int64)
        return set(ids[self.is_erased(ids)].tolist()) if len(self) else set()

    def is_erased_content(self, data: bytes) -> bool:
        """Return whether a crop of these bytes was erased, under whatever name."""
        if not self.knows_content:
            return False
        md5 = md5_of(data)
        return any(folder.is_erased_content(md5) for folder in self.folders)


class TombstoneWatch:
    """The present tombstones of some folders, for readers that live long. Safe to share between threads.

    It looks for new erasures at most every half second.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list({store.uri: store for store in stores}.values())
        self._lock = threading.Lock()
        self._names: list[list[str]] | None = None
        self._erased = ErasedCrops()
        self._looked = -_MAX_AGE_SECONDS

    def __reduce__(self) -> tuple[type["TombstoneWatch"], tuple[list[Store]]]:
        return TombstoneWatch, (self.stores,)

    def current(self, *, now: bool = False) -> ErasedCrops:
        """Return the tombstones; the same object as before if nothing was erased meanwhile.

        now: look again, however short ago that was.
        """
        with self._lock:
            if now or time.monotonic() - self._looked >= _MAX_AGE_SECONDS:
                names = [erasure_ids(store) for store in self.stores]
                if names != self._names:
                    self._erased = read_tombstones(*self.stores)
                    self._names = names
                self._looked = time.monotonic()
            return self._erased


def md5_of(data: bytes) -> bytes:
    """Return the MD5 of the bytes of a crop, which S3 has as ETag: it identifies, it does not protect."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def new_erasure_id() -> str:
    """Return a new name for an erasure; names sort by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def write_tombstones(store: Store, erasure_id: str, crop_ids: Ids, md5s: Sequence[bytes | None]) -> None:
    """Write the tombstones of one erasure, of crop_ids (n,) and the MD5 of their bytes (n). May be repeated.

    An MD5 of None is not known: the crop is recognised by its name alone.
    """
    key = _ensure_key(store)
    crop_hashes = siphash(key, crop_ids)
    order = np.argsort(crop_hashes)
    contents = [None if md5s[row] is None else _content_hash(key, md5s[row] or b"") for row in order]
    table = pa.table([pa.array(crop_hashes[order]), pa.array(contents, pa.binary())], schema=_SCHEMA)
    write_table(store, _hashes_key(erasure_id), table, metadata={"clvr.erasure": erasure_id})


def read_tombstones(*stores: Store) -> ErasedCrops:
    """Read the tombstones of all erasures, finished or not, of some folders of runs.

    Linear in the number of erased crops. Raises CorruptObject for tombstones that are damaged or gone.
    """
    unique = {store.uri: store for store in stores}
    return ErasedCrops(
        tuple(filter(len, (_read_folder(store, erasure_ids(store)) for store in unique.values())))
    )


def read_erasures(store: Store, names: Sequence[str]) -> ErasedCrops:
    """Read the tombstones of some erasures of one folder. Raises as `read_tombstones` does."""
    return ErasedCrops((_read_folder(store, names),))


def erasure_ids(store: Store) -> list[str]:
    """Return the names of all erasures that have a receipt, finished or not, oldest first."""
    paths: list[list[str]] = []
    with ignore_missing_root(store):
        paths = [info.key.split("/") for info in store.list("erasures")]
    return sorted(path[1] for path in paths if path[2:] == ["receipt.json"])


def anonymous_ids(store: Store, crop_ids: Ids) -> Ids:
    """Return numbers (n,) for erased crops whose row must remain; without the key they name none."""
    return _anonymous(siphash(_ensure_key(store), crop_ids))


def seal_old_tombstones(store: Store, names: Iterable[str]) -> None:
    """Replace the plain crop_ids, which release 0.1 kept, of these erasures by hashes."""
    for erasure_id in names:
        if (ids := _read_ids(store, erasure_id)) is not None:
            write_tombstones(store, erasure_id, ids, [None] * len(ids))
            store.delete(_ids_key(erasure_id))


def _read_folder(store: Store, names: Sequence[str]) -> Tombstones:
    if not names:
        return Tombstones()
    ids: list[Ids] = [np.empty(0, np.int64)]
    hashes: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    contents: set[bytes] = set()
    for name in names:
        if (plain := _read_ids(store, name)) is not None:
            ids.append(plain)
            continue
        try:
            with open_parquet(store, _hashes_key(name)) as file:
                table = file.read(columns=_SCHEMA.names)
        except ObjectMissing as missing:
            raise CorruptObject(
                f"erasure {name} has a receipt, but its tombstones are gone: {missing.message}",
                remedy="Restore them from a backup: without them erased crops come back.",
            ) from missing
        hashes.append(np.asarray(table["crop_hash"]))
        contents.update(content for content in table["content_hash"].to_pylist() if content is not None)
    try:
        key = _read_key(store) if len(hashes) > 1 else bytes(KEY_BYTES)
    except ObjectMissing as missing:
        raise CorruptObject(
            f"the key of the tombstones is gone: {missing.message}", remedy=TombstoneKey.REMEDY
        ) from missing
    return Tombstones(
        key, np.unique(np.concatenate(hashes)), frozenset(contents), np.unique(np.concatenate(ids))
    )


def _read_ids(store: Store, erasure_id: str) -> Ids | None:
    with suppress(ObjectMissing), open_parquet(store, _ids_key(erasure_id)) as file:
        return np.asarray(file.read(columns=["crop_id"])["crop_id"])
    return None


def _anonymous(hashes: NDArray[np.uint64]) -> Ids:
    return np.asarray((hashes >> np.uint64(1)).view(np.int64))


def _ensure_key(store: Store) -> bytes:
    with suppress(ObjectMissing):
        return _read_key(store)
    with suppress(ObjectExists):  # another process was faster: its key counts
        store.create(_KEY, TombstoneKey(secrets.token_hex(KEY_BYTES), utc_now()).to_json())
    return _read_key(store)


def _read_key(store: Store) -> bytes:
    """Raises ObjectMissing, SchemaMismatch, CorruptObject."""
    key = bytes.fromhex(TombstoneKey.read(store, _KEY).key)
    if len(key) != KEY_BYTES:
        raise CorruptObject(f"{store.uri_of(_KEY)} is damaged", remedy=TombstoneKey.REMEDY)
    return key


def _content_hash(key: bytes, md5: bytes) -> bytes:
    return hashlib.blake2b(md5, key=key, digest_size=16).digest()


def _hashes_key(erasure_id: str) -> str:
    return f"erasures/{erasure_id}/hashes.parquet"


def _ids_key(erasure_id: str) -> str:
    return f"erasures/{erasure_id}/crops.parquet"
