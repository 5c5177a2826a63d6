"""Inference engines of a trained network: OpenVINO on CPUs, torch on any device.

An engine maps uint8 (batch, h, w, 3) images of the network's size, in one fixed batch size, to float32
features, and logits of classes and attributes. The normalization of pixels is part of its graph.
"""

import copy
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache as memoised
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clvr_model.memory import is_out_of_memory
from clvr_model.network import Clvr
from clvr_model.normalization import to_input
from clvr_model.precision import Precision

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]

logger = logging.getLogger(__name__)

# Part of the cache key: raise it when the exported graph changes.
EXPORT_VERSION = 1

_TF32_CAPABILITY = 8  # of CUDA devices, from Ampere on
_CHUNK_ROWS = 128  # images copied to the GPU at a time: 34 MB


class Engine(Protocol):
    """uint8 (batch, h, w, 3) -> float32 (batch, feature_dim), (batch, outputs); one call at a time."""

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        """Run one full batch."""


@runtime_checkable
class FoldsBatchNorm(Protocol):
    """A part of a network that can fold its batch normalization into its convolutions."""

    def fold(self) -> None:
        """Fold in place; in eval mode the outputs stay the same."""


class ServingModule(nn.Module):
    """The network with the normalization of pixels: uint8 (n, h, w, 3) -> feature, and logits if any."""

    def __init__(self, network: Clvr) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 (n, h, w, 3) -> float32 (n, feature_dim), and (n, outputs): all logits, side by side."""
        feature, logits, *attributes = self.network(to_input(images))
        # Not every engine takes an output without elements.
        parts = [*([logits] if self.network.architecture.classes else []), *attributes]
        return (feature, torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]) if parts else (feature,)


@memoised
def openvino() -> Any:
    """Return the openvino package, or None if it is not installed."""
    try:
        import openvino as package
    except ImportError:
        return None
    return package


@memoised
def has_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware; emulation is slower than float32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if openvino():
        capabilities: list[str] = openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "BF16" in capabilities
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@memoised
def reduced_precisions(device: str) -> tuple[Precision, ...]:
    """Return the precisions that are faster than fp32 in the device's hardware, the fastest first."""
    precisions: list[Precision] = ["bf16"] if has_bf16(device) else []
    if device.startswith("cuda") and torch.cuda.get_device_capability(device)[0] >= _TF32_CAPABILITY:
        precisions.append("tf32")
    return tuple(precisions)


class OpenVinoEngine:
    """The network compiled by OpenVINO for this CPU, with batch normalization folded.

    cache: folder for the exported graph and the compiled model, under `key`, which shortens the next start;
    None exports and compiles each time.
    """

    def __init__(
        self,
        network: Clvr,
        *,
        key: str,
        batch_size: int,
        precision: Precision,
        threads: int,
        cache: Path | None,
    ) -> None:
        ov = openvino()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            # With pinning, two actors of one thread each share the first core.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        core = ov.Core()
        if cache is None:
            model = _shaped(openvino_graph(network), network, batch_size)
            compiled = core.compile_model(model, "CPU", settings)
        else:
            settings["CACHE_DIR"] = str(cache / "compiled")
            with _compile_lock(cache):
                graph = _exported(network, cache / f"{key}-v{EXPORT_VERSION}-{ov.__version__}")
                model = _shaped(core.read_model(graph), network, batch_size)
                compiled = core.compile_model(model, "CPU", settings)
        self._request = compiled.create_infer_request()

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        """Run one full batch."""
        return _outputs(list(self._request.infer([images], share_inputs=True).values()))


class TorchEngine:
    """The network under torch, with folded batch normalization, channels_last and an optional precision.

    compiled: use torch.compile, on GPUs with CUDA graphs; where that fails, the network runs as it is. A
    batch goes to a GPU in chunks of `_CHUNK_ROWS` images: each is copied while the previous one is computed.
    """

    def __init__(
        self, network: Clvr, *, device: str, precision: Precision, threads: int, compiled: bool
    ) -> None:
        self._device = torch.device(device)
        self._precision = precision
        self._threads = threads
        folded = folded_copy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._module = ServingModule(folded).to(self._device)
        self._forward = _Compiled(self._module) if compiled else self._module
        # A CUDA graph belongs to the thread that captured it.
        self._thread = ThreadPoolExecutor(1, "cuda-graph") if compiled and self._is_cuda else None
        self._buffer: _PinnedDoubleBuffer | None = None

    @property
    def _is_cuda(self) -> bool:
        return self._device.type == "cuda"

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        """Run one full batch."""
        return self._thread.submit(self._run, images).result() if self._thread else self._run(images)

    @torch.inference_mode()
    def _run(self, images: NDArray[np.uint8]) -> Outputs:
        source = torch.from_numpy(images)
        with _cpu_threads(0 if self._is_cuda else self._threads), rounding(self._device, self._precision):
            if not self._is_cuda:
                outputs = [self._forward(source)]
            else:
                self._buffer = self._buffer or _PinnedDoubleBuffer(
                    self._device, (min(_CHUNK_ROWS, len(images)), *images.shape[1:])
                )
                # A captured graph overwrites its outputs in the next call, so they are copied.
                outputs = [
                    tuple(part[:count].to(torch.float32, copy=True) for part in self._forward(chunk))
                    for chunk, count in self._buffer.chunks(source)
                ]
        return _outputs([torch.cat(parts).float().cpu().numpy() for parts in zip(*outputs, strict=True)])


class _Compiled:
    """A module under torch.compile; the module itself if its first compilation fails."""

    def __init__(self, module: nn.Module) -> None:
        self._plain = module
        # Other modes also try many kernels for each layer, for minutes.
        self._run: Callable[[Tensor], tuple[Tensor, ...]] = torch.compile(module, mode="reduce-overhead")
        self._works = False

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        try:
            outputs = self._run(images)
        except Exception as error:
            if self._works or is_out_of_memory(error):
                raise
            # It takes a C compiler and Triton, which not every image has.
            reason = str(error).partition("\n")[0]
            logger.warning(f"torch.compile failed, the network runs uncompiled: {reason}")
            self._run = self._plain
            outputs = self._run(images)
        self._works = True
        return outputs


@contextmanager
def rounding(device: torch.device, precision: Precision) -> Iterator[None]:
    """Set how products of a GPU, or of bfloat16 on any device, are rounded."""
    if device.type == "cuda":
        # torch's default rounds convolutions to TF32 and matrix products not.
        kind = "tf32" if precision == "tf32" else "ieee"
        torch.backends.cudnn.conv.fp32_precision = kind  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision = kind
    with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
        yield


def _outputs(arrays: list[NDArray[np.float32]]) -> Outputs:
    """Return features and logits; the latter (n, 0) without a classifier."""
    return arrays[0], arrays[1] if len(arrays) > 1 else np.zeros((len(arrays[0]), 0), np.float32)


class _PinnedDoubleBuffer:
    """Two page-locked and two GPU buffers, used in turn, with a stream for the copies."""

    def __init__(self, device: torch.device, shape: tuple[int, ...]) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._host = [torch.zeros(shape, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._device_buffers = [torch.zeros(shape, dtype=torch.uint8, device=device) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._consumed = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._device = device

    def chunks(self, images: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Yield chunks on the GPU, all of one shape, and the number of valid images in each.

        Queue the work on a chunk on the current stream before requesting the next chunk.
        """
        computing = torch.cuda.current_stream(self._device)
        for number, part in enumerate(torch.split(images, len(self._host[0]))):
            slot = number % 2
            self._copied[slot].synchronize()  # until the previous copy from this buffer is done
            self._host[slot][: len(part)].copy_(part)
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(self._consumed[slot])
                self._device_buffers[slot].copy_(self._host[slot], non_blocking=True)
                self._copied[slot].record(self._stream)
            computing.wait_event(self._copied[slot])
            yield self._device_buffers[slot], len(part)
            self._consumed[slot].record(computing)


def folded_copy(network: Clvr) -> Clvr:
    """Copy the network in eval mode, with batch normalization folded into the convolutions.

    timm's models stay as they are.
    """
    folded = copy.deepcopy(network).eval()
    for part in list(folded.modules()):
        if isinstance(part, FoldsBatchNorm):
            part.fold()
    return folded


def default_cache() -> Path:
    """Return the folder of exported graphs: `$XDG_CACHE_HOME/clvr-archive`, or `~/.cache/clvr-archive`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clvr-archive"


def openvino_graph(network: Clvr) -> Any:
    """Return an openvino.Model of `ServingModule`, for any number of images."""
    size = network.architecture.image_size
    example = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    with torch.inference_mode():
        # OpenVINO would trace and check it itself, which runs the network two times more.
        traced = torch.jit.trace(ServingModule(network.eval()), example, check_trace=False)  # type: ignore[no-untyped-call]
        return openvino().convert_model(traced, example_input=example, input=[[-1, size, size, 3]])


def _shaped(model: Any, network: Clvr, batch_size: int) -> Any:
    size = network.architecture.image_size
    model.reshape([batch_size, size, size, 3])
    return model


@contextmanager
def _compile_lock(cache: Path) -> Iterator[None]:
    """Lock the cache: two processes that compile one model at once break OpenVINO's files.

    Actors start together, and all but the first use the compiled model. The lock ends with its process.
    """
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _exported(network: Clvr, folder: Path) -> Path:
    graph = folder / "graph.xml"
    if not graph.exists():
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Before the folder is made: a kill in these seconds leaves none behind.
        model = openvino_graph(network)
        # Each process writes its own folder; the first rename wins, and the others use that folder.
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            openvino().save_model(model, scratch / graph.name, compress_to_fp16=False)
            scratch.rename(folder)
        except OSError:
            if not graph.exists():
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return graph


@contextmanager
def _cpu_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
