"""A checkpoint is whole, unaltered and of the architecture that its card states, or it is refused."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clvr_model.checkpoint import Card, fingerprint_of, load_checkpoint, save_checkpoint
from clvr_model.network import Clvr
from infra.errors import BadCheckpoint, BadInput, CorruptObject, ObjectExists
from infra.store.sealed import seal, unseal

CARD = Card(label_ids=(7, 3, 249), label_names={7: "Golf", 3: "Astra"}, metrics={"accuracy": 0.5})


@pytest.fixture(scope="module")
def network() -> Clvr:
    return Clvr(3, feature_dim=8, seed=1).eval()


@pytest.fixture(scope="module")
def original(network: Clvr, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(str(folder), network, CARD)
    return folder


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    """A copy whose card may be edited; the weights are the original's, to be replaced and not written to."""
    (tmp_path / "card.json").write_bytes((original / "card.json").read_bytes())
    (tmp_path / "weights.safetensors").hardlink_to(original / "weights.safetensors")
    return tmp_path


def _edit_card(folder: Path, **changes: Any) -> None:
    path = folder / "card.json"
    path.write_bytes(seal(unseal(path.read_bytes(), "") | changes))


def _rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """New weights under an honest card: only their fit to the architecture is wrong."""
    path = folder / "weights.safetensors"
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    change(tensors)
    path.unlink()
    save_file(tensors, path)
    data = path.read_bytes()
    card = Card.from_json((folder / "card.json").read_bytes(), "")
    digest = hashlib.sha256(data).hexdigest()
    _edit_card(
        folder,
        weights_sha256=digest,
        weights_bytes=len(data),
        fingerprint=fingerprint_of(digest, card.architecture, card.label_ids),
    )


def test_a_loaded_checkpoint_equals_the_saved_one(network: Clvr, saved: Path) -> None:
    loaded = load_checkpoint(str(saved))
    expected = network.state_dict()
    assert loaded.network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.network.state_dict().items())
    assert loaded.network.architecture == network.architecture
    assert not loaded.network.training
    assert loaded.label_ids == (7, 3, 249)
    assert loaded.card.label_names == {7: "Golf", 3: "Astra"}
    assert loaded.card.metrics == {"accuracy": 0.5}
    assert loaded.card.versions["torch"] in torch.__version__


def test_the_fingerprint_is_stable_and_has_sixteen_hex_digits(
    network: Clvr, saved: Path, tmp_path: Path
) -> None:
    loaded = load_checkpoint(str(saved))
    again = save_checkpoint(str(tmp_path / "copy"), loaded.network, CARD)
    assert again.fingerprint == loaded.fingerprint == loaded.card.fingerprint
    assert len(loaded.fingerprint) == 16
    int(loaded.fingerprint, 16)


def test_memory_order_does_not_change_the_fingerprint(network: Clvr, saved: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(str(saved))
    channels_last = loaded.network.to(memory_format=torch.channels_last)
    assert save_checkpoint(str(tmp_path / "copy"), channels_last, CARD).fingerprint == loaded.fingerprint


def test_the_fingerprint_depends_on_each_of_its_parts() -> None:
    base = fingerprint_of("w", {"classes": 3}, (1, 2, 3), "1")
    others = [
        fingerprint_of("v", {"classes": 3}, (1, 2, 3), "1"),
        fingerprint_of("w", {"classes": 4}, (1, 2, 3), "1"),
        fingerprint_of("w", {"classes": 3}, (1, 3, 2), "1"),
        fingerprint_of("w", {"classes": 3}, (1, 2, 3), "2"),
    ]
    assert len({base, *others}) == 5


def test_other_preprocessing_than_in_training_gives_another_fingerprint(
    saved: Path,
) -> None:
    card = load_checkpoint(str(saved)).card
    trained = fingerprint_of(card.weights_sha256, card.architecture, card.label_ids, "another")
    _edit_card(saved, preprocessing="another", fingerprint=trained)
    loaded = load_checkpoint(str(saved))
    assert loaded.card.fingerprint == trained
    assert loaded.fingerprint == card.fingerprint != trained


def test_a_checkpoint_without_a_card_is_refused(saved: Path) -> None:
    (saved / "card.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"has no card\.json"):
        load_checkpoint(str(saved))


def test_the_card_is_written_last(network: Clvr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Card) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(Card, "to_json", fails)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(str(tmp_path), network, CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_missing_truncated_and_altered_weights_are_refused(saved: Path) -> None:
    weights = saved / "weights.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data[:-1000])
    with pytest.raises(BadCheckpoint, match="truncated"):
        load_checkpoint(str(saved))
    weights.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    with pytest.raises(BadCheckpoint, match="altered"):
        load_checkpoint(str(saved))
    weights.unlink()
    with pytest.raises(BadCheckpoint, match="missing"):
        load_checkpoint(str(saved))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "card format 99"),
        ({"label_ids": [1, 2]}, "2 labels for 3 classes"),
        ({"label_ids": [3, 7, 249]}, "was edited"),
        ({"architecture": {"backbone": "resnet9", "classes": 3}}, "no backbone 'resnet9'"),
        ({"architecture": {"backbone": "resnet50", "classes": 3}}, "was edited"),
        ({"architecture": {"classes": 3, "pooling": "max"}}, "pooling is 'max'"),
        ({"architecture": {"backbone": "inception_v3", "layers": 3}}, "unknown architecture"),
        ({"label_ids": "abc"}, "not a model card"),
        ({"surprise": 1}, "not a model card"),
    ],
)
def test_an_inconsistent_card_is_refused(saved: Path, changes: dict[str, Any], message: str) -> None:
    _edit_card(saved, **changes)
    with pytest.raises(BadCheckpoint, match=message):
        load_checkpoint(str(saved))


def test_a_card_that_is_not_json_is_refused(saved: Path) -> None:
    (saved / "card.json").write_text('{"format": 1, "label_')
    with pytest.raises(CorruptObject, match=r"card\.json is truncated, altered or no JSON"):
        load_checkpoint(str(saved))


@pytest.mark.parametrize(("name", "other"), [("Golf", "Polo"), ("0.5", "0.9")])
def test_altered_label_names_and_metrics_are_noticed(saved: Path, name: str, other: str) -> None:
    path = saved / "card.json"
    path.write_text(path.read_text().replace(name, other))
    with pytest.raises(CorruptObject, match=r"card\.json was altered"):
        load_checkpoint(str(saved))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("head.dense.bias"),
        lambda tensors: tensors.update({"extra": torch.zeros(1)}),
        lambda tensors: tensors.update({"head.dense.weight": torch.zeros(9, 2048)}),
    ],
)
def test_weights_of_another_architecture_are_refused(
    saved: Path, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    _rewrite_weights(saved, change)
    with pytest.raises(BadCheckpoint, match="does not fit"):
        load_checkpoint(str(saved))


def test_weights_of_a_checkpoint_are_never_replaced_but_its_card_may_be(network: Clvr, saved: Path) -> None:
    save_checkpoint(str(saved), network, replace(CARD, metrics={"accuracy": 0.9}))
    assert load_checkpoint(str(saved)).card.metrics == {"accuracy": 0.9}
    with pytest.raises(ObjectExists, match="another checkpoint"):
        save_checkpoint(str(saved), Clvr(3, feature_dim=8, seed=2), CARD)


def test_labels_must_match_the_classes(network: Clvr, tmp_path: Path) -> None:
    for labels in ((1, 2), (1, 2, 2)):
        with pytest.raises(BadInput, match="3 classes"):
            save_checkpoint(str(tmp_path), network, Card(label_ids=labels))


def test_a_diverged_network_is_not_saved(tmp_path: Path) -> None:
    broken = Clvr(3, feature_dim=8)
    with torch.no_grad():
        broken.head.dense.bias[0] = float("nan")
    with pytest.raises(BadInput, match=r"head\.dense\.bias"):
        save_checkpoint(str(tmp_path), broken, CARD)
    assert not list(tmp_path.iterdir())


def test_a_network_without_a_classifier_is_a_checkpoint(tmp_path: Path) -> None:
    network = Clvr(0, feature_dim=8, seed=1).eval()
    saved = save_checkpoint(str(tmp_path), network, Card(label_ids=(), labels_used="vehicle"))
    loaded = load_checkpoint(str(tmp_path))
    assert (loaded.label_ids, loaded.card.labels_used) == ((), "vehicle")
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.network.architecture == network.architecture


def test_cards_of_classifiers_do_not_have_the_field_that_older_releases_refuse(saved: Path) -> None:
    assert "labels_used" not in unseal((saved / "card.json").read_bytes(), "")
    assert load_checkpoint(str(saved)).card.labels_used == "model"
