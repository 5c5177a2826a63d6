"""Tables of users: CSV and Parquet are told apart by content, and errors name the place."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import BadInput, BadLabels, BucketMissing, ObjectMissing
from infra.store import read_user_table

TABLE = pa.table({"uri": ["a", "b"], "model_id": [1, 2]})


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


def test_a_csv_file_is_read_with_the_types_that_its_values_suggest(csv_file: Path) -> None:
    csv_file.write_text("uri,model_id\na,1\nb,2\n")
    assert read_user_table(str(csv_file)).equals(TABLE)


def test_a_given_type_replaces_the_suggested_one(csv_file: Path) -> None:
    csv_file.write_text("camera_id,size\n007,1\n")
    table = read_user_table(str(csv_file), types={"camera_id": pa.string(), "absent": pa.int8()})
    assert table.to_pylist() == [{"camera_id": "007", "size": 1}]


def test_a_csv_file_as_text_keeps_every_field_as_written(csv_file: Path) -> None:
    csv_file.write_text('id,note\n007,\nNULL," 1.50"\n')
    assert read_user_table(str(csv_file), text=True).to_pylist() == [
        {"id": "007", "note": ""},
        {"id": "NULL", "note": " 1.50"},
    ]


def test_a_given_type_wins_over_text(csv_file: Path) -> None:
    csv_file.write_text("id,size\n007,1\n")
    table = read_user_table(str(csv_file), types={"size": pa.int64()}, text=True)
    assert table.to_pylist() == [{"id": "007", "size": 1}]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfuri,model_id\na,1\nb,2\n",
        b"uri,model_id\r\na,1\r\nb,2\r\n",
        b"uri,model_id\na,1\n\nb,2\n\n",
        b'"uri","model_id"\n"a",1\nb,2',
    ],
    ids=["byte order mark", "CRLF", "blank lines", "quotes"],
)
def test_csv_variants_give_the_same_table(csv_file: Path, data: bytes) -> None:
    csv_file.write_bytes(data)
    assert read_user_table(str(csv_file)).equals(TABLE)


def test_a_quoted_field_may_have_commas_quotes_and_line_breaks(csv_file: Path) -> None:
    csv_file.write_text('name,id\n"a, ""b""\nc",1\n')
    assert read_user_table(str(csv_file)).to_pylist() == [{"name": 'a, "b"\nc', "id": 1}]


def test_a_quoted_line_break_is_kept_at_every_place_of_a_large_file(csv_file: Path) -> None:
    rows = 20_000
    csv_file.write_text("name,id\n" + "".join(f'"{"x" * 60}\n{"y" * 60}",{row}\n' for row in range(rows)))
    assert csv_file.stat().st_size > 2 << 20  # more than one block of pyarrow's reader
    assert read_user_table(str(csv_file))["id"].to_pylist() == list(range(rows))


def test_a_header_without_rows_is_an_empty_table(csv_file: Path) -> None:
    csv_file.write_text("uri,model_id\n")
    table = read_user_table(str(csv_file))
    assert (table.column_names, table.num_rows) == (["uri", "model_id"], 0)


@pytest.mark.parametrize("name", ["table.parquet", "table.csv", "table"])
def test_parquet_is_recognised_by_its_content(tmp_path: Path, name: str) -> None:
    pq.write_table(TABLE, tmp_path / name)
    assert read_user_table(str(tmp_path / name)).equals(TABLE)


def test_csv_is_recognised_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_text("uri,model_id\na,1\nb,2\n")
    assert read_user_table(str(tmp_path / "table.parquet")).equals(TABLE)


def test_types_and_text_leave_parquet_as_it_is(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "table.parquet")
    table = read_user_table(str(tmp_path / "table.parquet"), types={"model_id": pa.string()}, text=True)
    assert table.equals(TABLE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a usable CSV file: Empty CSV file"),
        (b"uri,size\na,1\n\nb,big\n", r"column size, data row 2: .*int64: invalid value 'big'"),
        (b'uri,size\n"a\nb",1\nc,big\n', r"column size, data row 2: "),
        (b"uri,size\na,1\nb\n", r"table\.csv, data row 2: 1 fields, but the header has 2"),
        (b"uri,size\na,1,2\n", r"table\.csv, data row 1: 3 fields, but the header has 2"),
        (b'uri,size\n"a,1\nb,2\n', r"table\.csv, data row 1: 1 fields, but the header has 2"),
        (b"uri,size\na,1\n\xff,2\n", r"table\.csv, line 3: not UTF-8"),
        (b"uri,\xff\na,1\n", r"table\.csv, line 1: not UTF-8"),
        (b"uri,size,uri\na,1,b\n", "two columns named uri"),
    ],
    ids=[
        "empty",
        "type",
        "type after line break",
        "short",
        "long",
        "open quote",
        "bytes",
        "name",
        "repeated",
    ],
)
def test_a_wrong_csv_file_is_refused_with_the_place(csv_file: Path, data: bytes, message: str) -> None:
    csv_file.write_bytes(data)
    with pytest.raises(BadInput, match=message):
        read_user_table(str(csv_file), types={"uri": pa.string(), "size": pa.int64()})


def test_columns_without_a_name_may_be_repeated(csv_file: Path) -> None:
    csv_file.write_text("uri,,\na,,\n")
    assert read_user_table(str(csv_file))["uri"].to_pylist() == ["a"]


def test_broken_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"PAR1 but no more")
    with pytest.raises(BadInput, match=r"table\.csv is not a usable Parquet file"):
        read_user_table(str(tmp_path / "table.csv"))


def test_a_file_named_parquet_that_is_neither_form_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_bytes(b"")
    with pytest.raises(BadInput, match=r"table\.parquet is not a usable Parquet or CSV file"):
        read_user_table(str(tmp_path / "table.parquet"))


def test_the_caller_chooses_the_error(csv_file: Path) -> None:
    csv_file.write_bytes(b"")
    with pytest.raises(BadLabels):
        read_user_table(str(csv_file), error=BadLabels)


def test_a_missing_file_and_a_missing_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ObjectMissing, match=r"absent\.csv"):
        read_user_table(str(tmp_path / "absent.csv"))
    with pytest.raises(BucketMissing, match="absent"):
        read_user_table(str(tmp_path / "absent" / "table.csv"))
