"""A run may be killed at any point: the same calls again lead to the same bytes, and no crop is lost."""

import hashlib
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import index.runs.purge
import index.runs.run
from index.archive.manifest import crop_id_of
from index.runs.accounting import QuarantinedCrop, crop_ids, quarantine_table
from index.runs.balance import check_run
from index.runs.folder import RunFolder
from index.runs.purge import purge_run
from index.runs.records import StoredRows
from index.runs.run import Run, find_unfinished, list_runs
from index.runs.shards import check_shard, read_parts, read_shards, shard_table, write_shard
from index.runs.tombstones import read_tombstones, write_tombstones
from index.schema import EMBEDDING_DIM, MANIFEST_SCHEMA, QUARANTINE_SCHEMA, SHARD_SCHEMA, UNKNOWN_TIME
from infra.errors import (
    BadSetting,
    BucketMissing,
    CorruptObject,
    CountMismatch,
    DuplicateCropId,
    EmptyArchive,
    FingerprintMismatch,
    Locked,
    Mismatch,
    ObjectMissing,
    SchemaMismatch,
)
from infra.servers import SeaweedFs
from infra.store import Store, StoreSettings, open_store

ARCHIVE, MODEL = "s3://archive", "f00d"
CROPS, ROWS_PER_PART, ROWS_PER_SHARD = 11, 3, 6


def manifest(count: int = CROPS, **values: Any) -> pa.Table:
    rows = []
    for number in range(count):
        uri = f"{ARCHIVE}/{number:03d}.jpg"
        known = {"crop_id": crop_id_of(uri), "uri": uri, "etag": "e", "size": 1, "last_modified": 5}
        unknown = {"camera_id": "", "captured_at": UNKNOWN_TIME, "track_id": ""}
        rows.append(known | unknown | values)
    return pa.Table.from_pylist(rows, MANIFEST_SCHEMA)


def create(store: Store, run_id: str = "r", **changes: Any) -> Run:
    started: dict[str, Any] = {
        "manifest": manifest(),
        "archive": ARCHIVE,
        "fingerprint": MODEL,
        "model": "s3://models/1",
        "settings": {"precision": "fp32"},
        "rows_per_part": ROWS_PER_PART,
        "rows_per_shard": ROWS_PER_SHARD,
    }
    return Run.create(store, run_id, **started | changes)


def outcome(crops: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Embed crops the way a perfect network would: equal rows give equal vectors. Every fifth is broken."""
    ids = np.asarray(crops["crop_id"])
    broken = ids % 5 == 0
    good = crops.filter(pa.array(~broken))
    count = good.num_rows
    vectors = np.repeat((np.asarray(good["crop_id"]) % 97).astype(np.float32)[:, None], EMBEDDING_DIM, axis=1)
    shard = shard_table(good, vectors, np.zeros(count, np.int32), np.ones(count, np.float32))
    bad = crops.filter(pa.array(broken)).select(["crop_id", "uri"]).to_pylist()
    return shard, quarantine_table(QuarantinedCrop(**row, stage="decode", cause="truncated") for row in bad)


def embed(run: Run, part: int) -> None:
    run.write_part(part, *outcome(run.part_manifest(part)))


def part_rows(run: Run, part: int) -> pa.Table:
    files = [run.folder.part_mark(part).shard]
    return pa.Table.from_batches(read_parts(run.store, files, fingerprint=MODEL))


def write_other_rows(run: Run, part: int, rows: pa.Table, *, fingerprint: str = MODEL) -> None:
    """Write a part with a mark, as release 0.1.0 did, without the checks of `write_part`."""
    folder = run.folder
    shard = write_shard(
        run.store, folder.part_keys(part)[0], rows, fingerprint=fingerprint, run_id=run.run_id
    )
    folder.write_mark(folder.part_mark_key(part), part, shard, folder.part_mark(part).quarantine)


def scenario(store: Store) -> Run:
    """Make the calls of `clvr embed`, from the first to the last."""
    run = create(store)
    for part in run.pending_parts():
        embed(run, part)
    if not run.finished:
        for shard in range(run.info.shards):
            run.compact(shard)
    run.finish()
    return run


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock, so whole records can be compared."""
    monkeypatch.setattr(index.runs.run, "utc_now", lambda: "2026-11-22T00:00:00.000+00:00")


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` catches it."""


class MortalStore(Store):
    """A store whose n-th write kills the process."""

    def __init__(self, uri: str, lives: int) -> None:
        super().__init__(uri, StoreSettings())
        self.lives = lives

    def _change(self) -> None:
        if self.lives == 0:
            raise Killed
        self.lives -= 1

    def put(self, key: str, data: bytes | Path) -> None:
        self._change()
        super().put(key, data)

    def create(self, key: str, data: bytes) -> None:
        self._change()
        super().create(key, data)

    def delete(self, *keys: str) -> None:
        for key in keys:
            self._change()
            super().delete(key)


class TestLife:
    def test_ends_with_shards_quarantine_and_verified_counts(self, store: Store) -> None:
        run = scenario(store)
        summary = run.summary
        assert run.finished
        assert (summary.listed, summary.embedded + summary.quarantined, summary.duplicates) == (
            CROPS,
            CROPS,
            0,
        )
        assert summary.causes == {"decode/truncated": summary.quarantined}
        assert summary.quarantined == run.quarantine().num_rows > 0
        assert (summary.fingerprint, summary.settings) == (MODEL, {"precision": "fp32"})
        assert summary.started <= summary.finished
        embedded = pa.Table.from_batches(read_shards(store, run.shard_keys(), fingerprint=MODEL))
        order = [uri for uri in run.manifest()["uri"].to_pylist() if uri in set(embedded["uri"].to_pylist())]
        assert embedded["uri"].to_pylist() == order
        for info in run.shards():
            assert check_shard(store, info.key, fingerprint=MODEL, expected=info) == info

    def test_leaves_only_the_files_of_a_finished_run(self, store: Store) -> None:
        run = scenario(store)
        names = sorted(info.key.removeprefix("runs/r/") for info in store.list())
        assert names == [
            "done.json",
            f"manifest/{run.info.manifest[:16]}-3-00000.parquet",
            "quarantine/quarantine-00000.parquet",
            "quarantine/quarantine-00001.parquet",
            "run.json",
            "shards/shard-00000.parquet",
            "shards/shard-00001.parquet",
        ]

    def test_reads_its_records_back(self, store: Store) -> None:
        run = scenario(store)
        again = Run.open(store, "r")
        assert (again.info, again.summary) == (run.info, run.summary)
        travelled = pickle.loads(pickle.dumps(run))  # noqa: S301
        assert (travelled.info, travelled.store.uri) == (run.info, store.uri)

    def test_is_made_of_parts_that_are_fixed_slices_of_the_manifest(self, store: Store) -> None:
        run = create(store)
        assert (run.info.parts, run.info.shards, run.pending_parts()) == (4, 2, [0, 1, 2, 3])
        assert run.pending_rows() == run.info.rows
        parts = pa.concat_tables([run.part_manifest(part) for part in range(4)])
        assert parts.equals(run.manifest()) and parts.equals(manifest())
        embed(run, 2)
        assert run.pending_parts() == [0, 1, 3]
        assert run.pending_rows() == run.info.rows - ROWS_PER_PART
        with pytest.raises(BadSetting, match="has 4 parts, not one of number 4"):
            run.part_manifest(4)

    def test_splits_the_manifest_of_many_parts_into_files(self, store: Store) -> None:
        run = create(store, manifest=manifest(600), rows_per_part=1)
        assert len(run.folder.manifest_keys()) == 3
        assert run.part_manifest(599)["uri"].to_pylist() == [f"{ARCHIVE}/599.jpg"]
        assert run.manifest().equals(manifest(600))

    def test_finished_parts_are_counted_from_their_marks(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = create(store)
        first, second, *_ = run.pending_parts()
        embed(run, first)
        rows = run.part_manifest(second).select(["crop_id", "uri"]).to_pylist()
        bad = quarantine_table(QuarantinedCrop(**row, stage="fetch", cause="missing") for row in rows)
        run.write_part(second, SHARD_SCHEMA.empty_table(), bad)
        embedded, causes = run.counted_parts()
        assert embedded + causes.total() == run.info.rows - run.pending_rows()
        assert causes["fetch/missing"] == len(rows)
        # The marks of a release without causes in them: the quarantine is read.
        for part in (first, second):
            key = run.folder.part_mark_key(part)
            mark = replace(StoredRows.read(store, key), causes=None)
            store.put(key, mark.to_json())
        assert run.counted_parts() == (embedded, causes)

    def test_leaves_out_shards_without_rows(self, store: Store) -> None:
        run = create(store)
        for part in run.pending_parts():
            rows = run.part_manifest(part).select(["crop_id", "uri"]).to_pylist()
            bad = quarantine_table(QuarantinedCrop(**row, stage="fetch", cause="missing") for row in rows)
            run.write_part(part, SHARD_SCHEMA.empty_table(), bad)
        summary = run.finish()
        assert (summary.embedded, summary.quarantined, run.shard_keys()) == (0, CROPS, [])

    def test_quarantines_crops_that_no_shard_can_hold(self, store: Store) -> None:
        crops = pa.concat_tables(
            [manifest(), manifest(1, uri="s3://a/" + "x" * 1100, crop_id=2, track_id="t" * 200)]
        )
        run = create(store, manifest=crops)
        for part in run.pending_parts():
            assert 2 not in run.part_manifest(part)["crop_id"].to_pylist()
            embed(run, part)
        assert run.finish().causes["manifest/uri-too-long"] == 1
        assert run.summary.listed == CROPS + 1

    def test_over_s3_is_the_same(self, seaweedfs: SeaweedFs, bucket: str) -> None:
        store = open_store(f"{bucket}/out", seaweedfs.settings)
        assert find_unfinished(store, archive=ARCHIVE, fingerprint=MODEL) is None
        run = scenario(store)
        assert run.finish() == run.summary
        assert list(store.list("runs/r/parts")) == []
        assert run.quarantine().num_rows == run.summary.quarantined


class TestStarting:
    def test_again_with_the_same_input_gives_the_same_run(self, store: Store) -> None:
        first = create(store)
        shuffled = manifest().take(pa.array(np.random.default_rng(0).permutation(CROPS)))
        again = create(store, manifest=shuffled, rows_per_part=5, settings={"precision": "bf16"})
        assert again.info == first.info

    def test_counts_uris_that_are_listed_twice(self, store: Store) -> None:
        run = create(store, manifest=pa.concat_tables([manifest(), manifest(4)]))
        for part in run.pending_parts():
            embed(run, part)
        summary = run.finish()
        assert (summary.listed, summary.duplicates) == (CROPS + 4, 4)
        assert summary.listed == summary.embedded + summary.quarantined + summary.duplicates

    def test_refuses_a_run_id_of_another_model_with_both_fingerprints(self, store: Store) -> None:
        create(store)
        with pytest.raises(FingerprintMismatch, match="f00d, not beef"):
            create(store, fingerprint="beef")

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"manifest": manifest(5)}, "manifest"),
            ({"archive": "s3://other"}, "s3://archive, not s3://other"),
        ],
    )
    def test_refuses_a_run_id_of_another_input(
        self, store: Store, change: dict[str, Any], named: str
    ) -> None:
        run = create(store)
        with pytest.raises(Mismatch, match=named):
            create(store, **change)
        assert run.manifest().equals(manifest())

    def test_refuses_two_crops_of_one_id(self, store: Store) -> None:
        with pytest.raises(DuplicateCropId):
            create(store, manifest=manifest(2, crop_id=7))

    def test_refuses_an_empty_manifest_an_invalid_id_and_no_rows_per_part(self, store: Store) -> None:
        with pytest.raises(EmptyArchive):
            create(store, manifest=MANIFEST_SCHEMA.empty_table())
        for name in ("", "../x", "a/b", ".hidden", "x" * 200):
            with pytest.raises(BadSetting, match="cannot name a run"):
                create(store, name)
        with pytest.raises(BadSetting, match="0 rows per part"):
            create(store, rows_per_part=0)

    @pytest.mark.parametrize("same", [True, False])
    def test_of_two_racers_one_wins(self, store: Store, monkeypatch: pytest.MonkeyPatch, same: bool) -> None:
        together = Barrier(2)
        monkeypatch.setattr(RunFolder, "started", lambda folder: together.wait() < 0)
        with ThreadPoolExecutor(2) as pool:
            racers = [pool.submit(create, store, manifest=manifest(count)) for count in (8, 8 if same else 9)]
            lost = [racer.exception() for racer in racers if racer.exception() is not None]
        assert [type(error) for error in lost] == ([] if same else [Mismatch])
        winner = Run.open(store, "r")
        assert winner.manifest().num_rows == winner.info.listed
        assert len(list(store.list("runs/r/manifest"))) == 1


class TestParts:
    def test_have_the_same_bytes_for_rows_in_any_order(self, store: Store) -> None:
        run = create(store)
        shard, bad = outcome(run.part_manifest(0))
        run.write_part(0, shard, bad)
        mark = run.folder.part_mark(0)
        before = [store.get(file.key) for file in (mark.shard, mark.quarantine)]
        run.write_part(0, shard.take(list(range(shard.num_rows))[::-1]), bad)
        assert run.folder.part_mark(0) == mark
        assert [store.get(file.key) for file in (mark.shard, mark.quarantine)] == before

    def test_of_two_writers_never_overwrite_what_the_mark_of_the_other_names(self, store: Store) -> None:
        run = create(store)
        embed(run, 0)
        first = run.folder.part_mark(0)
        shard, bad = outcome(run.part_manifest(0))
        other = shard.set_column(6, "model_id", pa.array([5] * shard.num_rows, pa.int32()))
        run.write_part(0, other.select(shard.schema.names).cast(SHARD_SCHEMA), bad)
        second = run.folder.part_mark(0)
        assert first.shard.key != second.shard.key and first.quarantine == second.quarantine
        for mark, rows in ((first, shard), (second, other)):
            read = pa.Table.from_batches(read_parts(store, [mark.shard], fingerprint=MODEL))
            ids = [crop_ids(table).tolist() for table in (read, rows)]
            assert sorted(ids[0]) == sorted(ids[1])
            in_order = rows.take([ids[1].index(crop) for crop in ids[0]]).select(read.schema.names)
            assert read.replace_schema_metadata().equals(in_order.cast(SHARD_SCHEMA))

    def test_without_a_mark_are_pending(self, store: Store) -> None:
        run = create(store)
        embed(run, 0)
        mark = run.folder.part_mark(0)
        store.delete(run.folder.part_mark_key(0))
        # An older release named the files of parts so, and had no marks.
        store.put("runs/r/parts/part-00000.parquet", store.get(mark.shard.key))
        store.put("runs/r/parts/quarantine-00000.parquet", store.get(mark.quarantine.key))
        assert run.pending_parts() == [0, 1, 2, 3]
        for part in run.pending_parts():
            embed(run, part)
        run.finish()
        assert list(store.list("runs/r/parts")) == []

    def test_overwrite_the_quarantine_of_an_interrupted_attempt(self, store: Store) -> None:
        run = create(store)
        rows = run.part_manifest(0).select(["crop_id", "uri"]).to_pylist()
        all_bad = quarantine_table(QuarantinedCrop(**row, stage="fetch", cause="unreachable") for row in rows)
        run.write_part(0, SHARD_SCHEMA.empty_table(), all_bad)
        embed(run, 0)
        assert "fetch" not in run.quarantine()["stage"].to_pylist()

    def test_with_lost_unexpected_or_repeated_crops_are_refused(self, store: Store) -> None:
        run = create(store, manifest=manifest(CROPS))
        shard, bad = outcome(run.part_manifest(0))
        other, _ = outcome(run.part_manifest(1))
        lost = shard["crop_id"][0].as_py()
        with pytest.raises(CountMismatch, match=rf"part 0 of run r: .* 1 lost: {lost}"):
            run.write_part(0, shard.slice(1), bad)
        with pytest.raises(CountMismatch, match="not in the manifest"):
            run.write_part(0, pa.concat_tables([shard, other]), bad)
        with pytest.raises(DuplicateCropId, match=str(lost)):
            run.write_part(0, pa.concat_tables([shard, shard.slice(0, 1)]), bad)
        both = quarantine_table([QuarantinedCrop(lost, "u", "embed", "not-finite")])
        with pytest.raises(CountMismatch, match="embedded and quarantined"):
            run.write_part(0, shard, pa.concat_tables([bad, both]))
        assert run.pending_parts() == [0, 1, 2, 3]

    def test_with_an_invalid_quarantine_are_refused(self, store: Store) -> None:
        run = create(store)
        shard, bad = outcome(run.part_manifest(0))
        with pytest.raises(SchemaMismatch, match="'guess'"):
            run.write_part(0, shard, quarantine_table([QuarantinedCrop(1, "u", "guess", "x")]))
        with pytest.raises(SchemaMismatch, match="columns of a quarantine"):
            run.write_part(0, shard, bad.drop_columns("cause"))
        nulls = pa.Table.from_pylist([{"crop_id": 1, "uri": None}], QUARANTINE_SCHEMA)
        with pytest.raises(SchemaMismatch, match="null in column uri"):
            run.write_part(0, shard, nulls)


class TestFinishing:
    def test_is_refused_while_parts_are_pending(self, store: Store) -> None:
        run = create(store)
        for part in (0, 1, 3):
            embed(run, part)
        for step in (run.finish, lambda: run.compact(1)):
            with pytest.raises(CountMismatch, match="1 of 4 parts pending: 2"):
                step()
        run.compact(0)
        with pytest.raises(CountMismatch, match="run r is not finished"):
            run.shard_keys()
        assert not run.finished

    def test_finds_crops_that_a_changed_part_lost_or_repeated(self, store: Store) -> None:
        run = create(store)
        for part in run.pending_parts():
            embed(run, part)
        rows = part_rows(run, 1)
        write_other_rows(run, 1, rows.slice(1))
        with pytest.raises(CountMismatch, match=rf"1 lost: {rows['crop_id'][0]}"):
            run.finish()
        store.delete(run.folder.shard_mark_key(0))
        write_other_rows(run, 1, pa.concat_tables([rows, rows]))
        with pytest.raises(DuplicateCropId, match="run r holds"):
            run.finish()
        assert not run.finished

    def test_joins_parts_of_an_older_release(self, store: Store) -> None:
        runs = create(store), create(store, "other")
        for run in runs:
            for part in run.pending_parts():
                embed(run, part)
        write_other_rows(runs[1], 1, part_rows(runs[1], 1))
        tables = []
        for run in runs:
            run.finish()
            rows = pa.Table.from_batches(read_shards(store, run.shard_keys()))
            tables.append(rows.replace_schema_metadata())
        assert tables[0].equals(tables[1])

    def test_refuses_a_part_of_another_model(self, store: Store) -> None:
        run = create(store)
        for part in run.pending_parts():
            embed(run, part)
        rows = part_rows(run, 1)
        write_other_rows(run, 1, rows, fingerprint="beef")
        with pytest.raises(FingerprintMismatch, match=r"beef.*f00d"):
            run.finish()

    def test_refuses_a_part_that_differs_from_its_mark(self, store: Store) -> None:
        run = create(store)
        for part in run.pending_parts():
            embed(run, part)
        first, second = run.folder.part_mark(0), run.folder.part_mark(1)
        store.put(second.shard.key, store.get(first.shard.key))
        with pytest.raises(CorruptObject, match="was altered"):
            run.finish()

    def test_may_run_in_parallel(self, store: Store) -> None:
        run = create(store)
        for part in run.pending_parts():
            embed(run, part)
        with ThreadPoolExecutor(2) as pool:
            infos = list(pool.map(lambda shard: Run.open(store, "r").compact(shard), [0, 1, 0, 1]))
        assert infos[:2] == infos[2:]
        assert run.finish().shards == tuple(infos[:2])
        assert run.compact(1) == infos[1]
        assert run.pending_parts() == []


class TestOpening:
    def test_a_missing_run_is_named(self, store: Store) -> None:
        scenario(store)
        with pytest.raises(ObjectMissing, match=r"runs/q/run\.json"):
            Run.open(store, "q")

    @pytest.mark.parametrize("document", [b"[]", b"{}", b'{"ledger_version": 1}'])
    def test_another_record_is_refused(self, store: Store, document: bytes) -> None:
        store.put("runs/r/run.json", document)
        with pytest.raises(SchemaMismatch, match=r"runs/r/run\.json"):
            Run.open(store, "r")

    @pytest.mark.parametrize("document", [b"", b"{", b"\xff"])
    def test_a_damaged_record_is_refused(self, store: Store, document: bytes) -> None:
        store.put("runs/r/run.json", document)
        with pytest.raises(CorruptObject, match=r"runs/r/run\.json"):
            Run.open(store, "r")

    def test_a_run_in_a_folder_of_another_name_is_refused(self, store: Store) -> None:
        create(store)
        store.put("runs/q/run.json", store.get("runs/r/run.json"))
        with pytest.raises(SchemaMismatch, match=r"runs/q/run\.json is of run r"):
            Run.open(store, "q")

    def test_another_version_is_named(self, store: Store) -> None:
        store.put("runs/r/run.json", b'{"ledger_version": 9}')
        with pytest.raises(SchemaMismatch, match="version 9, this release reads version 1"):
            Run.open(store, "r")

    def test_an_altered_manifest_is_refused(self, store: Store) -> None:
        run, other = create(store), create(store, "other", manifest=manifest(CROPS, etag="f"))
        whole = store.get(run.folder.manifest_key(0))
        store.put(run.folder.manifest_key(0), store.get(other.folder.manifest_key(0)))
        for read in (run.manifest, lambda: run.part_manifest(1)):
            with pytest.raises(CorruptObject, match="is a file of run other"):
                read()
        store.delete(run.folder.key("run.json"))
        store.put(run.folder.manifest_key(0), whole)
        earlier = create(store, manifest=manifest(CROPS, etag="f"))
        store.put(earlier.folder.manifest_key(0), whole)
        with pytest.raises(CorruptObject, match="is a file of another manifest"):
            earlier.part_manifest(1)

    def test_an_altered_manifest_of_an_older_release_is_refused(self, store: Store) -> None:
        run = create(store)
        path = Path(store.uri_of(run.folder.manifest_key(0)))
        rows = run.manifest().set_column(2, "etag", pa.array(["f"] * CROPS))
        pq.write_table(rows.replace_schema_metadata({"clvr.run_id": "r"}), path)
        with pytest.raises(CorruptObject, match="manifest of run r was altered"):
            run.manifest()

    def test_the_newest_unfinished_run_is_found(self, store: Store) -> None:
        assert list_runs(store) == []
        scenario(store)
        for name in ("b", "a"):
            time.sleep(0.002)
            create(store, name)
        store.put("runs/killed-early/manifest/x.parquet", b"")
        assert [run.run_id for run in list_runs(store)] == ["r", "b", "a"]
        run = find_unfinished(store, archive=ARCHIVE, fingerprint=MODEL)
        assert run is not None and run.run_id == "a"
        assert find_unfinished(store, archive=ARCHIVE, fingerprint="beef") is None
        assert find_unfinished(store, archive="s3://other", fingerprint=MODEL) is None

    def test_a_missing_bucket_is_not_an_empty_list(self, seaweedfs: SeaweedFs, bucket: str) -> None:
        nowhere = open_store(f"{bucket}-nowhere", seaweedfs.settings)
        with pytest.raises(BucketMissing):
            list_runs(nowhere)
        with pytest.raises(BucketMissing):
            create(nowhere)


class TestKills:
    @pytest.mark.usefixtures("still")
    def test_before_any_write_do_not_change_the_result(self, tmp_path: Path) -> None:
        scenario(open_store(str(tmp_path / "whole")))
        expected = contents(tmp_path / "whole")
        for lives in range(1000):
            folder = tmp_path / f"killed-{lives}"
            try:
                scenario(MortalStore(str(folder), lives))
            except Killed:
                scenario(open_store(str(folder)))
                assert contents(folder) == expected, f"killed before change {lives}"
            else:
                assert contents(folder) == expected
                break
        assert lives > 20

    @pytest.mark.usefixtures("still")
    def test_at_every_step_do_not_change_the_result(self, tmp_path: Path) -> None:
        scenario(open_store(str(tmp_path / "whole")))
        deaths = 0
        while deaths < 1000:
            try:
                scenario(MortalStore(str(tmp_path / "killed"), 3))
            except Killed:
                deaths += 1
            else:
                break
        assert 3 < deaths < 1000
        assert contents(tmp_path / "killed") == contents(tmp_path / "whole")

    @pytest.mark.usefixtures("still")
    def test_by_sigkill_do_not_change_the_result(self, tmp_path: Path) -> None:
        scenario(open_store(str(tmp_path / "whole")))
        program = textwrap.dedent(
            f"""
            import importlib.util, sys
            spec = importlib.util.spec_from_file_location("scenario", {__file__!r})
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            module.index.runs.run.utc_now = lambda: "2026-11-22T00:00:00.000+00:00"
            print("ready", flush=True)
            module.scenario(module.open_store({str(tmp_path / "killed")!r}))
            """
        )
        chance = random.Random(7)
        for deaths in range(100):
            child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            if deaths < 3:
                time.sleep(chance.uniform(0, 0.06))
                os.kill(child.pid, signal.SIGKILL)
            if child.wait() == 0:
                break
        # An interrupted write leaves a temporary file, which no listing of a store includes.
        killed = contents(tmp_path / "killed")
        assert {name: digest for name, digest in killed.items() if "#" not in name} == contents(
            tmp_path / "whole"
        )


def test_a_purge_opens_only_the_shards_whose_parts_hold_erased_crops(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = scenario(store)
    crop = run.folder.part_rows(0)["crop_id"][0].as_py()
    opened: list[str] = []
    original = index.runs.purge.read_shards
    monkeypatch.setattr(
        index.runs.purge,
        "read_shards",
        lambda store, keys, **options: original(
            store, [opened.append(key) or key for key in keys], **options
        ),
    )
    write_tombstones(store, "other", np.array([crop + 1]), [None])
    store.put("erasures/other/receipt.json", b"{}")
    assert purge_run(run, read_tombstones(store)).rows == 0 and not opened
    before = run.summary
    write_tombstones(store, "e", np.array([crop]), [None])
    store.put("erasures/e/receipt.json", b"{}")
    purged = purge_run(run, read_tombstones(store))
    assert (purged.manifest, purged.shards + purged.quarantine) == (1, 1)
    after = Run.open(store, "r").summary
    assert set(opened) <= {f"runs/r/{before.shards[0].key}"}
    assert after.shards[1:] == before.shards[1:] and after.quarantine[1:] == before.quarantine[1:]
    assert (after.shards[0], after.quarantine[0]) != (before.shards[0], before.quarantine[0])
    assert check_run(Run.open(store, "r")).listed == CROPS


class TestBesideAPurge:
    """Whatever an embedding writes when a purge has written the run again is removed by itself."""

    @pytest.fixture
    def stale(self, store: Store) -> Run:
        """A run as an embedding opened it; then one of its crops was erased and purged."""
        run = create(store)
        embed(run, 0)
        return run

    @staticmethod
    def purge(run: Run, part: int) -> str:
        crop = run.folder.part_rows(part).slice(0, 1).to_pylist()[0]
        write_tombstones(run.store, "e", np.array([crop["crop_id"]]), [None])
        run.store.put("erasures/e/receipt.json", b"{}")
        purge_run(Run.open(run.store, "r"), read_tombstones(run.store))
        return str(crop["uri"])

    @staticmethod
    def objects_with(store: Store, uri: str) -> list[str]:
        found = []
        for info in store.list("runs"):
            if info.key.endswith(".parquet"):
                table = pq.read_table(Path(store.uri, info.key))
                if "uri" in table.column_names and uri in table["uri"].to_pylist():
                    found.append(info.key)
        return found

    def finish_again(self, store: Store) -> None:
        run = Run.open(store, "r")
        for part in run.pending_parts():
            embed(run, part)
        run.finish()
        assert check_run(run).listed == CROPS

    def test_a_part_that_was_computed_before_is_refused(
        self, stale: Run, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows, crops = stale.folder.part_rows(1), stale.part_manifest(1)
        uri = self.purge(stale, 1)
        with pytest.raises(Locked, match="purged from run r meanwhile"):
            stale.write_part(1, *outcome(crops))
        # The same if the purge begins within the write.
        monkeypatch.setattr(stale.folder, "part_rows", lambda part: rows)
        with pytest.raises(Locked, match="purged from run r meanwhile"):
            stale.write_part(1, *outcome(crops))
        assert self.objects_with(store, uri) == []
        assert Run.open(store, "r").pending_parts() == [1, 2, 3]
        self.finish_again(store)

    def test_a_shard_whose_rows_were_read_before_is_refused(
        self, stale: Run, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for part in range(1, 4):
            embed(stale, part)
        uris: list[str] = []

        def write_beside(place: Store, key: str, rows: Any, **options: Any) -> Any:
            batches = list(rows)
            uris.append(self.purge(stale, 1))
            return write_shard(place, key, batches, **options)

        with monkeypatch.context() as patched:
            patched.setattr(index.runs.run, "write_shard", write_beside)
            with pytest.raises(Locked, match="purged from run r meanwhile"):
                stale.finish()
        assert self.objects_with(store, uris[0]) == []
        self.finish_again(store)
