"""The folder of a run: the keys of its objects, and how they are read and written."""

import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.parquet import open_parquet, write_table
from index.runs.records import RunInfo
from index.schema import MANIFEST_SCHEMA
from infra.errors import BadSetting, CountMismatch
from infra.store import Store, ignore_missing_root

_PARTS_PER_FILE = 256


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

    def manifest_keys(self) -> list[str]:
        """Return the keys of all files of the manifest, in order."""
        return [self.manifest_key(number) for number in range(-(-self.info.parts // _PARTS_PER_FILE))]

    def part_keys(self, part: int) -> tuple[str, str]:
        """Return the keys of a part's shard rows and of its quarantine."""
        return self.key(f"parts/part-{part:05d}.parquet"), self.key(f"parts/quarantine-{part:05d}.parquet")

    def quarantine_key(self, shard: int) -> str:
        """Return the key of the quarantine of all parts of one shard."""
        return self.key(f"quarantine/quarantine-{shard:05d}.parquet")

    def record_key(self, shard: int) -> str:
        """Return the key of the done-mark of one compacted shard."""
        return self.key(f"parts/shard-{shard:05d}.json")

    def vanished_key(self) -> str:
        """Return the key of the list of vanished crops."""
        return self.key("vanished.parquet")

    def started(self) -> bool:
        """Return whether run.json exists."""
        head = None
        with ignore_missing_root(self.store):
            head = self.store.head(self.key("run.json"))
        return head is not None

    def write_manifest(self, crops: pa.Table) -> None:
        """Write the manifest with one row group per part, so each part can be read alone."""
        per_file = _PARTS_PER_FILE * self.info.rows_per_part
        for number, key in enumerate(self.manifest_keys()):
            rows = crops.slice(number * per_file, per_file)
            write_table(self.store, key, rows, metadata=self.footer, row_group_rows=self.info.rows_per_part)

    def write_vanished(self, uris: Any) -> None:
        """Write the URIs (string Array) of crops that an earlier run has and the archive has no longer."""
        rows = pa.table({"uri": pc.cast(uris, pa.string())})
        write_table(self.store, self.vanished_key(), rows, metadata=self.footer)

    def part_rows(self, part: int) -> pa.Table:
        """Return all rows of one part. Raises BadSetting for a part that does not exist."""
        if not 0 <= part < self.info.parts:
            raise BadSetting(f"run {self.info.run_id} has {self.info.parts} parts, not one of number {part}")
        file_number, row_group = divmod(part, _PARTS_PER_FILE)
        with open_parquet(self.store, self.manifest_key(file_number)) as file:
            return file.read_row_group(row_group).cast(MANIFEST_SCHEMA)

    def done_parts(self) -> set[int]:
        """Return the numbers of the parts whose shard rows are written."""
        names = (info.key.rpartition("/")[2] for info in self.store.list(self.key("parts")))
        matches = (re.fullmatch(r"part-(\d{5,})\.parquet", name) for name in names)
        return {int(match[1]) for match in matches if match}

    def require_done(self, parts: set[int]) -> None:
        """Raise CountMismatch, naming up to ten, if any of these parts is pending."""
        pending = sorted(parts - self.done_parts())
        if pending:
            raise CountMismatch(
                f"run {self.info.run_id} has {len(pending)} of {self.info.parts} parts pending: "
                f"{', '.join(map(str, pending[:10]))}",
                remedy="Resume the run: `clvr embed`.",
            )

    def read(self, key: str, columns: list[str] | None = None) -> pa.Table:
        """Read one Parquet file of the run."""
        with open_parquet(self.store, key) as file:
            return file.read(columns)

    def read_tables(self, schema: pa.Schema, keys: Iterable[str]) -> pa.Table:
        """Read several files of one schema into one table."""
        return pa.concat_tables([schema.empty_table(), *(self.read(key).cast(schema) for key in keys)])
