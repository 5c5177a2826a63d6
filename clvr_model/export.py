"""Export a checkpoint for other runtimes: ONNX and OpenVINO, compared with torch before it is handed over.

The exported graph takes uint8 (n, h, w, 3) RGB as `preprocessing.decode` gives it and normalizes it itself.
Its outputs are `feature`, float32 (n, feature_dim), and `logits`, of vehicle models and attributes, if the
network has any.
"""

import json
import logging
import shutil
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from clvr_model.checkpoint import Checkpoint, load_checkpoint
from clvr_model.engines import openvino
from clvr_model.serving import ServingModule, folded_copy, openvino_graph
from infra.errors import BadSetting, Mismatch

Format = Literal["onnx", "openvino"]
FORMATS: tuple[Format, ...] = get_args(Format)

MAX_DIFFERENCE = 1e-3
"""Of a feature from torch's, as a share of the longest feature of the sample."""

_SAMPLE_IMAGES = 4
_OPSET = 20
_FILES: dict[Format, tuple[str, ...]] = {"onnx": ("model.onnx",), "openvino": ("model.xml", "model.bin")}


@dataclass(frozen=True, slots=True)
class Export:
    """What was written.

    difference: the largest from torch, as a share of the longest feature of the sample.
    """

    folder: str
    format: Format
    files: tuple[str, ...]
    bytes: int
    fingerprint: str
    image_size: int
    feature_dim: int
    label_ids: tuple[int, ...]
    difference: float
    checked_with: str

    def to_text(self) -> str:
        """Return the facts as one line."""
        return (
            f"{self.folder}: {', '.join(self.files)}, {self.bytes / 1e6:,.1f} MB, model {self.fingerprint}; "
            f"uint8 (n, {self.image_size}, {self.image_size}, 3) -> {self.feature_dim} numbers; "
            f"differs from torch by {self.difference:.1e} at most, by {self.checked_with}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields, which are those of export.json."""
        return asdict(self)


def export_checkpoint(checkpoint: Checkpoint | str, folder: str | Path, format: Format = "onnx") -> Export:
    """Write the network of a checkpoint (or its URI) into a local folder, and compare it with torch.

    Writes model.onnx, or model.xml and model.bin, and export.json last, which has the model's fingerprint and
    the label of each class. Features of an export may be searched in an index of the same fingerprint.
    Raises BadSetting if a package is missing or the folder holds other files, Mismatch if the exported graph
    gives other features than torch, BadCheckpoint.
    """
    if format not in FORMATS:
        raise BadSetting(f"format {format!r}", remedy=f"Choose {' or '.join(FORMATS)}.")
    target = Path(folder)
    names = (*_FILES[format], "export.json")
    if target.exists() and (not target.is_dir() or {path.name for path in target.iterdir()} - set(names)):
        raise BadSetting(f"{target} holds other files", remedy="Name a new or an empty folder.")
    if openvino() is None:
        raise BadSetting(
            "an export is checked with openvino, which is not installed",
            remedy="Install it: pip install openvino.",
        )
    checkpoint = load_checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _WRITERS[format](checkpoint, scratch / names[0])
        difference = _difference(checkpoint, scratch / names[0])
        if not difference <= MAX_DIFFERENCE:
            raise Mismatch(
                f"the exported network differs from torch by {difference:.1e} of the longest feature, more "
                f"than {MAX_DIFFERENCE:.0e}",
                remedy="Export it with another --format.",
            )
        architecture = checkpoint.network.architecture
        exported = Export(
            folder=str(target),
            format=format,
            files=_FILES[format],
            bytes=sum((scratch / name).stat().st_size for name in _FILES[format]),
            fingerprint=checkpoint.fingerprint,
            image_size=architecture.image_size,
            feature_dim=architecture.feature_dim,
            label_ids=tuple(checkpoint.label_ids),
            difference=difference,
            checked_with=f"openvino {openvino().__version__.partition('-')[0]}",
        )
        (scratch / "export.json").write_text(json.dumps(exported.to_json(), indent=1) + "\n")
        target.mkdir(exist_ok=True)
        for name in names:
            (scratch / name).replace(target / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return exported


def _write_onnx(checkpoint: Checkpoint, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401  # torch's exporter needs it, and says so less clearly
    except ImportError:
        raise BadSetting(
            "torch exports to ONNX with the package onnxscript, which is not installed",
            remedy="Install it: pip install 'clvr-archive[export]'.",
        ) from None
    size = checkpoint.network.architecture.image_size
    images = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    module = ServingModule(folded_copy(checkpoint.network)).eval()
    names = ["feature", "logits"][: len(module(images))]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here uses
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own code
            torch.onnx.export(
                module,
                (images,),
                path,
                dynamo=True,
                verbose=False,
                external_data=False,
                opset_version=_OPSET,
                input_names=["images"],
                output_names=names,
                dynamic_shapes={"images": {0: torch.export.Dim("n", min=1)}},
            )
    except Exception as error:  # torch raises a kind of its own for each step of the export
        raise BadSetting(
            f"torch cannot export {checkpoint.network.architecture.backbone} to ONNX: "
            f"{str(error).splitlines()[0]}",
            remedy="Export it with --format openvino.",
        ) from error


def _write_openvino(checkpoint: Checkpoint, path: Path) -> None:
    graph = openvino_graph(folded_copy(checkpoint.network))
    graph.inputs[0].set_names({"images"})
    for output, name in zip(graph.outputs, ("feature", "logits"), strict=False):
        output.set_names({name})
    openvino().save_model(graph, path, compress_to_fp16=False)


_WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino}


def _difference(checkpoint: Checkpoint, path: Path) -> float:
    """Return the largest difference from torch's features, as a share of the longest one."""
    sample = _sample(checkpoint.network.architecture.image_size)
    core = openvino().Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = list(compiled(sample).values())
    module = ServingModule(checkpoint.network.eval())
    with torch.inference_mode():
        expected = [part.numpy() for part in module(torch.from_numpy(sample))]
    if [part.shape for part in outputs] != [part.shape for part in expected]:
        return float("inf")
    scale = float(np.linalg.norm(expected[0], axis=1).max())
    return float(np.abs(outputs[0] - expected[0]).max() / max(scale, np.finfo(np.float32).tiny))


def _sample(size: int) -> NDArray[np.uint8]:
    """Return smooth images, uint8 (n, size, size, 3): noise alone would leave most units silent."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (_SAMPLE_IMAGES, 3, 6, 6)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 255)
    images: NDArray[np.uint8] = smooth.permute(0, 2, 3, 1).contiguous().to(torch.uint8).numpy()
    return images
