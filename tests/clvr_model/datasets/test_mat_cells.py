"""Cell arrays of MATLAB 5 files: tables are read as MATLAB has them, and hostile files cost no memory."""

import struct
import zlib

import numpy as np
import pytest
from dataset_releases import mat

from clvr_model.datasets.mat_cells import MAX_BYTES, read_cells
from infra.errors import BadLabels

TABLE = [["Audi", "Audi Q5", 3.0], ["", "五菱", -1.0], ["BMW", "3 Series 運動", 2004.0]]


@pytest.mark.parametrize("compressed", [True, False])
def test_texts_and_numbers_of_a_table_are_read_by_row(compressed: bool) -> None:
    data = mat(compressed, other=[["x"]], table=TABLE)
    assert read_cells(data, "table", "a.mat") == TABLE
    assert read_cells(data, "other", "a.mat") == [["x"]]


def test_a_long_column_is_read_whole() -> None:
    rows = [[f"1/{number:014x}.jpg", float(number % 11 - 1)] for number in range(5000)]
    assert read_cells(mat(color_list=rows), "color_list", "a.mat") == rows


def element(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def array(flag: int, shape: tuple[int, int], name: bytes, *content: bytes) -> bytes:
    parts = (
        element(6, struct.pack(">II", flag, 0)),
        element(5, struct.pack(">ii", *shape)),
        element(1, name),
    )
    return element(14, b"".join((*parts, *content)))


HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI"


def test_a_file_of_a_machine_with_the_other_byte_order_is_read() -> None:
    text = array(4, (1, 3), b"", element(4, "Kia".encode("utf-16-be")))
    number = array(6, (1, 1), b"", element(9, struct.pack(">d", 7.0)))
    data = HEADER + array(1, (1, 2), b"t", text, number)
    assert read_cells(data, "t", "a.mat") == [["Kia", 7.0]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no such header"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 200, "MATLAB 7.3"),
        (mat(other=[["x"]]), "no such variable"),
        (HEADER + array(6, (1, 1), b"t", element(9, struct.pack(">d", 1.0))), "no two-dimensional cell"),
        (HEADER + array(1, (2**30, 2**30), b"t"), "more than 1,000,000"),
        (HEADER + array(1, (-1, 4), b"t"), "more than 1,000,000"),
        (HEADER + array(1, (1, 1), b"t", array(1, (1, 1), b"", array(4, (1, 0), b""))), "neither a row"),
        (HEADER + array(1, (1, 1), b"t", array(6, (1, 2), b"")), "neither a row of text nor one number"),
        (HEADER + array(1, (1, 2), b"t", array(4, (1, 0), b"")), "ends within an element"),
        (HEADER + struct.pack(">II", 14, 2**31) + b"x", "ends within an element"),
        (HEADER + struct.pack(">II", 15, 4) + b"junk", "not a MATLAB 5 file"),
    ],
)  # fmt: skip
def test_another_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadLabels, match=message):
        read_cells(data, "t", "a.mat")


def test_a_file_that_decompresses_to_more_than_the_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_BYTES == 128 * 2**20
    monkeypatch.setattr("clvr_model.datasets.mat_cells.MAX_BYTES", 1000)
    packed = zlib.compress(b"\0" * 1001)
    with pytest.raises(BadLabels, match="decompresses to more than 1,000 bytes"):
        read_cells(HEADER + struct.pack(">II", 15, len(packed)) + packed, "t", "a.mat")


@pytest.mark.parametrize("compressed", [True, False])
def test_changed_bytes_never_cause_another_error(compressed: bool) -> None:
    data, rng = mat(compressed, table=TABLE), np.random.default_rng(3)
    refused = 0
    for _ in range(400):
        changed = bytearray(data)
        for position in rng.integers(124, len(data), rng.integers(1, 4)):
            changed[position] = rng.integers(256)
        try:
            read_cells(bytes(changed[: rng.integers(len(data) // 2, len(data) + 1)]), "table", "a.mat")
        except BadLabels:
            refused += 1
    assert refused > 100
