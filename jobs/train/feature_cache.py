"""Features of a frozen backbone, kept beside the training's states for a resume."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load, save_file
from torch import nn

from clvr_model.training import Batch
from index.outputs import FEATURES_PREFIX
from infra.errors import CorruptObject, ObjectMissing
from infra.store import Store
from infra.store.sealed import seal, unseal

MAX_BYTES = 4 << 30  # larger files take longer to transfer than to compute


class FeatureFile:
    """The features of one stage, in a file whose name contains the digest of the backbone's weights.

    A record beside it, written last, has the SHA-256 of the file.
    """

    def __init__(self, folder: Store, backbone: nn.Module) -> None:
        digest = hashlib.sha256()
        for name, value in sorted(backbone.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        self.folder = folder
        self.name = f"{FEATURES_PREFIX}{digest.hexdigest()[:16]}.safetensors"
        self.record = f"{FEATURES_PREFIX}{digest.hexdigest()[:16]}.json"

    def read(self, num_training: int, num_validation: int) -> tuple[Batch, Batch] | None:
        """Return features and classes of training and validation images; None without an unaltered file."""
        try:
            record = unseal(self.folder.get(self.record), self.folder.uri_of(self.record))
            data = self.folder.get(self.name)
        except (ObjectMissing, CorruptObject):
            return None
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            return None
        tensors = load(data)
        if (len(tensors["training"]), len(tensors["held"])) != (num_training, num_validation):
            return None
        return (
            (tensors["training"], tensors["training_classes"]),
            (tensors["held"], tensors["held_classes"]),
        )

    def write(self, training: Batch, validation: Batch) -> None:
        """Write features and classes, unless they exceed MAX_BYTES."""
        tensors = {
            "training": training[0],
            "training_classes": training[1],
            "held": validation[0],
            "held_classes": validation[1],
        }
        if sum(value.nbytes for value in tensors.values()) > MAX_BYTES:
            return
        with TemporaryDirectory() as temporary:
            path = Path(temporary) / "features"
            save_file({name: value.contiguous() for name, value in tensors.items()}, path)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            self.folder.put(self.name, path)
            self.folder.put(self.record, seal({"sha256": digest}))


def remove_features(folder: Store) -> None:
    """Delete the feature files of a finished training."""
    folder.delete(*[item.key for item in folder.list() if item.key.startswith(FEATURES_PREFIX)])
