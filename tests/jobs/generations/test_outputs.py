"""What commands wrote elsewhere: an audit finds erased crops in it, a purge removes them."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.archive.manifest import crop_id_of
from index.outputs import record_output, unfinished_page, withdraw_erased
from index.runs.tombstones import read_tombstones, write_tombstones
from infra.errors import BadInput, BadSetting
from infra.store import Store, open_store
from jobs.generations.outputs import find_in_outputs, purge_outputs
from jobs.pages.html import write_page
from jobs.runtime.result_table import write_crop_table, write_result_table

ERASED, KEPT = "s3://archive/cam-1/1.jpg", "s3://archive/cam-1/2.jpg"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "runs"))
    store.create_bucket()
    write_tombstones(store, "e", np.array([crop_id_of(ERASED)]), [None])
    store.put("erasures/e/receipt.json", b"{}")
    return store


def found(store: Store) -> int:
    return sum(place.found for place in find_in_outputs([store], read_tombstones(store)))


def purge(store: Store) -> None:
    purge_outputs([store], read_tombstones(store))


def test_a_page_that_shows_an_erased_crop_is_deleted_also_an_unfinished_one(
    store: Store, tmp_path: Path
) -> None:
    page, other, cut_off = (tmp_path / name for name in ("a.html", "b.html", "c.html"))
    record_output(store, "page", str(page), [crop_id_of(ERASED)])
    write_page(page, "<img>")
    record_output(store, "page", str(other), [crop_id_of(KEPT)])
    write_page(other, f"<p>{KEPT}</p>")
    record_output(store, "page", str(cut_off), [crop_id_of(KEPT)])
    (tmp_path / unfinished_page("c.html")).write_text(f"<p>{ERASED}</p><p>and")
    assert found(store) == 2
    purge(store)
    assert found(store) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.html", "runs"]


def test_tables_of_matches_lose_an_erased_crop_and_are_withdrawn_if_it_was_erased_meanwhile(
    store: Store, tmp_path: Path
) -> None:
    table = pa.table({"crop_id": [crop_id_of(ERASED), crop_id_of(KEPT)], "uri": [ERASED, KEPT]})
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(BadInput, match="was erased meanwhile"):
            write_crop_table(store, str(tmp_path / name), table)
        write_result_table(str(tmp_path / name), table)  # as a table of before the erasure
    assert found(store) == 2
    purge(store)
    assert found(store) == 0
    assert not (tmp_path / "a.csv").exists()
    assert pq.read_table(tmp_path / "a.parquet")["uri"].to_pylist() == [KEPT]


def test_a_training_loses_the_files_of_interrupted_writes(store: Store, tmp_path: Path) -> None:
    record_output(store, "training", str(tmp_path / "net"), [crop_id_of(KEPT)])
    open_store(str(tmp_path / "net")).put("training/x/log.json", b"{}")
    left = tmp_path / "net/training/x/features-1.safetensors#1"
    left.write_bytes(b"half")
    assert found(store) == 1
    os.utime(left, (1.0, 1.0))
    purge(store)
    assert not left.exists()
    assert found(store) == 0


def test_a_page_whose_crop_was_erased_while_it_was_made_is_withdrawn(store: Store, tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    write_page(page, "<img>")
    withdraw_erased(store, page, [crop_id_of(KEPT)])
    assert page.exists()
    with pytest.raises(BadInput, match="was erased meanwhile"):
        withdraw_erased(store, page, [crop_id_of(KEPT), crop_id_of(ERASED)])
    assert not page.exists()


def test_a_page_in_a_folder_that_does_not_exist_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"nowhere/a\.html cannot be written: No such file"):
        write_page(tmp_path / "nowhere/a.html", "<p>")
