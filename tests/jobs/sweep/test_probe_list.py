"""Probe lists: a table keeps its names as written, and a folder has no hidden probes."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import BadInput
from jobs.sweep.probe_list import read_probe_list


def test_names_of_probes_are_text_as_written(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("probe_id,uri\n007,a.jpg\n1e5,b.jpg\n12:30,c.jpg\nfalse,d.jpg\n")
    assert read_probe_list(str(tmp_path / "p.csv"))["probe_id"].to_pylist() == [
        "007",
        "1e5",
        "12:30",
        "false",
    ]


def test_a_table_may_be_of_any_form(tmp_path: Path) -> None:
    table = pa.table({"uri": pa.array([b"a.jpg", b"b.jpg"]).dictionary_encode(), "probe_id": [7, 8]})
    pq.write_table(table, tmp_path / "p.parquet")
    rows = read_probe_list(str(tmp_path / "p.parquet")).select(["probe_id", "uri"]).to_pylist()
    assert rows == [{"probe_id": "7", "uri": "a.jpg"}, {"probe_id": "8", "uri": "b.jpg"}]


@pytest.mark.parametrize("text", ["", "name\na.jpg\n", "uri,uri\na,b\n", "uri\n", "uri,probe_id\n,1\n"])
def test_a_table_without_probes_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(BadInput):
        read_probe_list(str(tmp_path / "p.csv"))


def test_a_folder_has_no_hidden_probes(tmp_path: Path) -> None:
    for name in ("a.jpg", "._a.jpg", ".thumbnails/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert read_probe_list(str(tmp_path))["probe_id"].to_pylist() == ["a.jpg"]
