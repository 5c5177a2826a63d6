"""Tables of users: told apart by content, with errors that name the place, and bounded in memory."""

import bz2
import gzip
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import BadInput, BadLabels, BucketMissing, ClvrError, ObjectMissing
from infra.store import read_user_table, tables
from infra.store.cells import Kind

KINDS: dict[str, Kind] = {"uri": "text", "model_id": "id"}
TABLE = pa.table({"uri": ["a", "b"], "model_id": [1, 2]})
MB = 1 << 20


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


def read(path: Path, kinds: dict[str, Kind] = KINDS, **options: Any) -> pa.Table:
    return read_user_table(str(path), kinds, **options)


@pytest.mark.parametrize(
    "data",
    [
        b"uri,model_id\na,1\nb,2\n",
        b"\xef\xbb\xbfuri,model_id\na,1\nb,2\n",
        b"uri,model_id\r\na,1\r\nb,2\r\n",
        b"uri,model_id\ra,1\rb,2\r",
        b"\n\nuri,model_id\na,1\n\nb,2\n\n",
        b'"uri","model_id"\n"a",1\nb,2',
        b"uri;model_id\na;1\nb;2\n",
        b"uri\tmodel_id\na\t1\nb\t2\n",
        b"sep=;\nuri;model_id\na;1\nb;2\n",
        b" uri , model_id\na,1\nb,2\n",
        b"other,uri,model_id,other\n9,a,1,\n,b,2,\n",
        "uri,model_id\na,1\nb,2\n".encode("utf-16"),
        gzip.compress(b"uri,model_id\na,1\n", mtime=0) + gzip.compress(b"b,2\n", mtime=0),
    ],
    ids=[
        "plain",
        "byte order mark",
        "CRLF",
        "CR",
        "blank lines",
        "quotes",
        "semicolons",
        "tabs",
        "separator line",
        "spaced names",
        "unused columns",
        "UTF-16",
        "gzip of two members",
    ],
)
def test_csv_variants_give_the_same_table(csv_file: Path, data: bytes) -> None:
    csv_file.write_bytes(data)
    assert read(csv_file).equals(TABLE)


def test_text_keeps_every_field_as_written_and_an_empty_field_is_unknown(csv_file: Path) -> None:
    fields = ["007", "1e5", "12:30", "false", "NULL", " 1.50", "nan", "-1", "1_000"]
    csv_file.write_text("id,uri\n" + "".join(f"{field},x\n" for field in fields) + ",x\n")
    assert read(csv_file, {"id": "text"})["id"].to_pylist() == [*fields, None]


def test_columns_come_in_the_order_of_the_kinds_and_absent_ones_are_left_out(csv_file: Path) -> None:
    csv_file.write_text("b,a,x\n1,2,3\n")
    assert read(csv_file, {"a": "text", "b": "id", "c": "time"}).to_pylist() == [{"a": "2", "b": 1}]


def test_a_quoted_field_may_have_commas_quotes_and_line_breaks(csv_file: Path) -> None:
    csv_file.write_text('uri,model_id\n"a, ""b""\nc",1\n')
    assert read(csv_file).to_pylist() == [{"uri": 'a, "b"\nc', "model_id": 1}]


def test_a_quoted_line_break_is_kept_at_every_place_of_a_large_file(csv_file: Path) -> None:
    rows = 160_000
    csv_file.write_text(
        "uri,model_id\n" + "".join(f'"{"x" * 60}\n{"y" * 60}",{row}\n' for row in range(rows))
    )
    assert csv_file.stat().st_size > 16 * MB  # more than one block of the reader
    assert read(csv_file)["model_id"].to_pylist() == list(range(rows))


@pytest.mark.parametrize("text", ["uri,model_id\n", "uri,model_id"])
def test_a_header_without_rows_is_an_empty_table(csv_file: Path, text: str) -> None:
    csv_file.write_text(text)
    table = read(csv_file)
    assert (table.column_names, table.num_rows) == (["uri", "model_id"], 0)


@pytest.mark.parametrize("name", ["table.parquet", "table.csv", "table"])
@pytest.mark.parametrize("zipped", [False, True])
def test_parquet_is_recognised_by_its_content(tmp_path: Path, name: str, zipped: bool) -> None:
    pq.write_table(TABLE, tmp_path / name)
    if zipped:
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert read(tmp_path / name).equals(TABLE)


def test_csv_is_recognised_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_text("uri,model_id\na,1\nb,2\n")
    assert read(tmp_path / "table.parquet").equals(TABLE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"table\.csv is empty"),
        (b"\xef\xbb\xbf \r\n\n", r"table\.csv is empty"),
        (b"uri,size\na,1\n\nb,big\n", r"data row 2, column size: 'big' is not a whole number"),
        (b'uri,size\n"a\nb",1\nc,big\n', r"data row 2, column size: 'big'"),
        (b"uri,size\na,1\nb\n", r"table\.csv, data row 2: 1 fields, but the header has 2"),
        (b"uri,size\na,1,2\n", r"table\.csv, data row 1: 3 fields, but the header has 2"),
        (b'uri,size\n"a,1\nb,2\n', r"table\.csv, data row 1: 1 fields, but the header has 2"),
        (b"uri,size\na,1\n\xff,2\n", r"table\.csv, line 3: not UTF-8"),
        (b"uri,\xff\na,1\n", r"table\.csv, line 1: not UTF-8"),
        (b"uri,size,uri\na,1,b\n", "two columns named uri"),
        (b"uri,size, uri\na,1,b\n", "two columns named uri"),
        (b"a.jpg,1\nb.jpg,2\n", r"has no column uri"),
        (b"uri,size\n\0\0\0\0,1\n", "zero bytes"),
        (b"PK\x03\x04 and more", "a ZIP archive or a spreadsheet"),
        (bz2.compress(b"uri,size\na,1\n"), "compressed by bzip2"),
        (gzip.compress(b"uri,size\na,1\n", mtime=0)[:-9], "has no end"),
        (b"\x1f\x8b\x08 no gzip", "not a usable gzip file|has no end"),
        (b"PAR1 but no more", "not a usable Parquet file"),
        (b"PAR1" + bytes(40) + b"PAR1", "not a usable Parquet file"),
        ("\ufeffuri,size\n".encode("utf-16-le") + b"a", "not valid UTF-16"),
        (b'uri,size\n"' + b"a" * (17 * MB), "row of more than 16 MB|1 fields"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_with_the_place(
    csv_file: Path, data: bytes, message: str
) -> None:
    csv_file.write_bytes(data)
    with pytest.raises(BadInput, match=message) as caught:
        read(csv_file, {"uri": "text", "size": "integer"}, required=["uri"])
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "column",
    [pa.array([["a"]]), pa.array([{"a": 1}]), pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))],
)
def test_nested_columns_are_refused_if_they_are_used(tmp_path: Path, column: Any) -> None:
    pq.write_table(pa.table({"uri": ["a"], "model_id": column}), tmp_path / "t.parquet")
    with pytest.raises(BadInput, match=r"column model_id is .*, not a whole number"):
        read(tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", {"uri": "text"}).to_pylist() == [{"uri": "a"}]


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["uri", "uri"]), tmp_path / "t")
    with pytest.raises(BadInput, match="two columns named uri"):
        read(tmp_path / "t")


def test_one_of_several_columns_may_be_required(csv_file: Path) -> None:
    csv_file.write_text("key,x\na,1\n")
    assert read(csv_file, {"uri": "text", "key": "text"}, required=[("uri", "key")]).num_rows == 1
    with pytest.raises(BadInput, match="no column uri or file") as caught:
        read(csv_file, {"uri": "text", "file": "text"}, required=[("uri", "file")])
    assert caught.value.remedy == "Add it; the file has: key, x."


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a folder, not a table"):
        read(tmp_path)
    with pytest.raises(BadInput, match="not a regular file"):
        read(Path("/dev/null"))


def test_the_caller_chooses_the_error(csv_file: Path) -> None:
    csv_file.write_bytes(b"")
    with pytest.raises(BadLabels):
        read(csv_file, error=BadLabels)


def test_a_missing_file_and_a_missing_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ObjectMissing, match=r"absent\.csv"):
        read(tmp_path / "absent.csv")
    with pytest.raises(BucketMissing, match="absent"):
        read(tmp_path / "absent" / "table.csv")


def one_value(rows: int, text: str) -> pa.Table:
    """Return a column of one text, which takes a few bytes in a Parquet file."""
    indices = pa.repeat(pa.scalar(0, pa.int32()), rows)
    return pa.table({"uri": pa.DictionaryArray.from_arrays(indices, pa.array([text]))})


BOMBS = {
    "one value in a dictionary": lambda path: pq.write_table(one_value(2_000_000, "x" * 10_000), path),
    "one value of many MB": lambda path: pq.write_table(one_value(2_000, "x" * 10 * MB), path),
    "nulls": lambda path: pq.write_table(
        pa.table({"uri": pa.nulls(80_000_000, pa.string())}), path, row_group_size=80_000_000
    ),
    "compressed": lambda path: pq.write_table(
        pa.table({"uri": ["x" * MB] * 300}), path, use_dictionary=False, compression="zstd"
    ),
    "common beginnings": lambda path: pq.write_table(
        pa.table({"uri": ["x" * MB] * 600}),
        path,
        use_dictionary=False,
        column_encoding={"uri": "DELTA_BYTE_ARRAY"},
        compression="zstd",
    ),
    "gzip": lambda path: path.write_bytes(gzip.compress(b"uri\n" + bytes(300 * MB), 1)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_decodes_to_a_large_table_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb"
    BOMBS[name](path)
    assert path.stat().st_size < 2 * MB
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match="decodes to more than a table of this size may"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 600 * MB
    finally:
        tracemalloc.stop()
    assert pa.total_allocated_bytes() - before < 64 * MB


def test_a_table_of_many_rows_and_few_values_is_no_bomb(tmp_path: Path) -> None:
    pq.write_table(one_value(1_000_000, "x" * 100), tmp_path / "t")
    assert read(tmp_path / "t").num_rows == 1_000_000


def test_the_rows_of_a_csv_file_have_the_same_budget(csv_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_DECODED_BYTES", 1000)
    csv_file.write_text("uri\n" + "x" * 2000)
    with pytest.raises(BadInput, match="decodes to more"):
        read(csv_file)


def test_a_file_that_ends_the_parquet_library_is_refused(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "t")
    good = (tmp_path / "t").read_bytes()
    refused = 0
    for position in range(len(good) - 60, len(good) - 8, 4):  # the footer
        (tmp_path / "t").write_bytes(good[:position] + b"\xff" + good[position + 1 :])
        try:
            read(tmp_path / "t")
        except BadInput as error:
            refused += "not a usable Parquet file" in error.message
    assert refused


def test_altered_files_never_raise_anything_but_our_errors(tmp_path: Path) -> None:
    kinds: dict[str, Kind] = {"uri": "text", "model_id": "id", "captured_at": "time", "lat": "number"}
    full = pa.table(
        {
            "uri": [f"k{n}" for n in range(50)],
            "model_id": list(range(50)),
            "captured_at": [1_767_600_000_000 + n for n in range(50)],
            "lat": [n / 7 for n in range(50)],
        }
    )
    pq.write_table(full, tmp_path / "good")
    text = "uri,model_id,captured_at,lat\n" + "".join(
        f"k{n},{n},2026-01-05T10:00:{n % 60:02d}Z,{n / 7}\n" for n in range(50)
    )
    path = tmp_path / "altered"
    rng = random.Random(1)  # no secret
    zipped = gzip.compress(text.encode())
    for good, times in ((tmp_path / "good").read_bytes(), 12), (text.encode(), 150), (zipped, 50):
        for _ in range(times):
            data = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(4, len(data))] = rng.randrange(256)
            path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
            try:
                read(path, kinds)
            except ClvrError as error:
                assert "\n" not in error.message
