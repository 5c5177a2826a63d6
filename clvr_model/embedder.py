"""Embed images by the fastest engine of a device, at a precision that the fingerprint shows.

Engines and batch sizes are not in the fingerprint: they agree to about 1e-5.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from clvr_model.attributes import check_values
from clvr_model.card import CARD_FILE, Card, read_card, store_of, verified_fingerprint
from clvr_model.embeddings import UNKNOWN_LABEL, Embeddings, PredictedValues
from clvr_model.engines import Engine, has_bf16, has_gpu, openvino, reduced_precisions
from clvr_model.graph_cache import cached_graph
from clvr_model.images import ImageInput, read_pixels
from clvr_model.openvino_engine import OpenVinoEngine
from clvr_model.precision import (
    MIN_IMAGES,
    REDUCED,
    Precision,
    PrecisionCheck,
    PrecisionOption,
    reduced_fingerprint,
)
from infra.errors import BadInput, BadSetting

if TYPE_CHECKING:
    from torch import Tensor

    from clvr_model.checkpoint import Checkpoint
    from clvr_model.network import Clvr

CPU_BATCH = 8
CUDA_BATCH = 256


class Embedder:
    """Computes features, predicted models and attributes of uint8 images. Safe to share between threads.

    checkpoint: a Checkpoint or the URI of one, whose weights are read unless the cache has its network.
    device: 'auto', 'cpu', 'cuda' or 'cuda:N'. engine: 'auto', 'openvino' (CPU only) or 'torch'. precision:
    'fp32'; 'tf32', which is fp32 on CPUs; 'bf16'; 'auto' is the fastest that the device has in hardware and
    the check covers. guard: a check on images of this archive; the default is the card's. threads: CPU
    threads per call, 0 for all. cache: folder for networks converted for OpenVINO, None for none (usually
    `engines.default_cache()`). compiled: use torch.compile, for long runs on GPUs. Raises BadSetting for what
    this machine does not support, BadCheckpoint as `load_checkpoint` does.
    """

    def __init__(
        self,
        checkpoint: "Checkpoint | str",
        *,
        device: str = "auto",
        engine: Literal["auto", "openvino", "torch"] = "auto",
        precision: PrecisionOption = "fp32",
        batch_size: int | None = None,
        threads: int = 1,
        guard: PrecisionCheck | None = None,
        cache: Path | None = None,
        compiled: bool = False,
    ) -> None:
        card, fingerprint, network = _opened(checkpoint)
        self.device = _device(device)
        self.engine = _engine(engine, self.device)
        guard = guard or PrecisionCheck.of_card(card.guard)
        self.precision = _precision(precision, self.device, guard)
        is_comparable = self.precision == "fp32" or (guard is not None and guard.covers(self.precision))
        default = CPU_BATCH if self.device == "cpu" else CUDA_BATCH
        self.batch_size = default if batch_size is None else batch_size
        if self.batch_size < 1 or threads < 0:
            raise BadSetting(
                f"batch_size is {self.batch_size} and threads is {threads}; they start at 1 and at 0"
            )
        self.fingerprint = fingerprint if is_comparable else reduced_fingerprint(fingerprint, self.precision)
        self._label_ids = np.asarray(card.label_ids, dtype=np.int32)
        self.attributes: Mapping[str, list[str]] = check_values(
            {name: list(values) for name, values in card.attributes.items()}
        )
        self._lock = threading.Lock()
        self._run: Engine
        if self.engine == "openvino":
            self._run = OpenVinoEngine(
                _graph(card, network, cache),
                batch_size=self.batch_size,
                precision=self.precision,
                threads=threads,
            )
        else:
            from clvr_model.torch_engine import TorchEngine

            self._run = TorchEngine(
                network(),
                device=self.device,
                precision=self.precision,
                threads=threads,
                compiled=compiled,
            )
        self.feature_dim = self._run.feature_dim
        self.image_size = self._run.image_size

    def __call__(self, images: NDArray[np.uint8]) -> Embeddings:
        """Embed uint8 (n, h, w, 3) RGB from `preprocessing.decode` at `image_size`; n may be 0.

        Raises BadInput for another shape or type.
        """
        if images.dtype != np.uint8 or images.shape[1:] != (self.image_size, self.image_size, 3):
            expected = f"expected uint8 (n, {self.image_size}, {self.image_size}, 3)"
            raise BadInput(f"images are {images.dtype} {images.shape}, {expected}")
        count = len(images)
        features = np.empty((count, self.feature_dim), np.float32)
        logits = np.empty((count, self._run.num_logits), np.float32)
        for start in range(0, count, self.batch_size):
            chunk = np.ascontiguousarray(images[start : start + self.batch_size])
            stop = start + len(chunk)
            if len(chunk) < self.batch_size:  # engines have one fixed shape
                missing = self.batch_size - len(chunk)
                chunk = np.concatenate([chunk, np.zeros((missing, *chunk.shape[1:]), np.uint8)])
            with self._lock:
                feature, logit = self._run(chunk)
                features[start:stop], logits[start:stop] = feature[: stop - start], logit[: stop - start]
        classes = len(self._label_ids)
        attributes: dict[str, PredictedValues] = {}
        start = classes
        for name, values in self.attributes.items():
            best, confidence = _most_likely(logits[:, start : start + len(values)])
            attributes[name] = PredictedValues(np.array(values)[best], confidence)
            start += len(values)
        return Embeddings(features, *self._predicted(logits[:, :classes]), attributes)

    def embed(self, images: Iterable[ImageInput]) -> Embeddings:
        """Read, decode and embed images: one row per image, in their order.

        images: paths or URIs (`s3://bucket/key`), encoded bytes, PIL images, or arrays uint8 (h, w, 3) RGB of
        any size. One batch of decoded images is in memory at a time. Raises UnreadableImage with the number
        of the image, BadInput for another type, ObjectMissing, StoreError.
        """
        parts = [self(np.empty((0, self.image_size, self.image_size, 3), np.uint8))]
        batch: list[NDArray[np.uint8]] = []
        for number, image in enumerate(images):
            batch.append(read_pixels(image, self.image_size, number))
            if len(batch) == self.batch_size:
                parts.append(self(np.stack(batch)))
                batch = []
        if batch:
            parts.append(self(np.stack(batch)))
        return Embeddings.concatenate(parts)

    def _predicted(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        if not len(self._label_ids):
            return np.full(len(logits), UNKNOWN_LABEL, np.int32), np.zeros(len(logits), np.float32)
        best, confidence = _most_likely(logits)
        return self._label_ids[best], confidence


def _most_likely(logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the number of the largest logit of each row, and its softmax."""
    # The softmax of the largest logit, in a form that does not overflow.
    confidence = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    return logits.argmax(axis=1), confidence.astype(np.float32)


def check_precision(
    checkpoint: "Checkpoint | str",
    sample: NDArray[np.uint8],
    *,
    precision: Precision = "bf16",
    device: str = "auto",
    engine: Literal["auto", "openvino", "torch"] = "auto",
    batch_size: int | None = None,
    threads: int = 1,
    cache: Path | None = None,
) -> PrecisionCheck:
    """Compare features at a reduced precision with fp32 ones of a sample, uint8 (n, h, w, 3).

    Settings as for Embedder.

    Use a trained network and at least MIN_IMAGES images of the archive: features of random weights hardly
    differ between images, and so their neighbours are arbitrary. Raises BadInput for fewer than two
    images, BadSetting where the device has no such precision.
    """
    if len(sample) < 2:
        raise BadInput(f"{len(sample)} sample images cannot show neighbours; give {MIN_IMAGES} or more")
    import torch

    from clvr_model.checkpoint import load_checkpoint

    if isinstance(checkpoint, str):
        checkpoint = load_checkpoint(checkpoint)
    if precision == "bf16" and not has_bf16(_device(device)):
        raise BadSetting(f"{_device(device)} has no bfloat16 in hardware", remedy="embed with fp32")

    def features(precision: Precision) -> "Tensor":
        embedder = Embedder(
            checkpoint,
            device=device,
            engine=engine,
            precision=precision,
            batch_size=batch_size,
            threads=threads,
            cache=cache,
        )
        return torch.from_numpy(embedder(sample).features)

    exact, reduced = features("fp32"), features(precision)
    cosine = torch.nn.functional.cosine_similarity(exact, reduced)
    nearest = [
        torch.cdist(probes, exact, compute_mode="donot_use_mm_for_euclid_dist")
        .fill_diagonal_(torch.inf)
        .argmin(dim=1)
        for probes in (exact, reduced)
    ]
    agreement = float((nearest[0] == nearest[1]).float().mean())
    return PrecisionCheck(float(cosine.min()), agreement, len(sample), precision)


def _opened(checkpoint: "Checkpoint | str") -> "tuple[Card, str, Callable[[], Clvr]]":
    """Return the card of a checkpoint, its fingerprint, and what gives its network."""
    if not isinstance(checkpoint, str):
        network = checkpoint.network
        return checkpoint.card, checkpoint.fingerprint, lambda: network
    store = store_of(checkpoint)
    card = read_card(store)

    def load() -> "Clvr":
        from clvr_model.checkpoint import load_network

        return load_network(store, card)

    return card, verified_fingerprint(card, store.uri_of(CARD_FILE)), load


def _graph(card: Card, network: "Callable[[], Clvr]", cache: Path | None) -> Any:
    """Return the network as an openvino.Model."""

    def convert() -> Any:
        from clvr_model.serving import openvino_graph

        return openvino_graph(network())

    return cached_graph(cache, card, convert)


def _device(requested: str) -> str:
    if requested == "auto":
        return "cuda" if has_gpu() else "cpu"
    kind, _, number = requested.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise BadSetting(f"device is {requested!r}", remedy="choose auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return kind
    import torch

    if int(number or 0) >= torch.cuda.device_count():
        raise BadSetting(
            f"device is {requested!r}, this machine has {torch.cuda.device_count()} CUDA devices"
        )
    return requested


def _engine(requested: str, device: str) -> Literal["openvino", "torch"]:
    if requested not in ("auto", "openvino", "torch"):
        raise BadSetting(f"engine is {requested!r}", remedy="choose auto, openvino or torch")
    usable = device == "cpu" and openvino() is not None
    if requested == "openvino" and not usable:
        raise BadSetting(f"engine 'openvino' is not available on {device}", remedy="choose auto or torch")
    return "openvino" if usable and requested != "torch" else "torch"


def _precision(requested: PrecisionOption, device: str, guard: PrecisionCheck | None) -> Precision:
    if requested == "auto":
        covered = [each for each in reduced_precisions(device) if guard and guard.covers(each)]
        return covered[0] if covered else "fp32"
    if requested not in ("fp32", *REDUCED):
        raise BadSetting(f"precision is {requested!r}", remedy="choose fp32, tf32, bf16 or auto")
    if requested == "bf16" and not has_bf16(device):
        raise BadSetting(f"{device} has no bfloat16 in hardware", remedy="choose fp32 or auto")
    return requested
