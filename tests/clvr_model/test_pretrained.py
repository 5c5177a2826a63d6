"""A pretrained backbone alone becomes a checkpoint whose L2 distances are those of its pooled feature."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clvr_model.checkpoint import load_checkpoint, save_checkpoint
from clvr_model.embedder import Embedder
from clvr_model.embeddings import UNKNOWN_LABEL
from clvr_model.network import Clvr
from clvr_model.normalization import to_input
from clvr_model.pretrained import pretrained_network, projection
from infra.errors import BadCheckpoint, BadSetting


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def distances(rows: np.ndarray) -> np.ndarray:
    """L2 distances of all pairs."""
    first, second = np.triu_indices(len(rows), 1)
    return np.linalg.norm(rows[first] - rows[second], axis=1)


@pytest.mark.parametrize("inputs", [512, 1024])
def test_shorter_features_keep_their_distances_exactly(inputs: int) -> None:
    rows = np.random.default_rng(0).random((20, inputs), np.float32)
    assert np.array_equal(distances(rows @ projection(inputs, 1024).T), distances(rows))


def test_the_projection_is_always_the_same() -> None:
    assert np.array_equal(projection(1280, 1024), projection(1280, 1024))


@pytest.mark.parametrize(("inputs", "tolerance"), [(1280, 0.04), (2048, 0.08)])
def test_longer_features_keep_their_distances_nearly(inputs: int, tolerance: float) -> None:
    matrix = projection(inputs, 1024)
    assert np.allclose(matrix @ matrix.T, np.eye(1024) * inputs / 1024, atol=1e-5)
    rows = np.random.default_rng(0).random((60, inputs), np.float32) + 1.0  # a common part, as after a ReLU
    ratio = distances(rows @ matrix.T) / distances(rows)
    assert abs(ratio - 1).max() < tolerance
    assert abs(ratio.mean() - 1) < tolerance / 4


def test_the_checkpoint_holds_the_pooled_feature_with_length_one(tmp_path: Path) -> None:
    save_file(Clvr(2, 8, backbone="vgg16", seed=9).backbone.state_dict(), tmp_path / "w.safetensors")
    network, card = pretrained_network(str(tmp_path / "w.safetensors"))
    assert (card.labels_used, card.label_ids, network.architecture.backbone) == ("none", (), "vgg16")
    assert card.backbone["projection"] == "512 dimensions and 512 zeros"
    assert len(card.backbone["sha256"]) == 64
    save_checkpoint(str(tmp_path / "model"), network, card)
    images = np.random.default_rng(1).integers(0, 256, (3, 299, 299, 3), np.uint8)
    embedded = Embedder(load_checkpoint(str(tmp_path / "model")), device="cpu", engine="torch")(images)
    with torch.inference_mode():
        pooled = network.backbone(to_input(torch.from_numpy(images))).numpy()
    assert np.allclose(np.linalg.norm(embedded.features, axis=1), 1, atol=1e-5)
    assert np.allclose(distances(embedded.features), distances(unit(pooled)), rtol=1e-3)
    assert set(embedded.model_id) == {UNKNOWN_LABEL}


def test_sources_that_are_no_pretrained_backbone_are_refused(tmp_path: Path) -> None:
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(BadCheckpoint, match="weights of none of inception_v3, resnet50"):
        pretrained_network(str(tmp_path / "other.safetensors"))
    with pytest.raises(BadCheckpoint, match="lacks"):
        pretrained_network(str(tmp_path / "other.safetensors"), "vgg16")
    with pytest.raises(BadSetting, match="random weights are not pretrained"):
        pretrained_network("random", "vgg16")
    with pytest.raises(BadSetting, match="resnet50 is a backbone"):
        pretrained_network("resnet50", "vgg16")
    with pytest.raises(BadSetting, match="no weights of vgg_m have an address"):
        pretrained_network("vgg_m")
