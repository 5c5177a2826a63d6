"""Load a backbone's pretrained weights from a file, an installed package or the Hugging Face hub."""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from clvr_model.backbones.base import Backbone
from clvr_model.network import Clvr
from infra.errors import BadCheckpoint, BadInput, BucketMissing, ObjectMissing, StoreUnreachable

NO_PRETRAINING = "random"
HUB_PREFIX = "hf:"
HUB_FILE = "model.safetensors"
PACKAGE_PREFIX = "package:"
FILE_SUFFIXES = (".safetensors", ".pth", ".pt")
# A counter of torch that has no effect.
IGNORED_SUFFIX = ".num_batches_tracked"
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "state_dict_ema", "model_ema")
"""Names below which training programs save the table of weights."""

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.")
"""What wrappers put before all names: data-parallel training, torch.compile, a surrounding network."""

_MAX_WRAPPERS = 4
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

    source: a `.safetensors`, `.pth` or `.pt` file at a path or s3:// URI; `hf:owner/name` or
    `hf:owner/name@revision`, of which `model.safetensors` is read; `package:NAME`, an installed distribution,
    of which the only such file is read and no code is run; or `random`, which keeps the seeded random
    weights. A table in `state_dict`, `model` and the like is unwrapped, and a prefix such as `module.` that
    all names have is dropped. Keys of a classifier (the backbone's `heads`) are ignored; all others must
    match in name and shape.
    Raises BadInput (no such file or scheme), BadCheckpoint (damaged, or of another backbone), StoreError.
    """
    backbone = network.backbone if isinstance(network, Clvr) else network
    module = backbone.published_part
    if source == NO_PRETRAINING:
        return BackboneSource(NO_PRETRAINING, "")
    file, data = _read_source(source)
    tensors = _without_prefix(_decode(source, file, data), module.state_dict().keys())
    expected = {
        key: value
        for key, value in module.state_dict().items()
        if not key.endswith(IGNORED_SUFFIX) and not key.startswith(POOL_PREFIX)
    }
    ignored = {key for key in tensors if key.startswith(backbone.heads) or key.endswith(IGNORED_SUFFIX)}
    name = network.architecture.backbone if isinstance(network, Clvr) else type(backbone).__name__
    _check(expected, {key: value for key, value in tensors.items() if key not in ignored}, source, name)
    module.load_state_dict({key: tensors[key].float() for key in expected}, strict=False)
    digest = hashlib.sha256(data).hexdigest()
    return BackboneSource(source, digest, tuple(sorted(ignored)))


def _read_source(source: str) -> tuple[str, bytes]:
    """Return the name of the file that a source means, and its content."""
    from infra.store import open_store, split_uri

    remedy = (
        "give a .safetensors or .pth file, its s3:// URI, hf:owner/name, package:NAME, or the word random"
    )
    if source.startswith(HUB_PREFIX):
        return HUB_FILE, _download(source).read_bytes()
    if source.startswith(PACKAGE_PREFIX):
        path = package_file(source)
        return str(path), path.read_bytes()
    try:
        root, key = split_uri(source)
        return source, open_store(root).get(key)
    except (ObjectMissing, BucketMissing, BadInput) as error:
        raise BadInput(f"no backbone weights at {source}", remedy=remedy) from error


def _decode(source: str, file: str, data: bytes) -> dict[str, Tensor]:
    """Return the named tensors of a file. Nothing in it is run: other objects than tensors are refused."""
    try:
        if file.lower().endswith(".safetensors"):
            return load(data)
        loaded: object = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise BadCheckpoint(f"{source} is damaged: {_line(error)}", remedy="download it again") from error
    except Exception as error:  # torch raises UnpicklingError for objects that weights_only refuses
        raise BadCheckpoint(
            f"{source} contains more than weights and is not opened: {_line(error)}",
            remedy="use a .safetensors file",
        ) from error
    tensors = _unwrapped(loaded)
    if tensors is None:
        raise BadCheckpoint(f"{source} is not a dictionary of tensors", remedy="use a .safetensors file")
    return tensors


def _unwrapped(loaded: object) -> dict[str, Tensor] | None:
    """Return the table of named tensors, at the top or below one of WRAPPERS; None if there is none."""
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(loaded, dict) or not loaded:
            return None
        if all(isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()):
            return dict(loaded)
        loaded = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), dict)), None)
    return None


def _without_prefix(tensors: dict[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors without the PREFIXES that all names have, unless the backbone has them too."""
    names = set(expected)
    for _ in range(_MAX_WRAPPERS):
        for prefix in PREFIXES:
            is_common = all(name.startswith(prefix) for name in tensors)
            if is_common and not any(name.startswith(prefix) for name in names):
                tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
                break
        else:
            break
    return tensors


def _check(expected: dict[str, Tensor], given: dict[str, Tensor], source: str, name: str) -> None:
    remedy = f"it must be weights of {name} under its published parameter names, as those of torchvision"
    for problem, keys in (
        ("lacks", expected.keys() - given.keys()),
        ("has unknown", given.keys() - expected.keys()),
    ):
        if keys:
            raise BadCheckpoint(
                f"{source} {problem} {len(keys)} parameters, first {min(keys)}", remedy=remedy
            )
    for key, value in expected.items():
        tensor = given[key]
        if tensor.shape != value.shape:
            raise BadCheckpoint(
                f"{source}: {key} has shape {tuple(tensor.shape)}, expected {tuple(value.shape)}",
                remedy=remedy,
            )
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise BadCheckpoint(f"{source}: {key} holds values that are not finite floats", remedy=remedy)


def package_file(source: str) -> Path:
    """Return the file of weights in the distribution that `package:NAME` names.

    Its code is not imported. Raises BadInput for a distribution that is not installed, or without one file.
    """
    name = source.removeprefix(PACKAGE_PREFIX)
    try:
        files = distribution(name).files or ()
    except (PackageNotFoundError, ValueError) as error:  # ValueError: an empty name
        raise BadInput(
            f"{source} is not installed", remedy=f"pip install {name}, or give a file of weights"
        ) from error
    paths = [Path(str(file.locate())) for file in files if file.suffix in FILE_SUFFIXES]
    if len(paths) != 1:
        raise BadInput(
            f"{source} has {len(paths)} files of weights, one is needed", remedy="give the file itself"
        )
    return paths[0]


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
