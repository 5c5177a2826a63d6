"""Parquet files in a store: streamed in, and written whole or not at all."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from index.schema import REPEATING_COLUMNS
from infra.errors import CorruptShard, DiskFull, ObjectMissing, StoreUnreachable
from infra.store import Store


@contextmanager
def open_parquet(store: Store, key: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet object for streaming; errors of reading become ObjectMissing or CorruptShard."""
    filesystem, root = store.arrow()
    try:
        with filesystem.open_input_file(f"{root}/{key}") as source, pq.ParquetFile(source) as file:
            yield file
    except FileNotFoundError as missing:
        raise ObjectMissing(f"{store.uri_of(key)} does not exist") from missing
    except (pa.ArrowException, OSError) as failure:
        if store.head(key) is None:
            raise ObjectMissing(f"{store.uri_of(key)} does not exist") from failure
        reason = next(iter(str(failure).splitlines()), type(failure).__name__)
        if "AWS Error" in str(failure):
            raise StoreUnreachable(f"reading {store.uri_of(key)} failed: {reason}") from failure
        raise CorruptShard(
            f"{store.uri_of(key)} is truncated, altered or no Parquet file: {reason}",
            remedy="Write the file again; if it is a copy, compare it with its source.",
        ) from failure


@contextmanager
def temporary_parquet(schema: pa.Schema, metadata: dict[str, str]) -> Iterator[tuple[Path, pq.ParquetWriter]]:
    """Give a Parquet writer on a local file that vanishes afterwards. Raises DiskFull."""
    try:
        with tempfile.TemporaryDirectory(prefix="clvr-") as folder:
            path = Path(folder, "file.parquet")
            with pq.ParquetWriter(
                path,
                schema.with_metadata(metadata),
                compression="zstd",
                compression_level=1,
                # Vectors never repeat, and min/max of their elements help nobody.
                use_dictionary=[name for name in schema.names if name in REPEATING_COLUMNS],
                write_statistics=[name for name in schema.names if name != "embedding"],
            ) as writer:
                yield path, writer
    except OSError as failure:
        if failure.errno != errno.ENOSPC:
            raise
        raise DiskFull(
            f"{tempfile.gettempdir()} is full", remedy="Point TMPDIR at a larger disk."
        ) from failure


def write_table(
    store: Store, key: str, table: pa.Table, *, metadata: dict[str, str], row_group_rows: int = 65_536
) -> None:
    """Write a table in one go; it appears whole or not at all, and equal tables give equal bytes."""
    with temporary_parquet(table.schema, metadata) as (path, writer):
        for first in range(0, table.num_rows, row_group_rows):
            writer.write_table(table.slice(first, row_group_rows), row_group_rows)
        writer.close()
        store.put(key, path)
