"""The folder of a run: the keys of its objects, and how they are read and written."""

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from index.archive.manifest import in_tables_of
from index.parquet import ParquetReader, StoredFile, open_parquet, sealed_parquet, write_table
from index.runs.records import RunInfo, StoredRows
from index.runs.shards import ShardInfo
from index.schema import MANIFEST_SCHEMA
from infra.errors import BadSetting, ClvrError, CorruptObject, CountMismatch
from infra.store import Store, ignore_missing_root

_PARTS_PER_FILE = 256
_MAX_CONCURRENT_READS = 16
File = TypeVar("File", bound=StoredFile)


class RunFolder:
    """The objects of one run. Keys are relative to the store's root."""

    def __init__(self, store: Store, info: RunInfo) -> None:
        self.store = store
        self.info = info

    @property
    def footer(self) -> dict[str, str]:
        """Metadata in the footer of every Parquet file of the run."""
        return {"clvr.run_id": self.info.run_id}

    def key(self, name: str = "") -> str:
        """Return the key of an object of the run, given its name in the folder."""
        return f"runs/{self.info.run_id}/{name}".rstrip("/")

    def manifest_key(self, number: int) -> str:
        """Return the key of one file of the manifest."""
        # Named by contents and layout: of two racing creators, the loser must not overwrite the other's rows.
        stem = f"{self.info.manifest[:16]}-{self.info.rows_per_part}"
        return self.key(f"manifest/{stem}-{number:05d}.parquet")

    def manifest_slices(self, parts: range) -> Iterator[tuple[int, range]]:
        """Yield (number of a file of the manifest, its row groups) of consecutive parts."""
        first = parts.start
        while first < parts.stop:
            number, group = divmod(first, _PARTS_PER_FILE)
            count = min(parts.stop - first, _PARTS_PER_FILE - group)
            yield number, range(group, group + count)
            first += count

    def manifest_keys(self) -> list[str]:
        """Return the keys of all files of the manifest, in order."""
        return [self.manifest_key(number) for number in range(-(-self.info.parts // _PARTS_PER_FILE))]

    def part_keys(self, part: int) -> tuple[str, str]:
        """Return the keys of a part's shard rows and quarantine, `{digest}` for that of their bytes.

        Of two writers of one part, neither overwrites what the mark of the other names.
        """
        return (
            self.key(f"parts/part-{part:05d}-{{digest}}.parquet"),
            self.key(f"parts/quarantine-{part:05d}-{{digest}}.parquet"),
        )

    def part_mark_key(self, part: int) -> str:
        """Return the key of the done-mark of a part."""
        return self.key(f"parts/part-{part:05d}.json")

    def quarantine_key(self, shard: int) -> str:
        """Return the key of the quarantine of all parts of one shard."""
        return self.key(f"quarantine/quarantine-{shard:05d}.parquet")

    def shard_key(self, shard: int) -> str:
        """Return the key of one shard."""
        return self.key(f"shards/shard-{shard:05d}.parquet")

    def shard_mark_key(self, shard: int) -> str:
        """Return the key of the done-mark of one compacted shard."""
        return self.key(f"parts/compacted-{shard:05d}.json")

    def vanished_key(self) -> str:
        """Return the key of the list of vanished crops of a run of an older release."""
        return self.key("vanished.parquet")

    def done_key(self) -> str:
        """Return the key of the result of the run; each purge writes another one."""
        return self.key(f"done-{self.info.revision}.json" if self.info.revision else "done.json")

    def relative(self, file: File) -> File:
        """Return the record of a file with its key relative to the run's folder, as documents have it."""
        return replace(file, key=file.key.removeprefix(self.key() + "/"))

    def absolute(self, file: File) -> File:
        """Return the record of a file, as a document has it, with its key in the store."""
        return replace(file, key=self.key(file.key))

    def started(self) -> bool:
        """Return whether run.json exists."""
        head = None
        with ignore_missing_root(self.store):
            head = self.store.head(self.key("run.json"))
        return head is not None

    def write_manifest(self, crops: Iterable[pa.Table]) -> None:
        """Write the manifest with one row group per part, so each part can be read alone."""
        parts = in_tables_of(crops, self.info.rows_per_part)
        for number, key in enumerate(self.manifest_keys()):
            with sealed_parquet(MANIFEST_SCHEMA, self._manifest_footer(number)) as writer:
                for rows in islice(parts, _PARTS_PER_FILE):
                    writer.write_row_group(rows)
                writer.put(self.store, key)

    def write_vanished(self, uris: Any) -> StoredFile:
        """Write the URIs (string Array) of crops that an earlier run has and the archive has no longer.

        Returns its record for run.json.
        """
        rows = pa.table({"uri": pc.cast(uris, pa.string())})
        key = self.key("vanished-{digest}.parquet")
        return self.relative(write_table(self.store, key, rows, metadata=self.footer))

    def part_rows(self, part: int) -> pa.Table:
        """Return all rows of one part. Raises BadSetting for a part that does not exist, CorruptObject."""
        if not 0 <= part < self.info.parts:
            raise BadSetting(f"run {self.info.run_id} has {self.info.parts} parts, not one of number {part}")
        file_number, row_group = divmod(part, _PARTS_PER_FILE)
        with self.open_manifest(file_number) as file:
            rows = file.read_row_group(row_group).cast(MANIFEST_SCHEMA)
        expected = self.info.rows_of_part(part)
        if rows.num_rows != expected:
            raise CorruptObject(
                f"{file.uri} has {rows.num_rows:,} crops of part {part}, but run.json gives it {expected:,}",
                remedy="Start a new run: `clvr embed`.",
            )
        return rows

    @contextmanager
    def open_manifest(self, number: int) -> Iterator[ParquetReader]:
        """Open one file of the manifest. Raises CorruptObject if it is of another manifest."""
        with self.open(self.manifest_key(number)) as file:
            footer = {name.encode(): value.encode() for name, value in self._manifest_footer(number).items()}
            if file.sealed and file.schema.metadata != footer:
                raise CorruptObject(
                    f"{file.uri} is a file of another manifest", remedy="Start a new run: `clvr embed`."
                )
            yield file

    @contextmanager
    def open(self, key: str, *, expected: StoredFile | None = None) -> Iterator[ParquetReader]:
        """Open one Parquet file of the run. Raises CorruptObject if it is of another run."""
        with open_parquet(self.store, key, expected=expected) as file:
            run_id = (file.schema.metadata or {}).get(b"clvr.run_id", self.info.run_id.encode()).decode()
            if run_id != self.info.run_id:
                raise CorruptObject(
                    f"{file.uri} is a file of run {run_id}",
                    remedy="Restore it from a copy.",
                )
            yield file

    def done_parts(self) -> set[int]:
        """Return the numbers of the parts that have a done-mark."""
        return self._marked("part")

    def done_shards(self) -> set[int]:
        """Return the numbers of the shards that have a done-mark."""
        return self._marked("compacted")

    def _marked(self, noun: str) -> set[int]:
        names = (info.key.rpartition("/")[2] for info in self.store.list(self.key("parts")))
        matches = (re.fullmatch(rf"{noun}-(\d{{5,}})\.json", name) for name in names)
        return {int(match[1]) for match in matches if match}

    def is_done(self, part: int) -> bool:
        """Return whether a part has a done-mark."""
        return self.store.head(self.part_mark_key(part)) is not None

    def part_mark(self, part: int) -> StoredRows:
        """Read the done-mark of a part, with keys in the store. Raises ObjectMissing, CorruptObject."""
        return self.part_marks([part])[0]

    def part_marks(self, parts: Iterable[int]) -> list[StoredRows]:
        """Read the done-marks of parts, in order, with keys in the store. Raises as `part_mark` does."""
        numbers = list(parts)
        keys = [self.part_mark_key(part) for part in numbers]
        marks: dict[int, StoredRows] = {}
        for position, body in self.store.get_many(keys):
            if isinstance(body, ClvrError):
                raise body
            marks[position] = self._mark(body.data, keys[position], numbers[position])
        return [marks[position] for position in range(len(numbers))]

    def shard_mark(self, shard: int) -> StoredRows:
        """Read the done-mark of a compacted shard, with keys in the store. Raises as `part_mark` does."""
        key = self.shard_mark_key(shard)
        return self._mark(self.store.get(key), key, shard)

    def write_mark(
        self,
        key: str,
        number: int,
        shard: ShardInfo,
        quarantine: StoredFile,
        causes: Mapping[str, int] | None = None,
    ) -> StoredRows:
        """Write the done-mark of a part or of a compacted shard; return it, with keys in the store.

        causes: crops of the quarantine by 'stage/cause'; None: a resumed job reads the quarantine.
        """
        stated = None if causes is None else dict(causes)
        mark = StoredRows(number, self.relative(shard), self.relative(quarantine), stated)
        self.store.put(key, mark.to_json())
        return replace(mark, shard=shard, quarantine=quarantine)

    def require_done(self, parts: set[int]) -> None:
        """Raise CountMismatch, naming up to ten, if any of these parts is pending. Lists all marks."""
        pending = sorted(parts - self.done_parts())
        if pending:
            raise CountMismatch(
                f"run {self.info.run_id} has {len(pending)} of {self.info.parts} parts pending: "
                f"{', '.join(map(str, pending[:10]))}",
                remedy="Resume the run: `clvr embed`.",
            )

    def read(self, key: str, columns: list[str] | None = None) -> pa.Table:
        """Read one Parquet file of the run."""
        with self.open(key) as file:
            return file.read(columns)

    def read_tables(self, schema: pa.Schema, keys: Iterable[str]) -> pa.Table:
        """Read several files of one schema into one table."""
        return pa.concat_tables([schema.empty_table(), *(self.read(key).cast(schema) for key in keys)])

    def read_files(
        self, schema: pa.Schema, files: Iterable[StoredFile], columns: list[str] | None = None
    ) -> pa.Table:
        """Read several files of one schema, compared with their records, into one table, in their order.

        They are read at the same time; those that have no rows are not.
        """
        names = schema.names if columns is None else columns
        schema = pa.schema([schema.field(name) for name in names])
        wanted = [file for file in files if file.rows]

        def read(expected: StoredFile) -> pa.Table:
            with self.open(expected.key, expected=expected) as file:
                return file.read(names).select(names).cast(schema)

        with ThreadPoolExecutor(max(1, min(len(wanted), _MAX_CONCURRENT_READS))) as pool:
            return pa.concat_tables([schema.empty_table(), *pool.map(read, wanted)])

    def _manifest_footer(self, number: int) -> dict[str, str]:
        return {**self.footer, "clvr.manifest": self.info.manifest, "clvr.file": str(number)}

    def _mark(self, data: bytes, key: str, number: int) -> StoredRows:
        mark = StoredRows.from_json(data, self.store.uri_of(key))
        if mark.number != number:
            raise CorruptObject(
                f"{self.store.uri_of(key)} is the mark of number {mark.number}",
                remedy="Delete it, and resume the run: `clvr embed`.",
            )
        return replace(mark, shard=self.absolute(mark.shard), quarantine=self.absolute(mark.quarantine))
