"""Checkpoint of a trained network: `weights.safetensors`, `card.json`, and their fingerprint.

The card is written last: a folder without a card is no checkpoint. Nothing is unpickled.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from clvr_model.backbones import is_timm
from clvr_model.card import (
    CARD_FILE,
    CARD_FORMAT,
    DAMAGED,
    DEFAULT_LABELS,
    FINGERPRINT_LENGTH,
    NO_LABELS,
    Card,
    fingerprint_of,
    read_card,
    store_of,
    verified_fingerprint,
)
from clvr_model.network import Architecture, Clvr
from clvr_model.preprocessing import PREPROCESSING_VERSION
from infra.errors import BadCheckpoint, BadInput, BadSetting, BucketMissing, ObjectExists, ObjectMissing

if TYPE_CHECKING:
    from infra.store import Store

__all__ = [
    "CARD_FILE",
    "CARD_FORMAT",
    "DEFAULT_LABELS",
    "FINGERPRINT_LENGTH",
    "NO_LABELS",
    "WEIGHTS_FILE",
    "Card",
    "Checkpoint",
    "fingerprint_of",
    "load_checkpoint",
    "load_network",
    "read_card",
    "save_checkpoint",
]

WEIGHTS_FILE = "weights.safetensors"
_VERSIONED = (
    "clvr-archive",
    "torch",
    "numpy",
    "safetensors",
    "pillow",
    "simplejpeg",
    "opencv-python-headless",
    "timm",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A network in eval mode on the CPU, its card, and the fingerprint of its embeddings."""

    network: Clvr
    card: Card
    fingerprint: str
    uri: str = ""

    @property
    def label_ids(self) -> tuple[int, ...]:
        """The original model label of each class, in class order."""
        return self.card.label_ids


def save_checkpoint(destination: "str | Store", network: Clvr, card: Card) -> Checkpoint:
    """Write the weights, then the card, to a folder (a URI or a Store); return what `load_checkpoint` would.

    Saving the same weights again only refreshes the card. Raises BadInput if the card does not name one
    label a class, from 0 to 2^31 - 1, or the weights are not finite; ObjectExists if other weights are there.
    """
    store = store_of(destination)
    architecture = network.architecture.as_dict()
    classes, labels = network.architecture.classes, len(set(card.label_ids))
    if classes != labels or labels != len(card.label_ids):
        raise BadInput(f"the card names {labels} different labels, the network has {classes} classes")
    if not all(0 <= label < 2**31 for label in card.label_ids):
        raise BadInput("the card names labels outside 0 to 2^31 - 1, which shards cannot hold")
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise BadInput(f"{key} holds values that are not finite; a diverged network is not saved")
    weights = save(tensors)
    digest = hashlib.sha256(weights).hexdigest()
    full = replace(
        card,
        preprocessing=PREPROCESSING_VERSION,
        architecture=architecture,
        versions=_versions(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        weights_sha256=digest,
        weights_bytes=len(weights),
        fingerprint=fingerprint_of(digest, architecture, card.label_ids),
    )
    if not _has_card(store):
        store.put(WEIGHTS_FILE, weights)
    elif read_card(store).weights_sha256 != digest:
        raise ObjectExists(
            f"{store.uri} holds another checkpoint", remedy="save to a new folder: checkpoints never change"
        )
    store.put(CARD_FILE, full.to_json())
    return Checkpoint(_assemble(network.architecture, tensors, store.uri), full, full.fingerprint, store.uri)


def load_checkpoint(source: "str | Store") -> Checkpoint:
    """Read and verify the checkpoint in a folder (a URI or a Store).

    Raises BadCheckpoint for a folder without a card, weights that are missing, truncated
    or altered, an architecture that this code does not build, and a card that contradicts itself;
    CorruptObject for a card that was altered.
    """
    store = store_of(source)
    card = read_card(store)
    network = load_network(store, card)
    return Checkpoint(network, card, verified_fingerprint(card, store.uri_of(CARD_FILE)), store.uri)


def load_network(store: "Store", card: Card) -> Clvr:
    """Read the network of a card that was read from the same folder. Raises as `load_checkpoint` does."""
    architecture = _architecture(card, store.uri_of(CARD_FILE))
    where = store.uri_of(WEIGHTS_FILE)
    try:
        weights = store.get(WEIGHTS_FILE)
    except ObjectMissing as error:
        raise BadCheckpoint(f"{where} is missing", remedy=DAMAGED) from error
    if len(weights) != card.weights_bytes:
        raise BadCheckpoint(
            f"{where} is truncated: {len(weights):,} of {card.weights_bytes:,} bytes", remedy=DAMAGED
        )
    if hashlib.sha256(weights).hexdigest() != card.weights_sha256:
        raise BadCheckpoint(f"{where} was altered: its SHA-256 is not the card's", remedy=DAMAGED)
    try:
        tensors = load(weights)
    except (SafetensorError, ValueError) as error:
        raise BadCheckpoint(f"{where} is not a safetensors file: {error}", remedy=DAMAGED) from error
    return _assemble(architecture, tensors, where)


def _architecture(card: Card, where: str) -> Architecture:
    try:
        architecture = Architecture.from_dict(card.architecture)
    except BadSetting as error:
        raise BadCheckpoint(
            f"{where} has an unknown architecture: {error.message}",
            remedy="use the version of clvr-archive that wrote it",
        ) from error
    if len(card.label_ids) != architecture.classes:
        raise BadCheckpoint(
            f"{where} names {len(card.label_ids)} labels for {architecture.classes} classes", remedy=DAMAGED
        )
    verified_fingerprint(card, where)
    return architecture


def _assemble(architecture: Architecture, tensors: Mapping[str, Tensor], where: str) -> Clvr:
    # The meta device saves drawing weights that are replaced at once. timm's models may have constants that
    # are in no state_dict and would be lost there.
    with torch.device("cpu" if is_timm(architecture.backbone) else "meta"):
        network = Clvr.of(architecture)
    try:
        network.load_state_dict(dict(tensors), strict=True, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise BadCheckpoint(
            f"{where} does not fit the card's architecture: {lines[1] if len(lines) > 1 else lines[0]:.200}",
            remedy=DAMAGED,
        ) from error
    return network.eval()


def _versions() -> dict[str, str]:
    versions = {}
    for name in _VERSIONED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _has_card(store: "Store") -> bool:
    try:
        return store.head(CARD_FILE) is not None
    except BucketMissing:  # a local folder does not exist before its first file
        return False
