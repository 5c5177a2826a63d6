"""Checkpoint of a trained network: `weights.safetensors`, `card.json`, and their fingerprint.

The card is written last: a folder without a card is no checkpoint. Nothing is unpickled.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from clvr_model.backbones import is_timm
from clvr_model.network import Architecture, Clvr
from clvr_model.preprocessing import PREPROCESSING_VERSION
from infra.errors import BadCheckpoint, BadInput, BadSetting, BucketMissing, ObjectExists, ObjectMissing

if TYPE_CHECKING:
    from infra.store import Store

WEIGHTS_FILE = "weights.safetensors"
CARD_FILE = "card.json"
CARD_FORMAT = 1
FINGERPRINT_LENGTH = 16
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
DEFAULT_LABELS = "model"
NO_LABELS = "none"
_DAMAGED = "train again, or copy the checkpoint anew from where it was made"


@dataclass(frozen=True, slots=True)
class Card:
    """Description of a checkpoint.

    label_ids: the original model label of each class, in class order; empty without a classifier. `recipe`,
    `metrics`, `backbone` and `unstated` (choices that the paper leaves open) are plain JSON values. `guard`
    is a PrecisionCheck as a dict, if there is one. labels_used: model, vehicle, both or none.
    `save_checkpoint` fills in the fields from `preprocessing` on. Field names are the keys of card.json.
    """

    label_ids: tuple[int, ...]
    label_names: Mapping[int, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)
    unstated: Mapping[str, Any] = field(default_factory=dict)
    guard: Mapping[str, Any] | None = None
    data_digest: str = ""
    labels_used: str = DEFAULT_LABELS
    preprocessing: str = ""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created_at: str = ""
    weights_sha256: str = ""
    weights_bytes: int = 0
    fingerprint: str = ""
    format: int = CARD_FORMAT

    def to_json(self) -> bytes:
        """Return the card as it is stored: sealed JSON."""
        # Imported late, so that the network needs no object storage client.
        from infra.store.sealed import seal

        values = asdict(self)
        if self.labels_used == DEFAULT_LABELS:
            del values["labels_used"]  # cards of classifiers stay readable by older releases
        return seal(values)

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Card":
        """Read a stored card. Raises CorruptObject if it was altered, BadCheckpoint for another format."""
        from infra.store.sealed import unseal

        values = unseal(data, where, remedy=_DAMAGED)
        try:
            if values["format"] != CARD_FORMAT:
                raise BadCheckpoint(
                    f"{where} has card format {values['format']}, this version reads {CARD_FORMAT}",
                    remedy="use the version of clvr-archive that wrote it",
                )
            values["label_ids"] = tuple(int(label) for label in values["label_ids"])
            values["label_names"] = {int(label): str(name) for label, name in values["label_names"].items()}
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadCheckpoint(f"{where} is not a model card: {error}", remedy=_DAMAGED) from error


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


def fingerprint_of(
    weights_sha256: str,
    architecture: Mapping[str, Any],
    label_ids: Sequence[int],
    preprocessing: str = PREPROCESSING_VERSION,
) -> str:
    """Hash everything that decides an embedding and its label into 16 hex digits.

    `preprocessing` is the version of the code that embeds, not of the training: equal fingerprints mean equal
    features for equal bytes. The label ids are included because shards store predicted labels.
    """
    parts = {
        "weights": weights_sha256,
        "architecture": dict(architecture),
        "label_ids": list(label_ids),
        "preprocessing": preprocessing,
    }
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:FINGERPRINT_LENGTH]


def save_checkpoint(destination: "str | Store", network: Clvr, card: Card) -> Checkpoint:
    """Write the weights, then the card, to a folder (a URI or a Store); return what `load_checkpoint` would.

    Saving the same weights again only refreshes the card. Raises BadInput if the card does not name one
    label a class, from 0 to 2^31 - 1, or the weights are not finite; ObjectExists if other weights are there.
    """
    store = _store(destination)
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


def read_card(source: "str | Store") -> Card:
    """Read the card without the weights. Raises BadCheckpoint if there is none, CorruptObject."""
    store = _store(source)
    try:
        data = store.get(CARD_FILE)
    except ObjectMissing as error:
        raise BadCheckpoint(
            f"{store.uri} is not a checkpoint: it has no {CARD_FILE}",
            remedy="give the folder that `clvr train` reports; one without a card was never finished",
        ) from error
    return Card.from_json(data, store.uri_of(CARD_FILE))


def load_checkpoint(source: "str | Store") -> Checkpoint:
    """Read and verify the checkpoint in a folder (a URI or a Store).

    Raises BadCheckpoint for a folder without a card, weights that are missing, truncated
    or altered, an architecture that this code does not build, and a card that contradicts itself;
    CorruptObject for a card that was altered.
    """
    store = _store(source)
    card = read_card(store)
    architecture = _architecture(card, store.uri_of(CARD_FILE))
    where = store.uri_of(WEIGHTS_FILE)
    try:
        weights = store.get(WEIGHTS_FILE)
    except ObjectMissing as error:
        raise BadCheckpoint(f"{where} is missing", remedy=_DAMAGED) from error
    if len(weights) != card.weights_bytes:
        raise BadCheckpoint(
            f"{where} is truncated: {len(weights):,} of {card.weights_bytes:,} bytes", remedy=_DAMAGED
        )
    if hashlib.sha256(weights).hexdigest() != card.weights_sha256:
        raise BadCheckpoint(f"{where} was altered: its SHA-256 is not the card's", remedy=_DAMAGED)
    try:
        tensors = load(weights)
    except (SafetensorError, ValueError) as error:
        raise BadCheckpoint(f"{where} is not a safetensors file: {error}", remedy=_DAMAGED) from error
    fingerprint = fingerprint_of(card.weights_sha256, card.architecture, card.label_ids)
    return Checkpoint(_assemble(architecture, tensors, where), card, fingerprint, store.uri)


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
            f"{where} names {len(card.label_ids)} labels for {architecture.classes} classes", remedy=_DAMAGED
        )
    stated = fingerprint_of(card.weights_sha256, card.architecture, card.label_ids, card.preprocessing)
    if stated != card.fingerprint:
        raise BadCheckpoint(f"{where} was edited: it gives {stated}, not {card.fingerprint}", remedy=_DAMAGED)
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
            remedy=_DAMAGED,
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


def _store(location: "str | Store") -> "Store":
    if not isinstance(location, str):
        return location
    # Imported late, so that the network needs no object storage client.
    from infra.store import open_store

    return open_store(location)
