"""Load a backbone's pretrained weights from a local file or the Hugging Face hub."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clvr_model.backbones.base import Backbone
from clvr_model.network import Clvr
from infra.errors import BadCheckpoint, BadInput, StoreUnreachable

NO_PRETRAINING = "random"
HUB_PREFIX = "hf:"
HUB_FILE = "model.safetensors"
# A counter of torch that has no effect.
IGNORED_SUFFIX = ".num_batches_tracked"
# No published file has the parameters of our pool.
POOL_PREFIX = "pool."


@dataclass(frozen=True, slots=True)
class BackboneSource:
    """Description of loaded weights, for the card. sha256: of the file, or "" for random weights."""

    source: str
    sha256: str
    ignored: tuple[str, ...] = ()


def load_backbone(network: Clvr | Backbone, source: str) -> BackboneSource:
    """Load the backbone's weights from `source`, in place, converted to float32.

    source: a `.safetensors`, `.pth` or `.pt` file; `hf:owner/name` or `hf:owner/name@revision`, of which
    `model.safetensors` is read; or `random`, which keeps the seeded random weights. Keys of a
    classifier (the backbone's `heads`) are ignored; all others must match in name and shape.
    Raises BadInput (no such file or scheme), BadCheckpoint (damaged, or of another backbone),
    StoreUnreachable (no answer from the hub).
    """
    backbone = network.backbone if isinstance(network, Clvr) else network
    module = backbone.published_part
    if source == NO_PRETRAINING:
        return BackboneSource(NO_PRETRAINING, "")
    path = _download(source) if source.startswith(HUB_PREFIX) else Path(source)
    if not path.is_file():
        raise BadInput(
            f"no backbone weights at {source}",
            remedy="give a .safetensors or .pth file, hf:owner/name, or the word random",
        )
    tensors = _read(path)
    expected = {
        key: value
        for key, value in module.state_dict().items()
        if not key.endswith(IGNORED_SUFFIX) and not key.startswith(POOL_PREFIX)
    }
    ignored = {key for key in tensors if key.startswith(backbone.heads) or key.endswith(IGNORED_SUFFIX)}
    name = network.architecture.backbone if isinstance(network, Clvr) else type(backbone).__name__
    _check(expected, {key: value for key, value in tensors.items() if key not in ignored}, path, name)
    module.load_state_dict({key: tensors[key].float() for key in expected}, strict=False)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return BackboneSource(source, digest, tuple(sorted(ignored)))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise BadCheckpoint(f"{path} is damaged: {_line(error)}", remedy="download it again") from error
    except Exception as error:  # torch raises UnpicklingError for objects that weights_only refuses
        raise BadCheckpoint(
            f"{path} contains more than weights and is not opened: {_line(error)}",
            remedy="use a .safetensors file",
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise BadCheckpoint(f"{path} is not a dictionary of tensors", remedy="use a .safetensors file")
    return loaded


def _check(expected: dict[str, Tensor], given: dict[str, Tensor], path: Path, name: str) -> None:
    remedy = f"it must be weights of {name} under the parameter names of torchvision or timm"
    for problem, keys in (
        ("lacks", expected.keys() - given.keys()),
        ("has unknown", given.keys() - expected.keys()),
    ):
        if keys:
            raise BadCheckpoint(f"{path} {problem} {len(keys)} parameters, first {min(keys)}", remedy=remedy)
    for key, value in expected.items():
        tensor = given[key]
        if tensor.shape != value.shape:
            raise BadCheckpoint(
                f"{path}: {key} has shape {tuple(tensor.shape)}, expected {tuple(value.shape)}", remedy=remedy
            )
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise BadCheckpoint(f"{path}: {key} holds values that are not finite floats", remedy=remedy)


def _download(source: str) -> Path:
    repository, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise BadInput(f"{source} needs huggingface_hub", remedy="pip install huggingface_hub") from error
    try:
        return Path(hf_hub_download(repository, HUB_FILE, revision=revision or None))
    except Exception as error:  # the hub's client raises httpx's and the system's errors too
        raise StoreUnreachable(
            f"could not get {HUB_FILE} of {repository} from the Hugging Face hub: {_line(error)}",
            remedy="check the name and the network, set HF_ENDPOINT to a mirror, or give a local file",
        ) from error


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
