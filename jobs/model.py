"""`clvr model`: make a checkpoint of a pretrained backbone, and show the card of a checkpoint."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from typing_extensions import TypedDict

from clvr_model.checkpoint import CARD_FILE, Card, read_card, save_checkpoint
from clvr_model.pretrained import pretrained_network
from infra.store import open_store
from jobs.runtime.format import labels_used
from jobs.runtime.json_fields import FieldsOf

_ARCHITECTURE_TEXT = ("backbone", "classes", "feature_dim")


class CheckpointCard(TypedDict):
    """The card of a checkpoint, and the URI of the checkpoint."""

    uri: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A checkpoint by its card."""

    uri: str
    card: Card

    def to_text(self) -> str:
        """Return the facts of the card, one a line."""
        return "\n".join(f"{name:16} {value}" for name, value in self._facts().items() if value != "")

    def to_json(self) -> Annotated[dict[str, Any], FieldsOf(Card, CheckpointCard)]:
        """Return the whole card."""
        return {**CheckpointCard(uri=self.uri), **asdict(self.card)}

    def _facts(self) -> dict[str, str]:
        card = self.card
        architecture = card.architecture
        switches = {name: value for name, value in architecture.items() if name not in _ARCHITECTURE_TEXT}
        metrics = {
            name: card.metrics.get(key)
            for name, key in (("accuracy", "accuracy"), ("by model", "macro_accuracy"), ("rank-1", "rank1"))
        }
        return {
            "checkpoint": self.uri,
            "fingerprint": card.fingerprint,
            "network": str(architecture.get("backbone", "")),
            "feature": f"{architecture.get('feature_dim')} dimensions",
            "architecture": ", ".join(f"{name} {value}" for name, value in switches.items()),
            "classifier": f"{len(card.label_ids):,} vehicle models" if card.label_ids else "none",
            "labels used": labels_used(card),
            "recipe": str(card.recipe.get("name", "none: the backbone alone")),
            "initial weights": str(card.backbone.get("source", "")),
            "projection": str(card.backbone.get("projection", "")),
            "validation": ", ".join(
                f"{name} {value:.1%}" for name, value in metrics.items() if value is not None
            ),
            "bf16": "" if card.guard is None else f"checked on {card.guard['pictures']} images",
            "preprocessing": card.preprocessing,
            "created": card.created_at,
            "size": f"{card.weights_bytes / 1e6:,.1f} MB",
            "versions": ", ".join(f"{name} {version}" for name, version in sorted(card.versions.items())),
        }


def import_model(source: str, destination: str, backbone: str | None = None) -> ModelCard:
    """Write a checkpoint of a pretrained backbone; see `clvr_model.pretrained.pretrained_network`.

    Raises ObjectExists if `destination` holds another checkpoint, and the errors of `pretrained_network`.
    """
    network, card = pretrained_network(source, backbone)
    store = open_store(destination)
    if store.local:
        store.create_bucket()  # creates the local folder; a real bucket must exist
    saved = save_checkpoint(store, network, card)
    return ModelCard(store.uri, saved.card)


def show_model(uri: str) -> ModelCard:
    """Read a card. Raises BadCheckpoint if there is none, CorruptObject."""
    store = open_store(uri)
    return ModelCard(store.uri_of(CARD_FILE).rpartition("/")[0], read_card(store))
