"""A shard names its model and run, holds only valid values, and every change is detected."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.runs.shards import ROW_GROUP_ROWS, check_shard, read_shards, shard_table, vectors_of, write_shard
from index.schema import EMBEDDING_DIM, MAX_NAME_BYTES, MAX_URI_BYTES, SHARD_SCHEMA
from infra.errors import CorruptObject, DuplicateCropId, FingerprintMismatch, ObjectMissing, SchemaMismatch
from infra.servers import SeaweedFs
from infra.store import Store, open_store

MODEL, RUN, KEY = "f00d", "run-1", "runs/run-1/shards/shard-00000.parquet"


def rows(count: int, *, first: int = 0) -> pa.Table:
    ids = np.arange(first, first + count)
    crops = pa.table(
        {
            "crop_id": ids,
            "uri": [f"s3://archive/{number}.jpg" for number in ids],
            "camera_id": ["004"] * count,
            "track_id": [""] * count,
            "captured_at": ids * 1000,
        }
    )
    vectors = np.repeat(ids.astype(np.float32)[:, None], EMBEDDING_DIM, axis=1)
    return shard_table(crops, vectors, np.full(count, 3, np.int32), np.full(count, 0.5, np.float32))


def changed(table: pa.Table, row: int, **values: Any) -> pa.Table:
    """Replace values of one row."""
    lines = table.to_pylist()
    lines[row] |= values
    return pa.Table.from_pylist(lines, SHARD_SCHEMA)


def write_unchecked(store: Store, table: pa.Table, **footer: str) -> None:
    """Write a shard that `write_shard` would refuse."""
    metadata = {"clvr.fingerprint": MODEL, "clvr.schema": "1", "clvr.run_id": RUN} | {
        f"clvr.{name}": value for name, value in footer.items()
    }
    Path(store.uri_of(KEY)).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), store.uri_of(KEY))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


class TestWriting:
    def test_rows_are_read_back_and_the_footer_names_model_and_run(self, store: Store) -> None:
        info = write_shard(store, KEY, rows(10), fingerprint=MODEL, run_id=RUN)
        file = pq.ParquetFile(store.uri_of(KEY))
        assert pa.Table.from_batches(read_shards(store, [KEY], fingerprint=MODEL)).equals(rows(10))
        metadata = file.schema_arrow.metadata
        assert {key: value for key, value in metadata.items() if key.startswith(b"clvr.")} == {
            b"clvr.fingerprint": b"f00d",
            b"clvr.schema": b"1",
            b"clvr.run_id": b"run-1",
        }
        assert check_shard(store, KEY, fingerprint=MODEL, expected=info) == info

    def test_columns_have_types_that_milvus_accepts(self, store: Store) -> None:
        write_shard(store, KEY, rows(1), fingerprint=MODEL, run_id=RUN)
        schema = pq.ParquetFile(store.uri_of(KEY)).schema_arrow
        assert {field.name: str(field.type) for field in schema} == {
            "crop_id": "int64",
            "embedding": "list<element: float>",
            "uri": "string",
            "camera_id": "string",
            "track_id": "string",
            "captured_at": "int64",
            "model_id": "int32",
            "model_confidence": "float",
        }

    def test_bytes_do_not_depend_on_the_batches(self, store: Store) -> None:
        table = rows(ROW_GROUP_ROWS + 100)
        whole = write_shard(store, KEY, table, fingerprint=MODEL, run_id=RUN)
        chunked = write_shard(store, KEY, iter(table.to_batches(777)), fingerprint=MODEL, run_id=RUN)
        assert whole == chunked
        metadata = pq.ParquetFile(store.uri_of(KEY)).metadata
        assert [metadata.row_group(n).num_rows for n in range(2)] == [ROW_GROUP_ROWS, 100]
        assert metadata.row_group(0).column(0).compression == "ZSTD"

    def test_a_shard_may_have_no_rows(self, store: Store) -> None:
        info = write_shard(store, KEY, SHARD_SCHEMA.empty_table(), fingerprint=MODEL, run_id=RUN)
        assert info.rows == 0
        assert check_shard(store, KEY, fingerprint=MODEL) == info

    def test_invalid_rows_are_refused_and_nothing_is_written(self, store: Store) -> None:
        poisoned = changed(rows(3), 2, embedding=[float("nan")] * EMBEDDING_DIM)
        with pytest.raises(CorruptObject, match="row 2, column embedding"):
            write_shard(store, KEY, poisoned, fingerprint=MODEL, run_id=RUN)
        with pytest.raises(SchemaMismatch, match="track_id"):
            write_shard(store, KEY, rows(3).drop_columns("track_id"), fingerprint=MODEL, run_id=RUN)
        assert list(store.list()) == []

    def test_vectors_of_another_shape_are_a_value_error(self) -> None:
        with pytest.raises(ValueError, match=r"\(2, 3\)"):
            shard_table(rows(2), np.zeros((2, 3), np.float32), np.zeros(2, np.int32), np.zeros(2, np.float32))


class TestReading:
    def test_yields_shards_in_order_in_batches(self, store: Store) -> None:
        for number in range(3):
            write_shard(store, f"{number}", rows(10, first=number * 10), fingerprint=MODEL, run_id=RUN)
        batches = list(read_shards(store, ["2", "0", "1"], columns=["crop_id"], batch_rows=4))
        assert [batch.num_rows for batch in batches] == [4, 4, 2] * 3
        assert batches[0].schema.names == ["crop_id"]
        assert [batch["crop_id"][0].as_py() for batch in batches[::3]] == [20, 0, 10]

    def test_refuses_another_model_before_any_row_with_both_fingerprints(self, store: Store) -> None:
        write_shard(store, KEY, rows(1), fingerprint=MODEL, run_id=RUN)
        with pytest.raises(FingerprintMismatch, match=r"model f00d.*model beef"):
            next(read_shards(store, [KEY], fingerprint="beef"))

    def test_refuses_other_files_versions_and_columns(self, store: Store) -> None:
        pq.write_table(pa.table({"a": [1]}), store.uri_of("other.parquet"))
        with pytest.raises(SchemaMismatch, match=r"other\.parquet is a Parquet file, but no shard"):
            list(read_shards(store, ["other.parquet"]))
        write_unchecked(store, rows(1), schema="2")
        with pytest.raises(SchemaMismatch, match="other columns than a shard: body_type, body_type_conf"):
            list(read_shards(store, [KEY]))
        write_unchecked(store, rows(1), schema="3")
        with pytest.raises(SchemaMismatch, match="version 3, this release reads versions 1 to 2"):
            list(read_shards(store, [KEY]))
        write_unchecked(store, rows(1).rename_columns(["id", *SHARD_SCHEMA.names[1:]]))
        with pytest.raises(SchemaMismatch, match="other columns than a shard: crop_id, id"):
            list(read_shards(store, [KEY]))

    def test_of_a_missing_shard_names_its_key(self, store: Store) -> None:
        with pytest.raises(ObjectMissing, match=r"shard-00000\.parquet") as caught:
            list(read_shards(store, [KEY]))
        assert "run the same command again" in caught.value.remedy

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
    def test_refuses_a_truncated_shard(self, store: Store, share: float) -> None:
        write_shard(store, KEY, rows(100), fingerprint=MODEL, run_id=RUN)
        whole = store.get(KEY)
        store.put(KEY, whole[: int(len(whole) * share)])
        with pytest.raises(CorruptObject, match=r"shard-00000\.parquet is truncated"):
            list(read_shards(store, [KEY]))

    def test_over_s3_is_the_same(self, seaweedfs: SeaweedFs, bucket: str) -> None:
        store = open_store(f"{bucket}/out", seaweedfs.settings)
        info = write_shard(store, KEY, rows(100), fingerprint=MODEL, run_id=RUN)
        assert check_shard(store, KEY, fingerprint=MODEL, expected=info) == info
        store.put(KEY, store.get(KEY)[:1000])
        with pytest.raises(CorruptObject, match="truncated"):
            list(read_shards(store, [KEY]))
        with pytest.raises(ObjectMissing):
            list(read_shards(store, ["none.parquet"]))


class TestVectors:
    def test_are_a_view_of_the_batch(self) -> None:
        batch = rows(5).to_batches()[0]
        vectors = vectors_of(batch)
        assert vectors.shape == (5, EMBEDDING_DIM)
        assert vectors.dtype == np.float32
        assert vectors.ctypes.data == batch["embedding"].values.buffers()[1].address

    def test_of_a_slice_are_those_of_the_slice(self) -> None:
        batch = rows(5).to_batches()[0].slice(3)
        assert vectors_of(batch)[:, 0].tolist() == [3.0, 4.0]

    def test_of_a_table_of_two_chunks_are_joined(self) -> None:
        assert vectors_of(pa.concat_tables([rows(2), rows(2)]))[:, 7].tolist() == [0.0, 1.0, 0.0, 1.0]

    def test_of_another_length_are_refused_even_if_the_sum_is_right(self) -> None:
        chunked = changed(rows(2), 0, embedding=[0.0] * 1000)
        chunked = changed(chunked, 1, embedding=[0.0] * 1048)
        with pytest.raises(CorruptObject, match="row 0, column embedding is not of 1024 numbers"):
            vectors_of(chunked.to_batches()[0])


class TestChecking:
    @pytest.mark.parametrize(
        ("column", "value", "problem"),
        [
            ("embedding", [float("nan")] + [0.0] * 1023, "holds a number that is not finite"),
            ("embedding", [0.0] * 1023 + [float("-inf")], "holds a number that is not finite"),
            ("embedding", [0.0] * 1023, "is not of 1024 numbers"),
            ("embedding", [], "is not of 1024 numbers"),
            ("embedding", [None] + [0.0] * 1023, "holds a null"),
            ("embedding", None, "is null"),
            ("crop_id", None, "is null"),
            ("camera_id", None, "is null"),
            ("uri", "é" * (MAX_URI_BYTES // 2 + 1), "is longer than 1024 bytes"),
            ("camera_id", "c" * (MAX_NAME_BYTES + 1), "is longer than 128 bytes"),
            ("track_id", "t" * (MAX_NAME_BYTES + 1), "is longer than 128 bytes"),
            ("model_confidence", float("nan"), "is not finite"),
        ],
    )
    def test_finds_values_that_milvus_would_import_silently(
        self, store: Store, column: str, value: object, problem: str
    ) -> None:
        write_unchecked(store, changed(rows(20), 17, **{column: value}))
        with pytest.raises(CorruptObject, match=f"row 17, column {column} {problem}"):
            check_shard(store, KEY, fingerprint=MODEL)

    def test_finds_bytes_that_are_not_utf_8(self, store: Store) -> None:
        broken = pa.array([b"ok", b"\xff\xfe"], pa.binary()).view(pa.string())
        write_unchecked(store, rows(2).set_column(4, "track_id", broken))
        with pytest.raises(CorruptObject, match="column track_id"):
            check_shard(store, KEY, fingerprint=MODEL)

    def test_finds_a_crop_id_that_occurs_twice(self, store: Store) -> None:
        write_unchecked(store, changed(rows(20), 17, crop_id=3))
        with pytest.raises(DuplicateCropId, match="1 crop_ids more than once: 3"):
            check_shard(store, KEY, fingerprint=MODEL)

    def test_accepts_the_longest_names(self, store: Store) -> None:
        longest = changed(rows(2), 1, uri="é" * (MAX_URI_BYTES // 2), camera_id="c" * MAX_NAME_BYTES)
        write_shard(store, KEY, longest, fingerprint=MODEL, run_id=RUN)
        crop_ids = check_shard(store, KEY, fingerprint=MODEL).crop_ids
        assert crop_ids is not None and crop_ids.tolist() == [0, 1]

    @settings(max_examples=40, deadline=None)
    @given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
    def test_finds_any_flipped_byte(
        self, tmp_path_factory: pytest.TempPathFactory, place: float, flip: int
    ) -> None:
        store = open_store(str(tmp_path_factory.mktemp("flipped")))
        info = write_shard(store, KEY, rows(20), fingerprint=MODEL, run_id=RUN)
        altered = bytearray(store.get(KEY))
        altered[int(place * len(altered))] ^= flip
        store.put(KEY, bytes(altered))
        with pytest.raises(CorruptObject, match="was altered"):
            check_shard(store, KEY, fingerprint=MODEL, expected=info)

    def test_of_a_missing_shard_names_its_key(self, store: Store) -> None:
        written = write_shard(store, KEY, rows(1), fingerprint=MODEL, run_id=RUN)
        store.delete(KEY)
        for expected in (None, written):
            with pytest.raises(ObjectMissing, match=r"shard-00000\.parquet"):
                check_shard(store, KEY, fingerprint=MODEL, expected=expected)
