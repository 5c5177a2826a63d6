"""Catalogues: what is known after a run, compared with a listing, against a model in a dictionary."""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from killed_writes import killed_at

from index.archive import partitions
from index.archive.manifest import crop_id_of
from index.archive.partitions import day_of
from index.archive.reassigned import ReassignedIds
from index.archive.spool import Spool
from index.catalogue import comparison, taken
from index.catalogue.catalogue import open_catalogue, purge_catalogues
from index.catalogue.comparison import (
    ListedCrops,
    compare_listing,
    find_shared_ids,
    newest_day,
    take_listing,
)
from index.catalogue.partition import KnownPartitions
from index.runs.accounting import QuarantinedCrop, quarantine_table
from index.runs.lineage import lineage
from index.runs.run import Run
from index.runs.shards import shard_table
from index.runs.tombstones import read_tombstones
from index.schema import EMBEDDING_DIM, MANIFEST_SCHEMA
from infra.errors import BadInput, CorruptObject, CountMismatch
from infra.store import Store, open_store

ARCHIVE = "/archive"
DAYS = ("dt=2026-11-20", "dt=20261121", "dt=2026-11-22")
NONE = ReassignedIds()
State = dict[str, str]
"""What an archive holds: key -> etag."""


def crops(state: State) -> pa.Table:
    rows = [
        {
            "crop_id": crop_id_of(f"{ARCHIVE}/{key}"),
            "uri": f"{ARCHIVE}/{key}",
            "etag": etag,
            "size": 1,
            "last_modified": 1,
            "camera_id": "",
            "captured_at": -1,
            "track_id": "",
        }
        for key, etag in state.items()
    ]
    return pa.Table.from_pylist(rows, MANIFEST_SCHEMA)


def listing(state: State) -> Spool:
    spool = Spool(ARCHIVE, MANIFEST_SCHEMA)
    for row in range(len(state)):
        spool.add(crops(dict([list(state.items())[row]])))
    return spool


def embed(run: Run) -> None:
    """Finish a run; every fifth crop goes into quarantine."""
    for part in run.pending_parts():
        rows = run.part_manifest(part)
        bad = np.asarray(rows["crop_id"]) % 5 == 0
        good, broken = rows.filter(pa.array(~bad)), rows.filter(pa.array(bad))
        count = good.num_rows
        zeros = np.zeros((count, EMBEDDING_DIM), np.float32)
        shard = shard_table(good, zeros, np.zeros(count, np.int32), np.ones(count, np.float32))
        pairs = broken.select(["crop_id", "uri"]).to_pylist()
        quarantined = [QuarantinedCrop(**pair, stage="decode", cause="x") for pair in pairs]
        run.write_part(part, shard, quarantine_table(quarantined))
    run.finish()


def make_run(
    store: Store, run_id: str, rows: Any, gone: Sequence[str] = (), *, finish: bool = True, **linked: str
) -> Run:
    run = Run.create(
        store,
        run_id,
        manifest=rows,
        archive=ARCHIVE,
        fingerprint="f",
        model="m",
        settings=linked,
        rows_per_part=3,
        rows_per_shard=6,
        vanished=pa.array(gone, pa.string()),
    )
    if finish:
        embed(run)
    return run


def keys(uris: Any) -> list[str]:
    return sorted(uri.removeprefix(f"{ARCHIVE}/") for uri in uris.to_pylist())


def known_state(known: KnownPartitions) -> State:
    rows = [row for part in known.catalogue.partitions for row in known.rows(part.id).to_pylist()]
    return {row["uri"].removeprefix(f"{ARCHIVE}/"): row["etag"] for row in rows}


@dataclass
class Model:
    """The rules of an incremental run, in a few lines."""

    known: State = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)

    def newest(self) -> date | None:
        return max(filter(None, map(day_of, self.known)), default=None)

    def compare(self, state: State, since: date | None) -> tuple[set[str], set[str], set[str], set[str]]:
        """Return new, changed, unchanged and vanished keys."""
        present = {key: etag for key, etag in state.items() if key not in self.erased}
        before = {key: etag for key, etag in self.known.items() if key not in self.erased}
        changed = {key for key, etag in present.items() if before.get(key) and etag and before[key] != etag}
        covered = {key for key in before if since is None or (day_of(key) or date.min) >= since}
        new = set(present) - set(before)
        return new, changed, set(present) - new - changed, covered - set(present)

    def carry_on(self, state: State, embedded: set[str], vanished: set[str]) -> None:
        self.known = {key: etag for key, etag in self.known.items() if key not in vanished}
        self.known |= {key: state[key] for key in embedded}


KEYS = [f"{day}/{name}.jpg" for day in DAYS for name in "abcde"] + [f"{name}.jpg" for name in "vwxyz"]
STATES = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(["1", "2", ""]), min_size=1, max_size=20)


@dataclass
class Night:
    state: State
    lookback: int | None
    erased: set[str]


NIGHTS = st.builds(
    Night,
    STATES,
    st.sampled_from([None, None, 0, 1]),
    st.sets(st.sampled_from(KEYS), max_size=2),
)


def do_nights(store: Store, first: State, following: Sequence[Night], hide: Callable[..., Any]) -> None:
    """Do nights as `clvr reindex` does, and check each against the model."""
    model = Model()
    make_run(store, "n0", take_listing(listing(first), read_tombstones(store), NONE).crops)
    model.known = dict(first)
    last = "n0"
    for number, night in enumerate(following, 1):
        if night.erased - model.erased:
            hide(store, [crop_id_of(f"{ARCHIVE}/{key}") for key in night.erased - model.erased])
            model.erased |= night.erased
        known = open_catalogue(store, last)
        newest = newest_day(known)
        since = None if night.lookback is None or newest is None else newest - timedelta(night.lookback)
        state = {k: e for k, e in night.state.items() if since is None or (day_of(k) or date.min) >= since}
        found = compare_listing(listing(state), known, read_tombstones(store), NONE, since=since)
        new, changed, unchanged, vanished = model.compare(state, since)
        changes = found.changes
        assert changes is not None
        assert set(keys(found.crops.read()["uri"])) == new | changed
        assert keys(changes.vanished) == sorted(vanished)
        assert (changes.new, changes.changed, changes.unchanged) == (len(new), len(changed), len(unchanged))
        assert keys(found.new.read()["uri"]) == sorted(new)
        if new or changed or vanished:
            make_run(store, f"n{number}", found.crops, changes.vanished.to_pylist(), since_run=last)
            last = f"n{number}"
            model.carry_on(state, new | changed, vanished)
    expected = {key: etag for key, etag in model.known.items() if key not in model.erased}
    state_then = known_state(open_catalogue(store, last))
    assert {key: etag for key, etag in state_then.items() if key not in model.erased} == expected


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=STATES, following=st.lists(NIGHTS, min_size=1, max_size=3))
def test_nights_find_what_a_model_finds(
    first: State, following: list[Night], hide: Callable[..., Any]
) -> None:
    """Partitions of at most two crops, so that folders are cut, and cut more finely as they grow."""
    with tempfile.TemporaryDirectory() as folder, patch.object(partitions, "MAX_PARTITION_ROWS", 2):
        do_nights(open_store(folder), first, following, hide)


BASE = {f"{day}/{name}.jpg": "1" for day in DAYS for name in "abc"} | {"loose.jpg": "1"}


def chain(store: Store, *, finish_last: bool = True) -> None:
    """Three runs that continue each other, and no catalogue."""
    make_run(store, "n0", crops(BASE))
    change = {f"{DAYS[2]}/a.jpg": "2", f"{DAYS[2]}/new.jpg": "1"}
    make_run(store, "n1", crops(change), [f"{ARCHIVE}/{DAYS[0]}/b.jpg"], since_run="n0")
    back = {f"{DAYS[0]}/b.jpg": "3"}
    make_run(store, "n2", crops(back), since_run="n1", finish=finish_last)


AFTER = BASE | {f"{DAYS[2]}/a.jpg": "2", f"{DAYS[2]}/new.jpg": "1", f"{DAYS[0]}/b.jpg": "3"}


def objects(store: Store) -> dict[str, bytes]:
    """The objects of the catalogues."""
    return {info.key: store.get(info.key) for info in store.list("catalogue")}


def rows_of(known: KnownPartitions) -> list[dict[str, Any]]:
    return [row for part in known.catalogue.partitions for row in known.rows(part.id).to_pylist()]


def test_runs_of_an_earlier_release_are_taken_over_with_the_same_rows(tmp_path: Path) -> None:
    at_once, nightly = open_store(str(tmp_path / "a")), open_store(str(tmp_path / "b"))
    chain(at_once)
    chain(nightly)
    for run_id in ("n0", "n1", "n2"):
        each = open_catalogue(nightly, run_id)
    taken = open_catalogue(at_once, "n2")
    assert rows_of(taken) == rows_of(each)
    assert known_state(taken) == AFTER
    catalogue = taken.catalogue
    assert catalogue.runs == ("n0", "n1", "n2")
    assert (catalogue.listed, catalogue.superseded, catalogue.vanished) == (13, 1, 1)
    assert (each.catalogue.listed, each.catalogue.superseded, each.catalogue.vanished) == (13, 1, 1)
    quarantined = {row["crop_id"] for run in lineage(at_once, "n2") for row in run.quarantine().to_pylist()}
    for row in rows_of(taken):
        assert row["state"] == ("quarantined" if row["crop_id"] in quarantined else "embedded")
    assert {row["run_id"] for row in rows_of(taken)} == {"n0", "n1", "n2"}
    files = [str(tmp_path / "a" / key) for key in taken.catalogue.file_keys]
    assert pa.concat_tables(map(pq.read_table, files)).num_rows == len(AFTER)  # any reader of Parquet


def test_a_catalogue_that_is_not_kept_writes_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    chain(store)
    assert known_state(open_catalogue(store, "n2", keep=False)) == AFTER
    assert not objects(store)


def taken_of(known: KnownPartitions) -> list[int]:
    files = [pq.read_table(f"{known.store.uri}/{key}") for key in known.catalogue.taken_keys]
    return sorted(pa.concat_tables(files)["crop_id"].to_pylist())


def test_the_taken_ids_are_those_of_all_crops_that_were_ever_known(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    chain(store)
    for run_id in ("n0", "n1", "n2"):
        known = open_catalogue(store, run_id)
        assert set(taken_of(known)) >= {row["crop_id"] for row in rows_of(known)}
    assert set(taken_of(known)) == {crop_id_of(f"{ARCHIVE}/{key}") for key in AFTER}
    # A catalogue of an earlier release has none, and the next one has all.
    expected = set(taken_of(known))
    before = open_catalogue(store, "n1").catalogue
    store.put("catalogue/runs/n1.json", replace(before, taken=()).to_json())
    store.delete("catalogue/runs/n2.json")
    assert set(taken_of(open_catalogue(store, "n2"))) == expected


def test_large_files_of_taken_ids_are_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    monkeypatch.setattr(taken, "MAX_IDS", 40)
    ids = np.random.default_rng(0).permutation(1000)
    files: tuple[Any, ...] = ()
    for night in np.split(ids, 100):
        collected = taken.TakenIds(store, files)
        collected.add(night)
        files = collected.files()
        assert all(file.rows <= 40 for file in files)
    assert sum(file.rows for file in files) == 1000 and len(files) <= 30
    asked = np.arange(-5, 1005, 7)
    assert taken.find_taken(store, files, asked).tolist() == [n for n in asked.tolist() if 0 <= n < 1000]


def test_a_look_for_taken_ids_opens_partitions_only_if_one_may_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    chain(store)
    open_catalogue(store, "n2")
    make_run(store, "n3", crops({}), [f"{ARCHIVE}/loose.jpg"], since_run="n2")
    known = open_catalogue(store, "n3")
    opened: list[str] = []
    original = comparison.partition_ids
    monkeypatch.setattr(
        comparison, "partition_ids", lambda *args: opened.append(args[1].folder) or original(*args)
    )
    state = {key: etag for key, etag in AFTER.items() if key != "loose.jpg"}
    new = compare_listing(listing(state | {"more.jpg": "1"}), known, read_tombstones(store), NONE)
    assert find_shared_ids(new, known) == {} and not opened
    # A crop that vanished and is back is looked up, and shares its id with no other.
    back = compare_listing(listing(state | {"loose.jpg": "1"}), known, read_tombstones(store), NONE)
    assert find_shared_ids(back, known) == {} and opened


def test_an_unfinished_run_has_no_catalogue(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    chain(store, finish_last=False)
    with pytest.raises(CountMismatch, match="run n2 is not finished"):
        open_catalogue(store, "n2")
    make_run(store, "loop", crops(BASE), since_run="loop")
    with pytest.raises(BadInput, match="lead back to loop"):
        open_catalogue(store, "loop")


def test_partitions_that_did_not_change_are_neither_read_nor_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    chain(store)
    before = open_catalogue(store, "n1").catalogue.file_keys
    after = open_catalogue(store, "n2").catalogue.file_keys
    assert len(after - before) == 1  # of the day whose crop came back
    known = open_catalogue(store, "n2")
    read: list[str] = []
    original = Store.get
    monkeypatch.setattr(Store, "get", lambda self, key: read.append(key) or original(self, key))
    found = compare_listing(listing(AFTER | {"more.jpg": "1"}), known, read_tombstones(store), NONE)
    assert keys(found.crops.read()["uri"]) == ["more.jpg"]
    assert read == [part.file.key for part in known.catalogue.partitions if not part.folder]


def test_old_catalogues_and_their_files_go(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    chain(store)
    for run_id in ("n0", "n1", "n2"):
        catalogue = open_catalogue(store, run_id).catalogue
    documents = {key for key in objects(store) if key.endswith(".json")}
    assert documents == {"catalogue/runs/n1.json", "catalogue/runs/n2.json"}
    both = (catalogue, open_catalogue(store, "n1").catalogue)
    named = {key for one in both for key in one.file_keys | one.taken_keys}
    assert {key for key in objects(store) if key.endswith(".parquet")} == named


@pytest.mark.parametrize("after", [True, False])
def test_an_update_may_end_at_every_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    whole = open_store(str(tmp_path / "whole"))
    chain(whole)
    open_catalogue(whole, "n0")
    expected = rows_of(open_catalogue(whole, "n2"))
    for number in itertools.count(1):
        store = open_store(str(tmp_path / f"cut-{number}"))
        chain(store)
        open_catalogue(store, "n0")
        if not killed_at(number, lambda: open_catalogue(store, "n2"), monkeypatch, after=after):  # noqa: B023
            break
        assert known_state(open_catalogue(store, "n0")) == BASE  # what was known stays
        assert rows_of(open_catalogue(store, "n2")) == expected
        remaining = {key for key in objects(store) if "/partitions/" in key}
        named = {key for run_id in ("n0", "n2") for key in open_catalogue(store, run_id).catalogue.file_keys}
        assert named <= remaining
    assert number > 5


def test_a_purge_leaves_no_name_and_may_end_at_every_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hide: Callable[..., Any]
) -> None:
    gone = [f"{DAYS[0]}/b.jpg", "loose.jpg"]
    names = [f"{ARCHIVE}/{key}".encode() for key in gone]
    for number in itertools.count(1):
        store = open_store(str(tmp_path / f"cut-{number}"))
        chain(store)
        for run_id in ("n0", "n1", "n2"):
            open_catalogue(store, run_id)
        hide(store, [crop_id_of(f"{ARCHIVE}/{key}") for key in gone])
        erased = read_tombstones(store)
        is_cut = killed_at(number, lambda: purge_catalogues(store, erased), monkeypatch)  # noqa: B023
        purge_catalogues(store, erased)
        assert purge_catalogues(store, erased) == 0
        for key in objects(store):
            text = store.get(key)
            table = pq.read_table(tmp_path / f"cut-{number}" / key) if key.endswith(".parquet") else None
            names_uris = table is not None and "uri" in table.schema.names
            uris = table["uri"].to_pylist() if names_uris else []
            ids = np.asarray(table["crop_id"]) if table is not None else np.empty(0, np.int64)
            assert not any(name in text for name in names)
            assert not {name.decode() for name in names} & set(uris)
            assert not erased.is_erased(ids).any()
        left = {key: etag for key, etag in AFTER.items() if key not in gone}
        known = open_catalogue(store, "n2")
        assert known_state(known) == left and known.catalogue.erased == 2
        if not is_cut:
            break
    assert number > 3


def test_a_catalogue_that_is_made_after_an_erasure_does_not_name_the_crop(
    tmp_path: Path, hide: Callable[..., Any]
) -> None:
    store = open_store(str(tmp_path))
    chain(store)
    hide(store, [crop_id_of(f"{ARCHIVE}/loose.jpg")])
    known = open_catalogue(store, "n2")
    assert "loose.jpg" not in known_state(known) and known.catalogue.erased == 1


def test_altered_catalogues_are_noticed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    chain(store)
    known = open_catalogue(store, "n2")
    partition = known.catalogue.partitions[0].file.key
    for key in ("catalogue/runs/n2.json", partition, *known.catalogue.taken_keys):
        data = bytearray(store.get(key))
        data[len(data) // 2] ^= 1
        store.put(key, bytes(data))
        with pytest.raises(CorruptObject):
            again = open_catalogue(store, "n2")
            find_shared_ids(compare_listing(listing({"x": ""}), again, read_tombstones(store), NONE), again)
        data[len(data) // 2] ^= 1
        store.put(key, bytes(data))


def test_a_listing_without_etags_counts_as_unchanged(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    make_run(store, "n0", crops({"a.jpg": "1", "b.jpg": "1", "gone.jpg": "1", "d.jpg": ""}))
    now = listing({"a.jpg": "1", "b.jpg": "2", "c.jpg": "1", "d.jpg": "7"})
    found: ListedCrops = compare_listing(now, open_catalogue(store, "n0"), read_tombstones(store), NONE)
    assert found.changes is not None
    assert keys(found.crops.read()["uri"]) == ["b.jpg", "c.jpg"]
    assert str(found.changes) == "1 new, 1 changed, 2 unchanged, 1 vanished"


def test_a_run_may_consist_of_vanished_crops_only(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    make_run(store, "n0", crops({"a.jpg": "1", "b.jpg": "1"}))
    run = make_run(store, "n1", crops({}), [f"{ARCHIVE}/b.jpg"], since_run="n0")
    assert (run.summary.listed, run.summary.embedded, run.summary.shards) == (0, 0, ())
    assert known_state(open_catalogue(store, "n1")) == {"a.jpg": "1"}
    assert [run.run_id for run in lineage(store, "n1")] == ["n0", "n1"]
