"""Runs: one embedding of one manifest by one model, in a folder that survives a kill at any point.

    runs/<run_id>/run.json                          first, written once (If-None-Match)
                  manifest/<digest>-00000.parquet   one row group per part
                  vanished.parquet                  of an incremental run: crops that are gone
                  parts/…                           work in progress, removed at the end
                  shards/shard-00000.parquet
                  quarantine/quarantine-00000.parquet
                  done.json                         last: counts and digests
                  timings/<time>.json               one per attempt, for information only

Each step writes whole objects under fixed names, and its done-mark last, so an interrupted step is simply
repeated.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
from index.runs.tombstones import TombstoneWatch
from index.schema import MANIFEST_SCHEMA, QUARANTINE_SCHEMA
from infra.errors import (
    BadSetting,
    CorruptObject,
    CountMismatch,
    EmptyArchive,
    ObjectExists,
    ObjectMissing,
    SchemaMismatch,
)
from infra.store import Store, ignore_missing_root

_VANISHED_SCHEMA = pa.schema([("uri", pa.string())])
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


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

        The manifest is sorted; duplicates are dropped and counted. A shard consists of whole parts: at most
        `rows_per_shard` rows, or one part. An existing run keeps its sizes. `vanished`: URIs (string Array)
        of crops that are gone from the archive; a run may have no other crops.
        Raises FingerprintMismatch or Mismatch if the run_id is taken by another input, DuplicateCropId,
        EmptyArchive, BadSetting, SchemaMismatch.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise BadSetting(f"'{run_id}' cannot name a run", remedy="Use letters, digits, '.', '_' and '-'.")
        if rows_per_part < 1 or rows_per_shard < 1:
            raise BadSetting(f"{rows_per_part} rows per part and {rows_per_shard} per shard are not positive")
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
                pass  # another process was faster, or the response was lost: compared below
            else:
                return run
        existing = cls.open(store, run_id)
        if existing.folder.manifest_key(0) != run.folder.manifest_key(0):
            store.delete(*run.folder.manifest_keys())
        existing.info.require_same(info)
        return existing

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
        """Whether done.json exists."""
        return "summary" in self.__dict__ or self.store.head(self.folder.key("done.json")) is not None

    @cached_property
    def summary(self) -> RunSummary:
        """The contents of done.json. Raises CountMismatch for a run that is not finished."""
        key = self.folder.key("done.json")
        try:
            return RunSummary.read(self.store, key)
        except ObjectMissing as missing:
            raise CountMismatch(
                f"run {self.run_id} is not finished", remedy="Resume it with `clvr embed`."
            ) from missing

    @cached_property
    def _tombstones(self) -> TombstoneWatch:
        return TombstoneWatch([self.store])

    def shard_keys(self) -> list[str]:
        """Return the keys, in the store, of shards that have rows. Raises CountMismatch if not finished."""
        return [info.key for info in self.shards()]

    def shards(self) -> list[ShardInfo]:
        """Return the shards in done.json that have rows, with keys in the store."""
        return [replace(info, key=self.folder.key(info.key)) for info in self.summary.shards if info.rows]

    def manifest(self) -> pa.Table:
        """Return the whole manifest. Raises CorruptObject if it was altered."""
        table = self.folder.read_tables(MANIFEST_SCHEMA, self.folder.manifest_keys())
        if manifest_digest(table) != self.info.manifest:
            raise CorruptObject(
                f"the manifest of run {self.run_id} was altered", remedy="Start a new run: `clvr embed`."
            )
        return table

    def quarantine(self) -> pa.Table:
        """Return the quarantine; of an unfinished run, that of the parts written so far."""
        if self.finished:
            keys = [self.folder.quarantine_key(number) for number in range(self.info.shards)]
        else:
            keys = [self.folder.part_keys(part)[1] for part in sorted(self.folder.done_parts())]
        return self.folder.read_tables(QUARANTINE_SCHEMA, keys)

    def pending_parts(self) -> list[int]:
        """Return the numbers of the parts whose shard rows are not written, ascending."""
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
        rows = self.folder.part_rows(part)
        return rows.filter(split_usable(rows, self._tombstones.current())[0])

    def write_part(self, part: int, shard: pa.Table, quarantine: pa.Table) -> None:
        """Write the result of one part, with rows in any order; a repeated write overwrites it.

        Crops that were erased since `part_manifest` are dropped from both. Raises CountMismatch unless each
        crop of `part_manifest(part)` is in exactly one of the two tables, CorruptObject and SchemaMismatch
        for invalid values and columns.
        """
        rows = self.folder.part_rows(part)
        is_usable, unusable = split_usable(rows, self._tombstones.current())
        refused = unusable["crop_id"].combine_chunks()
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
        write_table(self.store, quarantine_key, quarantined, metadata=self.folder.footer)
        # The shard is the done-mark of the part, so it comes last.
        write_shard(
            self.store, shard_key, sort_like(shard, rows), fingerprint=self.fingerprint, run_id=self.run_id
        )

    def compact(self, shard: int) -> ShardInfo:
        """Join the parts of one shard in shards/ and quarantine/. Raises CountMismatch if any is pending.

        Shards may be compacted in parallel.
        """
        if self.finished:
            return self.summary.shards[shard]
        if self.store.head(self.folder.record_key(shard)) is not None:
            return ShardInfo.read(self.store, self.folder.record_key(shard))
        first = shard * self.info.parts_per_shard
        parts = range(first, min(first + self.info.parts_per_shard, self.info.parts))
        self.folder.require_done(set(parts))
        keys = [self.folder.part_keys(part) for part in parts]
        quarantined = self.folder.read_tables(QUARANTINE_SCHEMA, [quarantine for _, quarantine in keys])
        write_table(self.store, self.folder.quarantine_key(shard), quarantined, metadata=self.folder.footer)
        rows = read_shards(self.store, [rows for rows, _ in keys], fingerprint=self.fingerprint)
        name = f"shards/shard-{shard:05d}.parquet"
        written = write_shard(
            self.store, self.folder.key(name), rows, fingerprint=self.fingerprint, run_id=self.run_id
        )
        info = replace(written, key=name)
        self.store.put(self.folder.record_key(shard), info.to_json())
        return info

    def finish(self) -> RunSummary:
        """Compact the remaining shards, verify the accounting, write done.json, remove the parts.

        Raises CountMismatch if parts are pending, or crops are missing or unexpected, with up to ten ids;
        DuplicateCropId.
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
            with suppress(ObjectExists):  # another process finished the run with the same result
                self.store.create(self.folder.key("done.json"), summary.to_json())
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
        has_origin = all(settings.get(name) == value for name, value in (origin or {}).items())
        if has_origin and (run.info.archive, run.fingerprint) == (archive, fingerprint) and not run.finished:
            return run
    return None


def vanished_ids(run: Run) -> NDArray[np.int64]:
    """Return the crop_ids (n,) that a run lists as vanished, ascending.

    Raises SchemaMismatch for a file without URIs, CorruptObject.
    """
    uris = vanished_uris(run)["uri"].to_pylist()
    return np.unique(np.fromiter(map(crop_id_of, uris), np.int64, len(uris)))


def vanished_uris(run: Run) -> pa.Table:
    """Return the URIs that a run lists as vanished, in the column `uri`. Raises as `vanished_ids` does."""
    key = run.folder.vanished_key()
    try:
        with open_parquet(run.store, key) as file:
            return file.read(["uri"]).cast(_VANISHED_SCHEMA)
    except ObjectMissing:
        return _VANISHED_SCHEMA.empty_table()
