"""The card of a checkpoint, `card.json`, and the fingerprint of its embeddings.

It is read without torch: a search of an archived crop needs the names of the vehicle models, and no network.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from clvr_model.preprocessing import PREPROCESSING_VERSION
from infra.errors import BadCheckpoint, CheckpointMissing, ObjectMissing

if TYPE_CHECKING:
    from infra.store import Store

CARD_FILE = "card.json"
CARD_FORMAT = 1
FINGERPRINT_LENGTH = 16
DEFAULT_LABELS = "model"
NO_LABELS = "none"
DAMAGED = "train again, or copy the checkpoint anew from where it was made"
"""The remedy for a checkpoint that cannot be read."""


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

    @property
    def attributes(self) -> Mapping[str, Sequence[str]]:
        """The attributes that the network predicts, with the names of their values."""
        values: Mapping[str, Sequence[str]] = self.architecture.get("attributes", {})
        return values

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

        values = unseal(data, where, remedy=DAMAGED)
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
            raise BadCheckpoint(f"{where} is not a model card: {error}", remedy=DAMAGED) from error


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


def verified_fingerprint(card: Card, where: str) -> str:
    """Return the fingerprint of what this code embeds with the card's network; `where` is the card's URI.

    Raises BadCheckpoint for a card whose own fingerprint does not follow from its fields.
    """
    stated = fingerprint_of(card.weights_sha256, card.architecture, card.label_ids, card.preprocessing)
    if stated != card.fingerprint:
        raise BadCheckpoint(f"{where} was edited: it gives {stated}, not {card.fingerprint}", remedy=DAMAGED)
    return fingerprint_of(card.weights_sha256, card.architecture, card.label_ids)


def read_card(source: "str | Store") -> Card:
    """Read the card without the weights.

    Raises CheckpointMissing if there is none, BadCheckpoint for another format, CorruptObject.
    """
    store = store_of(source)
    try:
        data = store.get(CARD_FILE)
    except ObjectMissing as error:
        raise CheckpointMissing(
            f"{store.uri} is not a checkpoint: it has no {CARD_FILE}",
            remedy="give the folder that `clvr train` reports; one without a card was never finished",
        ) from error
    return Card.from_json(data, store.uri_of(CARD_FILE))


def store_of(location: "str | Store") -> "Store":
    """Open the folder of a checkpoint, given as a URI or as a Store."""
    if not isinstance(location, str):
        return location
    # Imported late, so that the network needs no object storage client.
    from infra.store import open_store

    return open_store(location)
