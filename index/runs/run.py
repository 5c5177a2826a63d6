"""Runs: one embedding of one manifest by one model, in a folder that survives a kill at any point.

    runs/<run_id>/run.json                          first, written once (If-None-Match)
                  manifest/<digest>-00000.parquet   one row group per part
                  vanished-<digest>.parquet         of an incremental run: crops that are gone
                  parts/part-00000.json             mark of a finished part: its files, with their digests
                  parts/…                           work in progress, removed at the end
                  shards/shard-00000.parquet
                  quarantine/quarantine-00000.parquet
                  done.json                         last: counts, and all files with their digests
                  timings/<time>.json               one per attempt, for information only

Each step writes whole objects under fixed names, and its done-mark last, so an interrupted step is simply
repeated.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.archive.manifest import drop_duplicates, manifest_digest, normalize_manifest
from index.archive.reassigned import read_reassigned, repeated_ids
from index.archive.spool import TableFile
from index.documents import package_version, utc_now
from index.parquet import StoredFile, write_table
from index.runs.accounting import (
    ShardCounts,
    check_quarantine,
    count_causes,
    crop_ids,
    sort_like,
    split_usable,
    verify_partition,
    verify_shards,
)
from index.runs.folder import RunFolder
from index.runs.order import in_shard_order
from index.runs.records import RunInfo, RunSummary, StoredRows
from index.runs.shards import ShardInfo, read_parts, write_shard
from index.runs.tombstones import TombstoneWatch
from index.schema import MANIFEST_SCHEMA, QUARANTINE_SCHEMA
from infra.errors import (
    BadSetting,
    CorruptObject,
    CountMismatch,
    DuplicateCropId,
    EmptyArchive,
    Locked,
    ObjectExists,
    ObjectMissing,
    SchemaMismatch,
)
from infra.store import Store, ignore_missing_root

_VANISHED_SCHEMA = pa.schema([("uri", pa.string())])
_MARKS_AT_A_TIME = 1000
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class _UniqueCrops:
    """The crops of a manifest, each once; its tables are read as often as needed."""

    def __init__(self, manifest: pa.Table | TableFile) -> None:
        self._manifest = manifest
        self.num_rows = 0
        """Set by the first reading to its end."""

    def tables(self) -> Iterator[pa.Table]:
        """Yield the crops. Raises DuplicateCropId if two of a table share an id, SchemaMismatch."""
        manifest, rows = self._manifest, 0
        for table in manifest.tables() if isinstance(manifest, TableFile) else [manifest]:
            crops, _ = drop_duplicates(normalize_manifest(table))
            rows += crops.num_rows
            yield crops
        self.num_rows = rows

    def require_unique_ids(self) -> None:
        """Raise DuplicateCropId if two crops of different tables share an id."""
        if not isinstance(self._manifest, TableFile):
            return
        ids, surplus = repeated_ids(map(crop_ids, self._manifest.tables(["crop_id"])))
        if surplus > self._manifest.num_rows - self.num_rows:
            raise DuplicateCropId(
                f"crops share a crop_id; it is one of {', '.join(map(str, ids[:10].tolist()))}",
                remedy="Report this as a bug.",
            )


class Run:
    """One run. It is pickled as its store and run.json; every method may be repeated."""

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
        manifest: pa.Table | TableFile,
        archive: str,
        fingerprint: str,
        model: str,
        settings: dict[str, Any],
        rows_per_part: int = 4096,
        rows_per_shard: int = 122_880,
        vanished: Any = (),
        created: str | None = None,
    ) -> Self:
        """Start a run, or return the one that was started with the same archive, manifest and model.

        manifest: a table, which is sorted; or a local file of tables, of which no two have the same crop, and
        one is in memory at a time. Duplicates are dropped and counted. A shard consists of whole parts: at
        most `rows_per_shard` rows, or one part. An existing run keeps its sizes. `vanished`: URIs (string
        Array) of crops that are gone from the archive; a run may have no other crops. `created`: its place
        among other runs, which are in the order of this time; by default now.
        Raises FingerprintMismatch or Mismatch if the run_id is taken by another input, DuplicateCropId,
        EmptyArchive, BadSetting, SchemaMismatch.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise BadSetting(f"'{run_id}' cannot name a run", remedy="Use letters, digits, '.', '_' and '-'.")
        if rows_per_part < 1 or rows_per_shard < 1:
            raise BadSetting(f"{rows_per_part} rows per part and {rows_per_shard} per shard are not positive")
        crops = _UniqueCrops(manifest)
        digest = manifest_digest(crops.tables())
        crops.require_unique_ids()
        if not crops.num_rows and not len(vanished):
            raise EmptyArchive(f"the manifest of run {run_id} has no rows")
        info = RunInfo(
            run_id=run_id,
            archive=archive,
            fingerprint=fingerprint,
            model=model,
            settings=settings,
            manifest=digest,
            listed=manifest.num_rows,
            duplicates=manifest.num_rows - crops.num_rows,
            rows_per_part=rows_per_part,
            parts_per_shard=max(1, rows_per_shard // rows_per_part),
            created=created or utc_now(),
            version=package_version(),
            vanished=(),
        )
        run = cls(store, info)
        if not run.folder.started():
            run.folder.write_manifest(crops.tables())
            if len(vanished):
                info = replace(info, vanished=(run.folder.write_vanished(vanished),))
                run = cls(store, info)
            try:
                store.create(run.folder.key("run.json"), info.to_json())
            except ObjectExists:
                pass  # another process was faster, or the response was lost: compared below
            else:
                return run
        existing = cls.open(store, run_id)
        if existing.folder.manifest_key(0) != run.folder.manifest_key(0):
            store.delete(*run.folder.manifest_keys())
        store.delete(*({file.key for file in run.vanished()} - {file.key for file in existing.vanished()}))
        existing.info.require_same(info)
        return existing

    @classmethod
    def open(cls, store: Store, run_id: str) -> Self:
        """Open a run, finished or not. Raises ObjectMissing, SchemaMismatch, CorruptObject."""
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
        """Whether done.json exists."""
        return "summary" in self.__dict__ or self.store.head(self.folder.done_key()) is not None

    @cached_property
    def summary(self) -> RunSummary:
        """The contents of done.json.

        Raises CountMismatch for a run that is not finished, CorruptObject if it is not of this run.
        """
        key = self.folder.done_key()
        try:
            summary = RunSummary.read(self.store, key)
        except ObjectMissing as missing:
            raise CountMismatch(
                f"run {self.run_id} is not finished", remedy="Resume it with `clvr embed`."
            ) from missing
        summary.require_of(self.info, self.store.uri_of(key))
        return summary

    @cached_property
    def _tombstones(self) -> TombstoneWatch:
        return TombstoneWatch([self.store])

    def shard_keys(self) -> list[str]:
        """Return the keys, in the store, of shards that have rows. Raises CountMismatch if not finished."""
        return [info.key for info in self.shards()]

    def shards(self) -> list[ShardInfo]:
        """Return the shards in done.json that have rows, with keys in the store."""
        return [self.folder.absolute(info) for info in self.summary.shards if info.rows]

    def vanished(self) -> list[StoredFile]:
        """Return the lists of vanished crops, with keys in the store; none or one."""
        return [self.folder.absolute(file) for file in self.info.vanished or ()]

    def manifest(self) -> pa.Table:
        """Return the whole manifest. Raises CorruptObject if it was altered."""
        table = pa.concat_tables([MANIFEST_SCHEMA.empty_table(), *self.manifest_tables()])
        if manifest_digest([table]) != self.info.manifest:
            raise CorruptObject(
                f"the manifest of run {self.run_id} was altered", remedy="Start a new run: `clvr embed`."
            )
        return table

    def manifest_tables(self) -> Iterator[pa.Table]:
        """Yield the manifest, one file of it at a time. Raises CorruptObject."""
        for number in range(len(self.folder.manifest_keys())):
            with self.folder.open_manifest(number) as file:
                yield file.read().cast(MANIFEST_SCHEMA)

    def quarantine(self) -> pa.Table:
        """Return the quarantine; of an unfinished run, that of the parts written so far.

        Raises CorruptObject for a file that differs from its record.
        """
        if not self.finished:
            return self.folder.read_files(QUARANTINE_SCHEMA, [mark.quarantine for mark in self.part_marks()])
        if self.summary.quarantine is not None:
            files = map(self.folder.absolute, self.summary.quarantine)
            return self.folder.read_files(QUARANTINE_SCHEMA, files)
        keys = [self.folder.quarantine_key(number) for number in range(self.info.shards)]
        return self.folder.read_tables(QUARANTINE_SCHEMA, keys)

    def quarantined_ids(self) -> Iterator[NDArray[np.int64]]:
        """Yield the crop_ids (n,) in the quarantine of a finished run, file by file. Raises CorruptObject."""
        for number in range(len(self.summary.shards)):
            yield crop_ids(self.quarantine_of(number, ["crop_id"]))

    def quarantine_of(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        """Return the quarantine of the parts of one shard of a finished run. Raises CorruptObject."""
        if self.summary.quarantine is not None:
            file = self.folder.absolute(self.summary.quarantine[shard])
            return self.folder.read_files(QUARANTINE_SCHEMA, [file], columns)
        return self.folder.read(self.folder.quarantine_key(shard), columns)

    def part_marks(self) -> list[StoredRows]:
        """Return the marks of the finished parts of an unfinished run, in order."""
        return self.folder.part_marks(sorted(self.folder.done_parts()))

    def counted_parts(self) -> tuple[int, Counter[str]]:
        """Count the crops in the finished parts of an unfinished run: embedded, and quarantined by cause.

        Reads the marks, a thousand at a time; of a release without causes in them the quarantine too.
        """
        embedded, causes = 0, Counter[str]()
        done = sorted(self.folder.done_parts())
        for first in range(0, len(done), _MARKS_AT_A_TIME):
            marks = self.folder.part_marks(done[first : first + _MARKS_AT_A_TIME])
            embedded += sum(mark.shard.rows for mark in marks)
            for mark in marks:
                causes.update(mark.causes or {})
            unstated = [mark.quarantine for mark in marks if mark.causes is None]
            causes += count_causes(self.folder.read_files(QUARANTINE_SCHEMA, unstated))
        return embedded, causes

    def pending_parts(self) -> list[int]:
        """Return the numbers of the parts that have no done-mark, ascending."""
        if self.finished:
            return []
        return sorted(set(range(self.info.parts)) - self.folder.done_parts())

    def pending_rows(self) -> int:
        """Return the number of crops in the pending parts."""
        pending = self.pending_parts()
        missing_in_last = self.info.parts * self.info.rows_per_part - self.info.rows
        rows = len(pending) * self.info.rows_per_part
        return rows - (missing_in_last if self.info.parts - 1 in pending else 0)

    def part_manifest(self, part: int) -> pa.Table:
        """Return the crops of one part to embed.

        Erased crops and those whose URI, camera or track is too long for Milvus are left out; `write_part`
        quarantines them.
        """
        rows = self._part_rows(part)
        return rows.filter(split_usable(rows, self._tombstones.current())[0])

    def write_part(self, part: int, shard: pa.Table, quarantine: pa.Table) -> None:
        """Write the result of one part, with rows in any order; of repeated writes the last one counts.

        Crops that were erased since `part_manifest` are dropped from both. Raises CountMismatch unless each
        crop of `part_manifest(part)` is in exactly one of the two tables, CorruptObject and SchemaMismatch
        for invalid values and columns, Locked if a purge wrote the run again meanwhile.
        """
        rows = self._part_rows(part)
        is_usable, unusable = split_usable(rows, self._tombstones.current())
        refused = unusable["crop_id"].combine_chunks()
        if len(refused):
            shard, quarantine = (
                table.filter(pc.invert(pc.is_in(table["crop_id"], value_set=refused)))
                for table in (shard, quarantine)
            )
        check_quarantine(quarantine, f"part {part} of run {self.run_id}")
        verify_partition(
            f"part {part} of run {self.run_id}",
            listed=crop_ids(rows.filter(is_usable)),
            embedded=crop_ids(shard),
            quarantined=crop_ids(quarantine),
        )
        shard_key, quarantine_key = self.folder.part_keys(part)
        quarantined = sort_like(pa.concat_tables([quarantine, unusable]), rows)
        quarantine_file = write_table(self.store, quarantine_key, quarantined, metadata=self.folder.footer)
        shard_file = write_shard(
            self.store,
            shard_key,
            sort_like(shard, rows),
            fingerprint=self.fingerprint,
            run_id=self.run_id,
            is_part=True,
        )
        mark_key = self.folder.part_mark_key(part)
        self.folder.write_mark(mark_key, part, shard_file, quarantine_file, count_causes(quarantined))
        self._require_unpurged(mark_key, shard_file.key, quarantine_file.key)

    def compact(self, shard: int) -> ShardInfo:
        """Join the parts of one shard in shards/ and quarantine/; return its entry for done.json.

        The rows of the shard come in its order, see `order`. Shards may be compacted in parallel. Raises
        CountMismatch if any part is pending, CorruptObject for a file of a part that differs from its mark.
        """
        if self.finished:
            return self.summary.shards[shard]
        return self.folder.relative(self._compacted(shard).shard)

    def _compacted(self, shard: int) -> StoredRows:
        with suppress(ObjectMissing):
            return self.folder.shard_mark(shard)
        first = shard * self.info.parts_per_shard
        parts = range(first, min(first + self.info.parts_per_shard, self.info.parts))
        try:
            marks = self.folder.part_marks(parts)
        except ObjectMissing:
            self.folder.require_done(set(parts))
            raise
        quarantined = self.folder.read_files(QUARANTINE_SCHEMA, [mark.quarantine for mark in marks])
        files = [mark.shard for mark in marks]
        return self.write_compacted(
            shard, read_parts(self.store, files, fingerprint=self.fingerprint), quarantined
        )

    def write_compacted(
        self, shard: int, rows: Iterable[pa.RecordBatch], quarantined: pa.Table
    ) -> StoredRows:
        """Write one shard and the quarantine of its parts, which need no marks then; return its mark.

        rows: the embedded crops of these parts, in any order. `finish` checks that no crop is missing. May be
        repeated. Raises what `write_shard` raises, and Locked if a purge wrote the run again meanwhile.
        """
        quarantine = write_table(
            self.store, self.folder.quarantine_key(shard), quarantined, metadata=self.folder.footer
        )
        written = write_shard(
            self.store,
            self.folder.shard_key(shard),
            in_shard_order(rows),
            fingerprint=self.fingerprint,
            run_id=self.run_id,
        )
        mark_key = self.folder.shard_mark_key(shard)
        mark = self.folder.write_mark(mark_key, shard, written, quarantine, count_causes(quarantined))
        self._require_unpurged(mark_key, written.key, quarantine.key)
        return mark

    def _parts_without_shard(self) -> set[int]:
        done = self.folder.done_shards()
        return {part for part in range(self.info.parts) if part // self.info.parts_per_shard not in done}

    def _verified(self, compacted: list[StoredRows]) -> ShardCounts:
        def read() -> Iterator[tuple[ShardInfo, pa.Table]]:
            for mark in compacted:
                yield mark.shard, self.folder.read_files(QUARANTINE_SCHEMA, [mark.quarantine])

        try:
            return verify_shards(self.folder, read())
        except (ObjectMissing, CountMismatch):
            self._require_unpurged()
            raise

    def _part_rows(self, part: int) -> pa.Table:
        try:
            return self.folder.part_rows(part)
        except ObjectMissing:
            self._require_unpurged()
            raise

    def _require_unpurged(self, *written: str) -> None:
        """Raise Locked if a purge wrote the run again since it was opened; delete what was written since.

        Called after each write: a purge that did not see it has not begun, or is seen here.
        """
        if Run.open(self.store, self.run_id).info.revision != self.info.revision:
            self.store.delete(*written)
            raise Locked(
                f"erased crops were purged from run {self.run_id} meanwhile",
                remedy="Run the same command again; it resumes the run.",
            )

    def finish(self) -> RunSummary:
        """Compact the remaining shards, verify the accounting, write done.json, remove the parts.

        Raises CountMismatch if parts are pending, or crops are missing or unexpected, with up to ten ids;
        DuplicateCropId.
        """
        if not self.finished:
            self.folder.require_done(self._parts_without_shard())
            compacted = [self._compacted(shard) for shard in range(self.info.shards)]
            shards = [mark.shard for mark in compacted]
            counts = self._verified(compacted)
            summary = RunSummary(
                run_id=self.run_id,
                archive=self.info.archive,
                fingerprint=self.fingerprint,
                manifest=self.info.manifest,
                listed=self.info.listed,
                embedded=counts.embedded,
                quarantined=counts.quarantined,
                duplicates=self.info.duplicates,
                causes=dict(counts.causes),
                shards=tuple(map(self.folder.relative, shards)),
                quarantine=tuple(self.folder.relative(mark.quarantine) for mark in compacted),
                started=self.info.created,
                finished=utc_now(),
                settings=self.info.settings,
            )
            self._require_unpurged()
            with suppress(ObjectExists):  # another process finished the run with the same result
                self.store.create(self.folder.done_key(), summary.to_json())
        self.store.delete(*(info.key for info in self.store.list(self.folder.key("parts"))))
        return self.summary


def list_runs(store: Store) -> list[Run]:
    """Return the runs below the root of a store, the oldest first, without those that have no run.json."""
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
    """Return the newest unfinished run of this archive by this model.

    origin: settings that the run must have, such as the source of its manifest; a missing one counts as None.
    """
    for run in reversed(list_runs(store)):
        settings = run.info.settings
        if settings.get("merged"):
            continue  # no embedding makes it: see `index.generations.merge`
        has_origin = all(settings.get(name) == value for name, value in (origin or {}).items())
        if has_origin and (run.info.archive, run.fingerprint) == (archive, fingerprint) and not run.finished:
            return run
    return None


def vanished_ids(run: Run) -> NDArray[np.int64]:
    """Return the crop_ids (n,) that a run lists as vanished, ascending.

    Raises SchemaMismatch for a file without URIs, CorruptObject.
    """
    uris = vanished_uris(run)["uri"].to_pylist()
    return np.unique(read_reassigned(run.store).ids_of(uris)) if uris else np.empty(0, np.int64)


def vanished_uris(run: Run) -> pa.Table:
    """Return the URIs that a run lists as vanished, in the column `uri`. Raises as `vanished_ids` does."""
    if run.info.vanished is not None:
        return run.folder.read_files(_VANISHED_SCHEMA, run.vanished())
    try:
        return run.folder.read(run.folder.vanished_key(), ["uri"]).cast(_VANISHED_SCHEMA)
    except ObjectMissing:
        return _VANISHED_SCHEMA.empty_table()
