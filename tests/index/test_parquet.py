"""A sealed Parquet file: each altered bit is noticed by whoever reads a part of it, or changes nothing."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.parquet import INDEX_KEY, ParquetReader, open_parquet, write_table
from infra.errors import BadInput, ClvrError, CorruptObject, ObjectMissing, SchemaMismatch
from infra.servers import SeaweedFs
from infra.store import Store, open_store

ROWS, GROUP_ROWS = 50, 20
TABLE = pa.table(
    {
        "crop_id": pa.array(range(ROWS), pa.int64()),
        "camera_id": pa.array([f"cam-{row // 10}" for row in range(ROWS)]),
        "model_id": pa.array([row if row % 7 else None for row in range(ROWS)], pa.int32()),
        "embedding": pa.array([[row / 3, row, -row] for row in range(ROWS)], pa.list_(pa.float32())),
    }
)


def write(store: Store, key: str = "a.parquet", table: pa.Table = TABLE) -> None:
    write_table(store, key, table, metadata={"clvr.run_id": "r"}, row_group_rows=GROUP_ROWS)


def flipped(data: bytes, bit: int) -> bytes:
    altered = bytearray(data)
    altered[bit // 8] ^= 1 << bit % 8
    return bytes(altered)


def contents(file: ParquetReader) -> list[object]:
    groups = range(file.num_row_groups)
    ids = [file.read_row_group(group, ["crop_id"]) for group in groups]
    return [file.schema.metadata, file.num_rows, [file.ranges(group) for group in groups], ids, file.read()]


class TestWriting:
    def test_rows_metadata_and_ranges_are_read_back(self, store: Store) -> None:
        write(store)
        with open_parquet(store, "a.parquet") as file:
            assert file.read().equals(TABLE)
            assert file.schema.metadata == {b"clvr.run_id": b"r"}
            assert [file.rows_of(group) for group in range(file.num_row_groups)] == [20, 20, 10]
            # model_id has nulls, so its range would not cover all rows.
            assert file.ranges(1) == {"crop_id": (20, 39), "camera_id": ("cam-2", "cam-3")}
            assert [batch.num_rows for batch in file.batches(15, ["crop_id"])] == [15, 5, 15, 5, 10]
            assert file.read_row_group(2, ["embedding", "crop_id"]).schema.names == ["crop_id", "embedding"]

    def test_equal_tables_give_equal_bytes_and_a_key_may_name_them(self, store: Store) -> None:
        write(store)
        write(store, "b.parquet", pa.concat_tables([TABLE.slice(0, 7), TABLE.slice(7)]))
        assert store.get("a.parquet") == store.get("b.parquet")
        stored = write_table(store, "c/{digest}.parquet", TABLE, metadata={})
        assert stored.key == f"c/{stored.sha256[:16]}.parquet"
        assert (stored.rows, stored.bytes) == (ROWS, len(store.get(stored.key)))

    def test_a_table_may_have_no_rows(self, store: Store) -> None:
        write(store, table=TABLE.slice(0, 0))
        with open_parquet(store, "a.parquet") as file:
            assert file.read(["crop_id"]).equals(TABLE.select(["crop_id"]).slice(0, 0))

    def test_other_readers_read_it_too(self, store: Store) -> None:
        write(store)
        assert pq.read_table(Path(store.uri) / "a.parquet").equals(TABLE)


class TestReading:
    def test_every_altered_bit_is_noticed_or_changes_nothing(self, store: Store) -> None:
        write(store)
        data = store.get("a.parquet")
        with open_parquet(store, "a.parquet") as file:
            original = contents(file)
        noticed = 0
        for bit in range(0, 8 * len(data), 11):
            store.put("a.parquet", flipped(data, bit))
            try:
                with open_parquet(store, "a.parquet") as file:
                    assert contents(file) == original
            except ClvrError as error:
                assert isinstance(error, CorruptObject)
                assert store.uri_of("a.parquet") in error.message
                noticed += 1
        assert noticed > len(data) / 2

    def test_numbers_of_vectors_are_read_without_their_levels(self, store: Store) -> None:
        write(store)
        data = bytearray(store.get("a.parquet"))
        group = TABLE.slice(GROUP_ROWS, GROUP_ROWS)
        start = data.index(group["embedding"].combine_chunks().flatten().to_numpy().tobytes())
        data[start - 8 : start] = b"\xff" * 8
        store.put("a.parquet", bytes(data))
        with open_parquet(store, "a.parquet") as file:
            assert file.read().equals(TABLE)
            assert file.read_row_group(1, ["embedding"]).equals(group.select(["embedding"]))
        with pytest.raises((OSError, ValueError)):
            pq.read_table(Path(store.uri) / "a.parquet")
        data[start + 5] ^= 1
        store.put("a.parquet", bytes(data))
        with open_parquet(store, "a.parquet") as file, pytest.raises(CorruptObject, match=r"a\.parquet"):
            file.read_row_group(1, ["embedding"])

    @pytest.mark.parametrize(
        "vectors",
        [
            [[1.0, 2.0], [3.0]] * (ROWS // 2),
            [[1.0, 2.0], None] * (ROWS // 2),
            [[1.0, None]] * ROWS,
            [[]] * ROWS,
            [[0.0, 0.0]] * ROWS,
            np.random.default_rng(0).normal(size=(ROWS, 1024)).tolist(),
        ],
        ids=["two lengths", "no vector", "no number", "empty", "zeros", "long"],
    )
    def test_lists_of_any_kind_are_read_back(self, store: Store, vectors: list[object]) -> None:
        column = pa.array(vectors, pa.list_(pa.float32()))
        table = TABLE.set_column(TABLE.schema.get_field_index("embedding"), "embedding", column)
        write(store, table=table)
        with open_parquet(store, "a.parquet") as file:
            assert file.read().equals(table)
            assert file.read_row_group(2, ["embedding"])["embedding"].to_pylist() == column.to_pylist()[40:]

    @pytest.mark.integration
    def test_vectors_on_a_server_are_read_in_several_requests(
        self, seaweedfs: SeaweedFs, bucket: str
    ) -> None:
        on_server = open_store(bucket, seaweedfs.settings)
        numbers = np.random.default_rng(0).normal(size=(1001, 1024)).astype(np.float32)
        vectors = pa.array(list(numbers), pa.list_(pa.float32()))
        write_table(on_server, "a.parquet", pa.table({"embedding": vectors}), metadata={})
        with open_parquet(on_server, "a.parquet") as file:
            assert np.array_equal(np.stack(file.read()["embedding"].to_numpy()), numbers)
        data = bytearray(on_server.get("a.parquet"))
        data[len(data) // 2] ^= 1
        on_server.put("a.parquet", bytes(data))
        with open_parquet(on_server, "a.parquet") as file, pytest.raises(CorruptObject, match="embedding"):
            file.read()

    def test_an_altered_column_is_named_by_who_reads_it_only(self, store: Store) -> None:
        other = TABLE.set_column(0, "crop_id", pa.array([*range(ROWS - 1), 99]))
        write(store)
        write(store, "other.parquet", other)
        index = pq.ParquetFile(Path(store.uri) / "a.parquet").metadata.metadata[INDEX_KEY.encode()]
        with pq.ParquetWriter(Path(store.uri) / "a.parquet", other.schema) as writer:
            for first in range(0, ROWS, GROUP_ROWS):
                writer.write_table(other.slice(first, GROUP_ROWS))
            writer.add_key_value_metadata({INDEX_KEY: index, "clvr.run_id": "r"})
        with open_parquet(store, "a.parquet") as file:
            assert file.read_row_group(0).num_rows == GROUP_ROWS
            assert file.read_row_group(2, ["camera_id"]).num_rows == 10
            with pytest.raises(CorruptObject, match=r"a\.parquet.*row group 2, column crop_id"):
                file.read_row_group(2, ["crop_id"])

    def test_a_file_of_an_older_release_is_read_as_it_is(self, store: Store) -> None:
        pq.write_table(TABLE, Path(store.uri) / "a.parquet", row_group_size=GROUP_ROWS)
        with open_parquet(store, "a.parquet") as file:
            assert file.read().equals(TABLE)
            assert file.ranges(0)["crop_id"] == (0, 19)
            assert pa.Table.from_batches(file.batches(8, ["crop_id"])).equals(TABLE.select(["crop_id"]))

    def test_a_file_must_have_the_bytes_of_its_record(self, store: Store) -> None:
        stored = write_table(store, "a.parquet", TABLE, metadata={})
        with open_parquet(store, "a.parquet", expected=stored) as file:
            assert file.read().equals(TABLE)
        write(store)
        with (
            pytest.raises(CorruptObject, match=r"a\.parquet was altered"),
            open_parquet(store, "a.parquet", expected=stored),
        ):
            pass

    def test_missing_columns_objects_and_foreign_keys_are_named(self, store: Store) -> None:
        write(store)
        with open_parquet(store, "a.parquet") as file, pytest.raises(SchemaMismatch, match="no column b, c"):
            file.read(["crop_id", "b", "c"])
        with pytest.raises(ObjectMissing, match=r"b\.parquet"), open_parquet(store, "b.parquet"):
            pass
        with pytest.raises(BadInput, match="not a usable object key"), open_parquet(store, "../a.parquet"):
            pass
