"""A converted network is used again only if it is the very one that would be made."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clvr_model import graph_cache
from clvr_model.card import Card
from clvr_model.engines import openvino
from clvr_model.graph_cache import cached_graph

pytestmark = pytest.mark.skipif(openvino() is None, reason="needs openvino")

INPUT = np.array([[1, 2, 3]], np.float32)


class Converter:
    """Converts a network that multiplies by a factor, and counts."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        ops = openvino().opset13
        given = ops.parameter([-1, 3], np.float32)
        factors = ops.constant(np.full((1, 3), self.factor, np.float32))
        return openvino().Model([ops.multiply(given, factors)], [given])


def card(number: int) -> Card:
    return Card(label_ids=(), architecture={"classes": 0}, weights_sha256=f"{number:064x}")


def answer(cache: Path, card: Card, convert: Callable[[], Any]) -> list[float]:
    compiled = openvino().Core().compile_model(cached_graph(cache, card, convert), "CPU")
    return [float(value) for value in compiled(INPUT)[0][0]]


def entry(cache: Path) -> Path:
    (found,) = (path for path in (cache / "graphs").iterdir() if path.is_dir())
    return found


def test_a_flipped_bit_of_any_file_is_noticed_and_repaired(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert = Converter(2)
    assert answer(tmp_path, card(1), convert) == answer(tmp_path, card(1), convert) == [2, 4, 6]
    assert convert.calls == 1
    files = {path.name: path.read_bytes() for path in entry(tmp_path).iterdir()}
    assert set(files) == {"graph.xml", "graph.bin", "graph.json"}
    for name, data in files.items():
        for position in (0, len(data) // 2, len(data) - 1):
            altered = bytearray(data)
            altered[position] ^= 0x10
            (entry(tmp_path) / name).write_bytes(altered)
            calls = convert.calls
            assert answer(tmp_path, card(1), convert) == [2, 4, 6], (name, position)
            assert convert.calls == calls + 1, (name, position)
        (entry(tmp_path) / name).unlink()
        assert answer(tmp_path, card(1), convert) == [2, 4, 6]
        assert {path.name for path in entry(tmp_path).iterdir()} == set(files)
    assert any("is damaged and is made again" in record.message for record in caplog.records)


def test_another_checkpoint_version_or_place_is_never_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(tmp_path, card(1), Converter(2)) == [2, 4, 6]
    assert answer(tmp_path, card(2), Converter(3)) == [3, 6, 9]
    other = Card(label_ids=(), architecture={"classes": 1}, weights_sha256=f"{1:064x}")
    assert answer(tmp_path, other, Converter(4)) == [4, 8, 12]
    with monkeypatch.context() as patch:
        patch.setattr(openvino(), "__version__", "1.0")
        assert answer(tmp_path, card(1), Converter(5)) == [5, 10, 15]
    with monkeypatch.context() as patch:
        patch.setattr(graph_cache, "CONVERSION_VERSION", graph_cache.CONVERSION_VERSION + 1)
        assert answer(tmp_path, card(1), Converter(6)) == [6, 12, 18]
    with monkeypatch.context() as patch:
        patch.setattr(graph_cache, "version", lambda name: "0")
        assert answer(tmp_path, card(1), Converter(7)) == [7, 14, 21]
    assert answer(tmp_path, card(1), Converter(8)) == [2, 4, 6]
    # One whole graph in the place of another one.
    first, second = tmp_path / "first", tmp_path / "second"
    answer(first, card(1), Converter(2))
    answer(second, card(2), Converter(3))
    place = entry(second)
    shutil.rmtree(place)
    shutil.copytree(entry(first), place)
    assert answer(second, card(2), Converter(3)) == [3, 6, 9]
    assert answer(tmp_path, Card(label_ids=()), Converter(9)) == [9, 18, 27], "a card that was never saved"


def test_the_last_used_graphs_are_kept_and_leftovers_of_kills_are_not(tmp_path: Path) -> None:
    kept, convert = card(0), Converter(2)
    answer(tmp_path, kept, convert)
    (tmp_path / "graphs" / ".new-killed").mkdir()
    for number in range(1, graph_cache.MAX_GRAPHS + 3):
        answer(tmp_path, card(number), Converter(number))
        answer(tmp_path, kept, convert)
    assert convert.calls == 1
    folders = [path.name for path in (tmp_path / "graphs").iterdir() if path.is_dir()]
    assert len(folders) == graph_cache.MAX_GRAPHS
    assert ".new-killed" not in folders


def test_a_folder_that_others_may_write_to_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert = Converter(2)
    answer(tmp_path, card(1), convert)
    (tmp_path / "graphs").chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert answer(tmp_path, card(1), convert) == [2, 4, 6]
    assert convert.calls == 2
    assert "others may write to it" in caplog.text
    (tmp_path / "file").write_text("")
    assert answer(tmp_path / "file", card(1), convert) == [2, 4, 6]
