"""The Python API as its users call it, on a small archive that the command line has indexed."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clvr_model
import index
from clvr_model import Checkpoint, Embedder, export_checkpoint, load_checkpoint
from clvr_model.card import Card
from clvr_model.checkpoint import save_checkpoint
from clvr_model.engines import openvino
from clvr_model.network import Architecture, Clvr
from index import Filters, Index, list_runs, nearest, open_run, read_embeddings, to_table, vectors_of
from infra.errors import BadInput, BadSetting, FingerprintMismatch, Mismatch, UnreadableImage

ROOT = Path(__file__).parents[2]
KEYS = "dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of random weights with four vehicle models, of a small network."""
    folder = tmp_path_factory.mktemp("small")
    network = Clvr.of(Architecture(backbone="efficientnet_lite0", classes=4), seed=1)
    save_checkpoint(str(folder), network, Card(label_ids=(3, 5, 8, 13)))
    return str(folder)


@pytest.fixture(scope="module")
def folder(archive: Path, checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of `make demo`, of a smaller archive and random weights."""
    folder = tmp_path_factory.mktemp("api")
    shutil.copytree(archive, folder / "demo")
    shutil.copytree(checkpoint, folder / "demo" / "model")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CLVR_", "AWS_"))}
    clean |= {"CLVR_RUNS": "demo/data", "CLVR_MILVUS": "demo/milvus.db"}
    embed = ["embed", "demo/archive", "--checkpoint", "demo/model", "--key-pattern", KEYS]
    for command in (embed, ["load", "latest"], ["promote", "latest"]):
        process = [sys.executable, "-m", "jobs", *command]
        done = subprocess.run(process, cwd=folder, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[Path]:
    return sorted((folder / "demo" / "archive").rglob("*.jpg"))[:9]


@pytest.mark.parametrize("module", [clvr_model, index])
def test_every_public_name_exists_and_is_documented(module: object) -> None:
    for name in module.__all__:  # type: ignore[attr-defined]
        assert getattr(module, name).__doc__, name
    assert module.__version__  # type: ignore[attr-defined]
    assert set(module.__all__) <= set(dir(module))  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no attribute 'Embeder'"):
        module.Embeder  # type: ignore[attr-defined]  # noqa: B018


def test_the_packages_import_without_torch_and_pymilvus() -> None:
    code = "import sys, clvr_model, index; print({'torch', 'pymilvus', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_all_kinds_of_images_have_the_feature_of_the_file(checkpoint: str, paths: list[Path]) -> None:
    embedder = Embedder(checkpoint, batch_size=4)
    expected = embedder.embed(paths)
    assert expected.features.shape == (9, 1024)
    assert len(set(expected.model_id.tolist()) - {3, 5, 8, 13}) == 0
    data = [path.read_bytes() for path in paths]
    pictures = [Image.open(io.BytesIO(body)) for body in data]
    arrays = [np.asarray(picture.convert("RGB")) for picture in pictures]
    mixed = [str(paths[0]), paths[1], data[2], pictures[3], arrays[4], *paths[5:]]
    for images in (data, pictures, arrays, mixed):
        # JPEG decoders differ by a bit or two in a pixel.
        np.testing.assert_allclose(embedder.embed(images).features, expected.features, rtol=0, atol=2e-2)
    assert embedder.embed([]).features.shape == (0, 1024)


def test_an_image_that_cannot_be_read_is_named(checkpoint: str, paths: list[Path]) -> None:
    embedder = Embedder(checkpoint)
    for images, error, message in (
        ([paths[0], b"GIF89a"], UnreadableImage, "image 1: "),
        ([np.zeros((8, 8), np.uint8)], BadInput, r"image 0 is uint8 \(8, 8\)"),
        ([None], BadInput, "image 0 is a NoneType"),
    ):
        with pytest.raises(error, match=message):
            embedder.embed(images)  # type: ignore[arg-type]


def test_the_index_finds_what_an_exact_search_of_the_run_finds(folder: Path, paths: list[Path]) -> None:
    runs = str(folder / "demo" / "data")
    run = open_run(runs)
    assert [run.run_id] == [found.run_id for found in list_runs(runs)]
    blocks = [
        (np.asarray(batch.column("crop_id")), vectors_of(batch))
        for batch in read_embeddings(run, ["crop_id", "embedding"], batch_rows=7)
    ]
    assert max(len(ids) for ids, _ in blocks) == 7
    features = Embedder(str(folder / "demo" / "model")).embed(paths).features
    expected, _ = nearest(features, blocks, k=3)
    with Index.open(str(folder / "demo" / "milvus.db"), runs, fingerprint=run.fingerprint) as live:
        assert len(live) == sum(len(ids) for ids, _ in blocks) == to_table(run, ["uri"]).num_rows
        hits = live.search(features, top=3)
        assert [[hit.crop_id for hit in row] for row in hits] == expected.tolist()
        camera = hits[0][0].camera_id
        others = live.search(features[0], top=3, filters=Filters(not_cameras=(camera,)))[0]
        assert camera not in {hit.camera_id for hit in others}
        with pytest.raises(BadInput, match=r"not \(q, 1024\)"):
            live.search(features[:, :5])


def test_another_model_and_an_unknown_run_are_refused(folder: Path) -> None:
    runs, milvus = str(folder / "demo" / "data"), str(folder / "demo" / "milvus.db")
    with pytest.raises(FingerprintMismatch, match="ffff"):
        Index.open(milvus, runs, fingerprint="ffff")
    with pytest.raises(BadInput, match="points to nothing"):
        Index.open(milvus, runs, alias="boats")
    with pytest.raises(BadInput, match="no finished run of model ffff"):
        open_run(runs, fingerprint="ffff")
    with pytest.raises(BadInput, match="no finished run"):
        open_run(str(folder))
    Index.open(milvus, runs).close()  # a refusal leaves the file closed


def test_an_exported_network_gives_the_features_of_torch(checkpoint: str, tmp_path: Path) -> None:
    if openvino() is None:
        pytest.skip("openvino is not installed")
    loaded = load_checkpoint(checkpoint)
    for format in ("onnx", "openvino"):
        exported = export_checkpoint(loaded, tmp_path / format, format)  # type: ignore[arg-type]
        stated = json.loads((tmp_path / format / "export.json").read_text())
        assert stated["fingerprint"] == loaded.fingerprint == exported.fingerprint
        assert stated["label_ids"] == [3, 5, 8, 13]
        assert exported.difference < 1e-4
        model = openvino().Core().read_model(tmp_path / format / exported.files[0])
        assert [output.get_any_name() for output in model.outputs] == ["feature", "logits"]
        shape = model.inputs[0].get_partial_shape()
        assert shape[0].is_dynamic
        assert [side.get_length() for side in list(shape)[1:]] == [224, 224, 3]
        assert model.inputs[0].get_any_name() == "images"
    export_checkpoint(loaded, tmp_path / "openvino", "openvino")  # may be repeated


def test_a_wrong_graph_is_not_handed_over(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clvr_model import export

    write = export._WRITERS["openvino"]

    def write_wrong(loaded: Checkpoint, path: Path) -> None:
        other = load_checkpoint(checkpoint)
        with torch.no_grad():
            next(other.network.head.parameters()).mul_(1.5)
        write(other, path)

    monkeypatch.setitem(export._WRITERS, "openvino", write_wrong)
    with pytest.raises(Mismatch, match="differs from torch"):
        export_checkpoint(checkpoint, tmp_path / "out", "openvino")
    assert not any(tmp_path.iterdir())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(BadSetting, match="holds other files"):
        export_checkpoint(checkpoint, tmp_path / "full", "openvino")


def test_the_example_of_the_documentation_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/python.md", "exec"), names)  # noqa: S102
    assert len(names["hits"][0]) == 10
    assert names["crops"].num_rows == names["run"].summary.embedded


@pytest.mark.parametrize("name", ["embed_a_folder", "evaluate_your_model", "query_shards"])
def test_the_example_notebooks_run(folder: Path, name: str) -> None:
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(ROOT / "examples" / f"{name}.ipynb", nbformat.NO_CONVERT)
    assert not any(cell.get("outputs") for cell in book.cells), "commit notebooks without outputs"
    client = NotebookClient(book, timeout=120, resources={"metadata": {"path": str(folder)}})
    client.execute()
    assert sum(len(cell.get("outputs", [])) for cell in book.cells) >= 3
