"""Split files are read as they were written, and those of other crops are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.evaluation.protocols import draw_splits, evaluate_protocol
from index.evaluation.splits import SPLIT_SCHEMA, read_splits, write_splits
from infra.errors import BadInput
from infra.store import open_store

IDS = np.array([5, 5, 5, 8, 8, 3, 9, 9])
CAMERAS = np.array(["1", "2", "2", "1", "3", "1", "2", "1"])


def test_splits_are_read_as_written(tmp_path: Path) -> None:
    crop_ids = np.array([90, 10, 80, 20, 70, 30, 60, 2**62])
    drawn = {
        "vehicleid-paper": draw_splits("vehicleid-paper", IDS, repeats=4, seed=3),
        "veri": draw_splits("veri", IDS, CAMERAS, repeats=2, seed=3),
    }
    write_splits(tmp_path / "splits.parquet", drawn, crop_ids)
    # Another run holds the same crops in another order.
    order = np.random.default_rng(0).permutation(8)
    read = read_splits(tmp_path / "splits.parquet", crop_ids[order])
    assert {name: len(splits) for name, splits in read.items()} == {"vehicleid-paper": 4, "veri": 2}
    for name, splits in drawn.items():
        for written, split in zip(splits, read[name], strict=True):
            assert crop_ids[written.probes].tolist() == crop_ids[order][split.probes].tolist()
            assert crop_ids[written.gallery].tolist() == crop_ids[order][split.gallery].tolist()


def test_figures_on_read_splits_equal_those_of_the_draw(tmp_path: Path) -> None:
    features = np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)
    drawn = evaluate_protocol("vehicleid-common", features, IDS, repeats=3, seed=5)
    write_splits(tmp_path / "s.parquet", {"vehicleid-common": drawn.splits}, np.arange(8))
    read = read_splits(tmp_path / "s.parquet", np.arange(8))["vehicleid-common"]
    again = evaluate_protocol("vehicleid-common", features, IDS, splits=read)
    assert again.curves.tolist() == drawn.curves.tolist()
    assert again.has_user_splits
    assert "from given lists" in again.summary()


def test_splits_of_another_run_are_refused(tmp_path: Path) -> None:
    write_splits(tmp_path / "s.parquet", {"p": draw_splits("vehicleid-paper", IDS, repeats=2)}, np.arange(8))
    with pytest.raises(BadInput, match="names 2 crops without an embedding in this run, the first is 7"):
        read_splits(tmp_path / "s.parquet", np.arange(7))
    with pytest.raises(BadInput, match="without an embedding"):
        read_splits(tmp_path / "s.parquet", np.array([], dtype=np.int64))


def test_every_altered_bit_is_noticed(tmp_path: Path, assert_flips_are_noticed: Callable[..., None]) -> None:
    path, crop_ids = tmp_path / "s.parquet", np.arange(8)
    write_splits(path, {"p": draw_splits("vehicleid-paper", IDS, repeats=2)}, crop_ids)

    def read() -> list[list[int]]:
        splits = read_splits(path, crop_ids)["p"]
        return [[*split.probes.tolist(), *split.gallery.tolist()] for split in splits]

    assert_flips_are_noticed(open_store(str(tmp_path)), path.name, read)


def test_files_that_are_not_splits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("repeat,role\n")
    with pytest.raises(BadInput, match="has no column protocol"):
        read_splits(tmp_path / "text", np.arange(8))
    with pytest.raises(BadInput, match="not a split file"):
        read_splits(tmp_path / "absent", np.arange(8))
    (tmp_path / "csv").write_text("protocol,repeat,role,crop_id\np,0,probe,1\np,0,,2\n")
    with pytest.raises(BadInput, match="data row 2: empty role"):
        read_splits(tmp_path / "csv", np.arange(8))
    for roles, message in (
        (["probe", "query"], "other than probe and gallery"),
        (["probe", "probe"], "repeat 0 of p has no probes or no gallery"),
    ):
        rows = {"protocol": ["p", "p"], "repeat": [0, 0], "role": roles, "crop_id": [0, 1]}
        pq.write_table(pa.table(rows, schema=SPLIT_SCHEMA), tmp_path / "s.parquet")
        with pytest.raises(BadInput, match=message):
            read_splits(tmp_path / "s.parquet", np.arange(8))
