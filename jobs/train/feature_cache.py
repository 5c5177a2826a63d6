"""A frozen backbone's features, kept beside the training's states: a resume need not compute them again."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load, save_file
from torch import nn

from clvr_model.training import Batch
from infra.errors import ObjectMissing
from infra.store import Store

PREFIX = "features-"
MOST_BYTES = 4 << 30  # more is quicker computed again than moved


class FeatureFile:
    """The features of one stage, under a name that says which weights they are of."""

    def __init__(self, folder: Store, backbone: nn.Module) -> None:
        digest = hashlib.sha256()
        for name, value in sorted(backbone.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        self.folder = folder
        self.name = f"{PREFIX}{digest.hexdigest()[:16]}.safetensors"

    def read(self, training: int, held: int) -> tuple[Batch, Batch] | None:
        """Features and classes of so many training and held-out pictures; None if they are not there."""
        try:
            found = load(self.folder.get(self.name))
        except (ObjectMissing, ValueError):
            return None
        if (len(found["training"]), len(found["held"])) != (training, held):
            return None
        return (found["training"], found["training_classes"]), (found["held"], found["held_classes"])

    def write(self, training: Batch, held: Batch) -> None:
        """Keep them, unless they are very many."""
        tensors = {
            "training": training[0],
            "training_classes": training[1],
            "held": held[0],
            "held_classes": held[1],
        }
        if sum(value.nbytes for value in tensors.values()) > MOST_BYTES:
            return
        with TemporaryDirectory() as temporary:
            path = Path(temporary) / "features"
            save_file({name: value.contiguous() for name, value in tensors.items()}, path)
            self.folder.put(self.name, path)


def remove_features(folder: Store) -> None:
    """Once the training is over they are of no more use."""
    folder.delete(*[item.key for item in folder.list() if item.key.startswith(PREFIX)])
