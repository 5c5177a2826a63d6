"""Runs: one embedding of one manifest by one model, in an immutable folder that may be killed at any point.

    runs/<run_id>/run.json                          first, once (If-None-Match)
                  manifest/<digest>-00000.parquet   one row group a part
                  vanished.parquet                  of an incremental run: crops that are gone since
                  parts/…                           work in progress, removed at the end
                  shards/shard-00000.parquet
                  quarantine/quarantine-00000.parquet
                  done.json                         last: counts and digests
                  timings/<time>.json               where the time went, an attempt each; nothing rests on it

Each step writes whole objects under fixed names, and its done-mark after everything else, so a step that
was cut off is simply repeated.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.archive.manifest import crop_id_of, drop_duplicates, manifest_digest, normalize_manifest
from index.documents import package_version, utc_now
from index.parquet import open_parquet, write_table
from index.runs.accounting import (
    check_quarantine,
    crop_ids,
    sort_like,
    split_usable,
    verify_partition,
    verify_run,
)
from index.runs.folder import RunFolder
from index.runs.records import RunInfo, RunSummary
from index.runs.shards import ShardInfo, read_shards, write_shard
from index.schema import MANIFEST_SCHEMA, QUARANTINE_SCHEMA
from infra.errors import (
    BadSetting,
    CorruptShard,
    CountMismatch,
    EmptyArchive,
    ObjectExists,
    ObjectMissing,
    SchemaMismatch,
)
from infra.store import Store, ignore_missing_root

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Run:
    """One run. Pickles as its store and run.json; every method may be repeated."""

    def __init__(self, store: Store, info: RunInfo) -> None:
        self.store = store
        self.info = info
        self.folder = RunFolder(store, info)

    def __repr__(self) -> str:
        return f"Run({self.store.uri_of(self.folder.key())!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Run, (self.store, self.info)

    @property
    def run_id(self) -> str:
        """Name of the run's folder."""
        return self.info.run_id

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model."""
        return self.info.fingerprint

    @classmethod
    def create(
        cls,
        store: Store,
        run_id: str,
        *,
        manifest: pa.Table,
        archive: str,
        fingerprint: str,
        model: str,
        settings: dict[str, Any],
        rows_per_part: int = 4096,
        rows_per_shard: int = 122_880,
        vanished: Any = (),
    ) -> Self:
        """Start a run, or return the one that was started with the same archive, manifest and model.

        The manifest is sorted and rid of duplicates, which are counted. A shard is made of whole parts: at
        most `rows_per_shard` rows, or one part. Sizes of a run that exists stay as they are. `vanished`: URIs
        (string Array) of crops that are gone from the archive; a run may consist of nothing else.
        Raises FingerprintMismatch or Mismatch if the run_id is taken by another input, DuplicateCropId,
        EmptyArchive, BadSetting, SchemaMismatch.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise BadSetting(f"'{run_id}' cannot name a run", remedy="Use letters, digits, '.', '_' and '-'.")
        if rows_per_part < 1 or rows_per_shard < 1:
            raise BadSetting(f"{rows_per_part} rows a part and {rows_per_shard} a shard cannot be")
        crops, duplicates = drop_duplicates(normalize_manifest(manifest))
        if not crops.num_rows and not len(vanished):
            raise EmptyArchive(f"the manifest of run {run_id} has no rows")
        info = RunInfo(
            run_id=run_id,
            archive=archive,
            fingerprint=fingerprint,
            model=model,
            settings=settings,
            manifest=manifest_digest(crops),
            listed=manifest.num_rows,
            duplicates=duplicates,
            rows_per_part=rows_per_part,
            parts_per_shard=max(1, rows_per_shard // rows_per_part),
            created=utc_now(),
            version=package_version(),
        )
        run = cls(store, info)
        if not run.folder.started():
            run.folder.write_manifest(crops)
            if len(vanished):
                run.folder.write_vanished(vanished)
            try:
                store.create(run.folder.key("run.json"), info.to_json())
            except ObjectExists:
                pass  # another one was faster, or our own answer was lost: the comparison below tells
            else:
                return run
        there = cls.open(store, run_id)
        if there.folder.manifest_key(0) != run.folder.manifest_key(0):
            store.delete(*run.folder.manifest_keys())
        there.info.require_same(info)
        return there

    @classmethod
    def open(cls, store: Store, run_id: str) -> Self:
        """Open a run, finished or not. Raises ObjectMissing, SchemaMismatch."""
        key = f"runs/{run_id}/run.json"
        info = RunInfo.read(store, key)
        if info.run_id != run_id:
            raise SchemaMismatch(
                f"{store.uri_of(key)} is of run {info.run_id}",
                remedy="A run may be copied to another store, but keeps its name.",
            )
        return cls(store, info)

    @property
    def finished(self) -> bool:
        """Whether done.json stands."""
        return "summary" in self.__dict__ or self.store.head(self.folder.key("done.json")) is not None

    @cached_property
    def summary(self) -> RunSummary:
        """What done.json says. Raises CountMismatch for a run that is not finished."""
        key = self.folder.key("done.json")
        try:
            return RunSummary.read(self.store, key)
        except ObjectMissing as missing:
            raise CountMismatch(
                f"run {self.run_id} is not finished", remedy="Resume it with `clvr embed`."
            ) from missing

    def shard_keys(self) -> list[str]:
        """Keys, in the store, of the shards that have rows. Raises CountMismatch if not finished."""
        return [facts.key for facts in self.shards()]

    def shards(self) -> list[ShardInfo]:
        """Return the shards that have rows, as done.json states them, with keys in the store."""
        return [
            ShardInfo(self.folder.key(facts.key), facts.rows, facts.bytes, facts.sha256)
            for facts in self.summary.shards
            if facts.rows
        ]

    def manifest(self) -> pa.Table:
        """Return the whole manifest. Raises CorruptShard if it is not the one that the run was made of."""
        table = self.folder.read_tables(MANIFEST_SCHEMA, self.folder.manifest_keys())
        if manifest_digest(table) != self.info.manifest:
            raise CorruptShard(f"the manifest of run {self.run_id} was altered", remedy="Make a new run.")
        return table

    def quarantine(self) -> pa.Table:
        """Return the quarantine; of a run that is not finished, that of the parts done so far."""
        if self.finished:
            keys = [self.folder.quarantine_key(number) for number in range(self.info.shards)]
        else:
            keys = [self.folder.part_keys(part)[1] for part in sorted(self.folder.done_parts())]
        return self.folder.read_tables(QUARANTINE_SCHEMA, keys)

    def pending_parts(self) -> list[int]:
        """Numbers of the parts whose shard rows are not written, ascending."""
        if self.finished:
            return []
        return sorted(set(range(self.info.parts)) - self.folder.done_parts())

    def pending_rows(self) -> int:
        """Count the crops of the parts that are not written yet."""
        pending = self.pending_parts()
        short = self.info.parts * self.info.rows_per_part - self.info.rows
        return len(pending) * self.info.rows_per_part - (short if self.info.parts - 1 in pending else 0)

    def part_manifest(self, part: int) -> pa.Table:
        """Return the crops of one part that are to be embedded.

        Crops with a URI, camera or track too long for the index are left out; `write_part` quarantines them.
        """
        rows = self.folder.part_rows(part)
        return rows.filter(split_usable(rows)[0])

    def write_part(self, part: int, shard: pa.Table, quarantine: pa.Table) -> None:
        """Write the outcome of one part; the order of rows does not matter, a repetition overwrites.

        Raises CountMismatch unless each crop of `part_manifest(part)` is in exactly one of the two tables,
        CorruptShard and SchemaMismatch for what they must not hold.
        """
        rows = self.folder.part_rows(part)
        usable, refused = split_usable(rows)
        check_quarantine(quarantine, f"part {part} of run {self.run_id}")
        verify_partition(
            f"part {part} of run {self.run_id}",
            listed=crop_ids(rows.filter(usable)),
            embedded=crop_ids(shard),
            quarantined=crop_ids(quarantine),
        )
        shard_key, quarantine_key = self.folder.part_keys(part)
        left_out = sort_like(pa.concat_tables([quarantine, refused]), rows)
        write_table(self.store, quarantine_key, left_out, metadata=self.folder.footer)
        # The shard is the done-mark of the part, so it comes last.
        write_shard(
            self.store, shard_key, sort_like(shard, rows), fingerprint=self.fingerprint, run_id=self.run_id
        )

    def compact(self, shard: int) -> ShardInfo:
        """Stream the parts of one shard into shards/ and quarantine/. Raises CountMismatch if any is pending.

        Independent of other shards, so many may be compacted at once.
        """
        if self.finished:
            return self.summary.shards[shard]
        if self.store.head(self.folder.record_key(shard)) is not None:
            return ShardInfo.read(self.store, self.folder.record_key(shard))
        first = shard * self.info.parts_per_shard
        parts = range(first, min(first + self.info.parts_per_shard, self.info.parts))
        self.folder.require_done(set(parts))
        keys = [self.folder.part_keys(part) for part in parts]
        left_out = self.folder.read_tables(QUARANTINE_SCHEMA, [quarantine for _, quarantine in keys])
        write_table(self.store, self.folder.quarantine_key(shard), left_out, metadata=self.folder.footer)
        rows = read_shards(self.store, [rows for rows, _ in keys], fingerprint=self.fingerprint)
        name = f"shards/shard-{shard:05d}.parquet"
        written = write_shard(
            self.store, self.folder.key(name), rows, fingerprint=self.fingerprint, run_id=self.run_id
        )
        facts = ShardInfo(name, written.rows, written.bytes, written.sha256)
        self.store.put(self.folder.record_key(shard), facts.to_json())
        return facts

    def finish(self) -> RunSummary:
        """Compact what is not compacted, prove the accounting, write done.json, remove the parts.

        Raises CountMismatch (parts pending, or crops lost or foreign, with up to ten ids), DuplicateCropId.
        """
        if not self.finished:
            self.folder.require_done(set(range(self.info.parts)))
            shards = tuple(self.compact(shard) for shard in range(self.info.shards))
            causes = verify_run(self.folder, shards)
            embedded = sum(shard.rows for shard in shards)
            summary = RunSummary(
                run_id=self.run_id,
                archive=self.info.archive,
                fingerprint=self.fingerprint,
                manifest=self.info.manifest,
                listed=self.info.listed,
                embedded=embedded,
                quarantined=causes.total(),
                duplicates=self.info.duplicates,
                causes=dict(causes),
                shards=shards,
                started=self.info.created,
                finished=utc_now(),
                settings=self.info.settings,
            )
            with suppress(ObjectExists):  # a second finisher came to the same result; its times stand
                self.store.create(self.folder.key("done.json"), summary.to_json())
        self.store.delete(*(found.key for found in self.store.list(self.folder.key("parts"))))
        return self.summary


def list_runs(store: Store) -> list[Run]:
    """Return the runs below a store's root, the oldest first. One that was killed before run.json is none."""
    folders: list[str] = []
    with ignore_missing_root(store):
        folders = store.folders("runs")
    runs = []
    for folder in folders:
        with suppress(ObjectMissing):
            runs.append(Run.open(store, folder.rpartition("/")[2]))
    return sorted(runs, key=lambda run: (run.info.created, run.run_id))


def find_unfinished(
    store: Store, *, archive: str, fingerprint: str, origin: Mapping[str, Any] | None = None
) -> Run | None:
    """Return the newest run of this archive by this model that has no done.json.

    origin: settings that the run must have been started with, such as where its manifest came from; one
    that it does not name counts as None.
    """
    for run in reversed(list_runs(store)):
        known = run.info.settings
        same = all(known.get(name) == value for name, value in (origin or {}).items())
        if same and (run.info.archive, run.fingerprint) == (archive, fingerprint) and not run.finished:
            return run
    return None


NAME = "vanished.parquet"
_SCHEMA = pa.schema([("uri", pa.string())])


def vanished_ids(run: Run) -> NDArray[np.int64]:
    """Return the crop_ids (n,) that the run lists as vanished, ascending; none if it lists none.

    Raises SchemaMismatch for a file without URIs, CorruptShard.
    """
    uris = vanished_uris(run)["uri"].to_pylist()
    return np.unique(np.fromiter(map(crop_id_of, uris), np.int64, len(uris)))


def vanished_uris(run: Run) -> pa.Table:
    """Return what the run lists as vanished, one column `uri`. Raises what `vanished_ids` raises."""
    key = run.folder.key(NAME)
    try:
        with open_parquet(run.store, key) as file:
            if "uri" not in file.schema_arrow.names:
                raise SchemaMismatch(f"{run.store.uri_of(key)} has no column uri")
            return file.read(columns=["uri"]).cast(_SCHEMA)
    except ObjectMissing:
        return _SCHEMA.empty_table()
