"""What is known of a checkpoint before anything is started for it."""

from pathlib import Path

import pytest

from clvr_model.checkpoint import Card, save_checkpoint
from clvr_model.network import Architecture, Clvr
from infra.errors import BadCheckpoint
from jobs.embed.model import fingerprint_for_runs


def test_features_of_another_length_than_rows_are_refused(tmp_path: Path) -> None:
    network = Clvr.of(Architecture(classes=2, feature_dim=8, backbone="vgg_m"))
    save_checkpoint(str(tmp_path), network, Card(label_ids=(0, 1)))
    with pytest.raises(BadCheckpoint, match="have 8 numbers, the rows of a run 1,024"):
        fingerprint_for_runs(str(tmp_path))


def test_damaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tmp_path / "model"
    saved = save_checkpoint(
        str(model), Clvr.of(Architecture(classes=2, backbone="efficientnet_lite0")), Card(label_ids=(0, 1))
    )
    assert fingerprint_for_runs(str(model)) == saved.fingerprint
    weights = model / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BadCheckpoint, match="was altered"):
        fingerprint_for_runs(str(model))
