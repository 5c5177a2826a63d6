"""Tombstones hide crops by name and by bytes, and name nobody."""

import pickle
from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq
import pytest

from index.archive.manifest import crop_id_of
from index.runs.tombstones import (
    TombstoneWatch,
    anonymous_ids,
    erasure_ids,
    md5_of,
    read_tombstones,
    write_tombstones,
)
from infra.errors import CorruptObject, SchemaMismatch
from infra.store import Store, open_store

Hide = Callable[..., str]
IDS = [crop_id_of(f"s3://archive/cam-1/{number:04d}.jpg") for number in range(200)]


def test_crops_are_erased_by_name_and_by_bytes(store: Store, hide: Hide) -> None:
    hide(store, IDS[:3], [None, md5_of(b"an image"), None])
    hide(store, IDS[2:5])
    erased = read_tombstones(store)
    assert len(erased) == 5
    assert erased.erased_ids(IDS) == set(IDS[:5])
    assert np.flatnonzero(erased.is_erased(np.array(IDS))).tolist() == [0, 1, 2, 3, 4]
    assert erased.is_erased_content(b"an image")
    assert not erased.is_erased_content(b"another image")


def test_nothing_is_erased_without_erasures(store: Store) -> None:
    erased = read_tombstones(store, open_store(f"{store.uri}/missing"))
    assert (len(erased), erased.knows_content, erased.erased_ids(IDS)) == (0, False, set())
    assert not erased.is_erased_content(b"an image")


def test_the_tombstones_of_several_folders_count_together(store: Store, hide: Hide) -> None:
    others = [open_store(f"{store.uri}/{name}") for name in ("a", "b")]
    for other in others:
        other.create_bucket()
    for number, other in enumerate(others):
        hide(other, IDS[number : number + 1])
    assert read_tombstones(*others).erased_ids(IDS) == set(IDS[:2])


def test_a_tombstone_without_its_receipt_does_not_count(store: Store) -> None:
    write_tombstones(store, "20260101T000000-aaaaaa", np.array(IDS[:3]), [None] * 3)
    assert erasure_ids(store) == []
    assert len(read_tombstones(store)) == 0


def test_no_object_holds_an_id_or_an_md5(store: Store, hide: Hide) -> None:
    erasure_id = hide(store, IDS, [md5_of(bytes([number])) for number in range(len(IDS))])
    table = pq.read_table(f"{store.uri}/erasures/{erasure_id}/hashes.parquet")
    assert not np.isin(table["crop_hash"].to_numpy().view(np.int64), IDS).any()
    everything = b"".join(store.get(info.key) for info in store.list("erasures"))
    for number, crop_id in enumerate(IDS):
        assert str(crop_id).encode() not in everything
        assert crop_id.to_bytes(8, "little") not in everything
        assert md5_of(bytes([number])) not in everything


def test_two_folders_hash_differently(store: Store, hide: Hide) -> None:
    others = [open_store(f"{store.uri}/{name}") for name in ("a", "b")]
    for other in others:
        other.create_bucket()
    for other in others:
        hide(other, IDS[:9])
    first, second = (set(anonymous_ids(other, np.array(IDS)).tolist()) for other in others)
    assert not first & second
    assert min(first | second) >= 0


def test_lost_tombstones_and_a_lost_key_are_noticed(store: Store, hide: Hide) -> None:
    erasure_id = hide(store, IDS[:3])
    hashes = store.get(f"erasures/{erasure_id}/hashes.parquet")
    store.delete(f"erasures/{erasure_id}/hashes.parquet")
    with pytest.raises(CorruptObject, match=f"{erasure_id} has a receipt, but its tombstones are gone"):
        read_tombstones(store)
    store.put(f"erasures/{erasure_id}/hashes.parquet", hashes)
    store.put("erasures/key.json", b"{}")
    with pytest.raises(SchemaMismatch, match="key of tombstones"):
        read_tombstones(store)
    store.delete("erasures/key.json")
    with pytest.raises(CorruptObject, match="key"):
        read_tombstones(store)


def test_a_watch_sees_an_erasure_within_a_second(
    store: Store, hide: Hide, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    watch = pickle.loads(pickle.dumps(TombstoneWatch([store, store])))  # noqa: S301  our own bytes
    before = watch.current()
    hide(store, IDS[:1])
    now[0] = 0.4
    assert watch.current() is before
    now[0] = 0.6
    after = watch.current()
    assert after.erased_ids(IDS) == {IDS[0]}
    now[0] = 1.2
    assert watch.current() is after
