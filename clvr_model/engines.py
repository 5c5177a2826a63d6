"""The two ways to run a trained network fast: OpenVINO on CPUs, torch anywhere.

An engine takes uint8 (batch, 299, 299, 3) of one fixed batch size and gives float32 features and logits.
Normalisation is part of its graph.
"""

import copy
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache as memoised
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clvr_model.network import Clvr
from clvr_model.preprocessing import IMAGE_SIZE, to_input

Precision = Literal["fp32", "bf16"]
Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]

# Raise it when the exported graph changes, so that an older cache is not taken for it.
EXPORT_VERSION = 1

_PIECE = 128  # pictures of a GPU batch that are copied and computed at a time: 34 MB


class Engine(Protocol):
    """uint8 (batch, 299, 299, 3) -> float32 (batch, feature_dim), (batch, classes); one call at a time."""

    def __call__(self, pictures: NDArray[np.uint8]) -> Outputs:
        """Run one full batch."""


@runtime_checkable
class Foldable(Protocol):
    """A part of a network that can fold its batch normalisations into its convolutions."""

    def fold(self) -> None:
        """Do it in place; in eval mode the outputs stay the same."""


class Served(nn.Module):
    """The network with its normalisation: uint8 (n, 299, 299, 3) -> feature, logits."""

    def __init__(self, network: Clvr) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (n, 299, 299, 3) -> float32 (n, feature_dim), (n, classes)."""
        feature, logits = self.network(to_input(pictures))
        return feature, logits


@memoised
def openvino() -> Any:
    """The openvino package, or None where it is not installed."""
    try:
        import openvino as package
    except ImportError:
        return None
    return package


@memoised
def has_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware; elsewhere it would be slower, not faster."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if openvino():
        capabilities: list[str] = openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "BF16" in capabilities
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class OpenVinoEngine:
    """The network compiled by OpenVINO for this CPU, with batch normalisation folded.

    cache: folder that keeps the exported graph and the compiled model under `key`, so that the next process
    starts in a second or two; None exports and compiles each time.
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
            # Pinned, two actors of one thread each would share the first core.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        core = ov.Core()
        if cache is None:
            compiled = core.compile_model(_shaped(_export(network), batch_size), "CPU", settings)
        else:
            settings["CACHE_DIR"] = str(cache / "compiled")
            with _one_at_a_time(cache):
                graph = _exported(network, cache / f"{key}-v{EXPORT_VERSION}-{ov.__version__}")
                compiled = core.compile_model(_shaped(core.read_model(graph), batch_size), "CPU", settings)
        self._request = compiled.create_infer_request()

    def __call__(self, pictures: NDArray[np.uint8]) -> Outputs:
        """Run one full batch."""
        outputs = self._request.infer([pictures], share_inputs=True)
        return outputs[0], outputs[1]


class TorchEngine:
    """The network under torch: batch normalisation folded, channels_last, bfloat16 by autocast if asked.

    compiled: torch.compile, on GPUs with CUDA graphs. A batch goes to a GPU in pieces of `_PIECE` pictures:
    one is copied while the one before it is computed.
    """

    def __init__(
        self, network: Clvr, *, device: str, precision: Precision, threads: int, compiled: bool
    ) -> None:
        self._device = torch.device(device)
        self._precision = precision
        self._threads = threads
        folded = folded_copy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._served = Served(folded).to(self._device)
        if compiled:
            self._served.compile(mode="max-autotune")
        self._lane: _CopyLane | None = None
        if self._device.type == "cuda":
            # TF32 would make 'fp32' a reduced precision without saying so.
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]

    @torch.inference_mode()
    def __call__(self, pictures: NDArray[np.uint8]) -> Outputs:
        """Run one full batch."""
        reduced = (
            torch.autocast(self._device.type, torch.bfloat16) if self._precision == "bf16" else nullcontext()
        )
        source = torch.from_numpy(pictures)
        with _cpu_threads(self._threads if self._device.type == "cpu" else 0), reduced:
            if self._device.type == "cpu":
                found = [self._served(source)]
            else:
                self._lane = self._lane or _CopyLane(self._device, min(_PIECE, len(pictures)))
                # Copies, because a captured graph writes its next answer over this one.
                found = [
                    tuple(part[:count].to(torch.float32, copy=True) for part in self._served(piece))
                    for piece, count in self._lane.pieces(source)
                ]
        features, logits = (torch.cat(parts).float().cpu().numpy() for parts in zip(*found, strict=True))
        return features, logits


class _CopyLane:
    """Two rooms of page-locked memory and two on the GPU, used in turn, and a stream for copies alone."""

    def __init__(self, device: torch.device, size: int) -> None:
        shape = (size, IMAGE_SIZE, IMAGE_SIZE, 3)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._here = [torch.zeros(shape, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._there = [torch.zeros(shape, dtype=torch.uint8, device=device) for _ in range(2)]
        self._arrived = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._used = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._device = device

    def pieces(self, pictures: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Pieces on the GPU, all of one shape, and how many of their pictures count.

        The work on a piece must be queued on the current stream before the next piece is asked for.
        """
        computing = torch.cuda.current_stream(self._device)
        for turn, part in enumerate(torch.split(pictures, len(self._here[0]))):
            room = turn % 2
            self._arrived[room].synchronize()  # what was in this room has left it; at first that is true
            self._here[room][: len(part)].copy_(part)
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(self._used[room])
                self._there[room].copy_(self._here[room], non_blocking=True)
                self._arrived[room].record(self._stream)
            computing.wait_event(self._arrived[room])
            yield self._there[room], len(part)
            self._used[room].record(computing)


def folded_copy(network: Clvr) -> Clvr:
    """A copy in eval mode whose batch normalisations are folded into their convolutions.

    timm's models stay as they are.
    """
    folded = copy.deepcopy(network).eval()
    for part in list(folded.modules()):
        if isinstance(part, Foldable):
            part.fold()
    return folded


def default_cache() -> Path:
    """Where exported graphs go: `$XDG_CACHE_HOME/clvr-archive`, or `~/.cache/clvr-archive`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clvr-archive"


def _export(network: Clvr) -> Any:
    example = torch.zeros(1, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8)
    with torch.inference_mode():
        # Traced here, because OpenVINO would run the network two times more to check the trace.
        traced = torch.jit.trace(Served(network.eval()), example, check_trace=False)  # type: ignore[no-untyped-call]
        return openvino().convert_model(
            traced, example_input=example, input=[[-1, IMAGE_SIZE, IMAGE_SIZE, 3]]
        )


def _shaped(model: Any, batch_size: int) -> Any:
    model.reshape([batch_size, IMAGE_SIZE, IMAGE_SIZE, 3])
    return model


@contextmanager
def _one_at_a_time(cache: Path) -> Iterator[None]:
    """Keep other processes out of the cache: two that compile one model at once break OpenVINO's files.

    Actors start together, so all but the first find the model compiled. The lock dies with its process.
    """
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _exported(network: Clvr, place: Path) -> Path:
    graph = place / "graph.xml"
    if not graph.exists():
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        model = _export(network)  # takes seconds: a kill within them shall leave no folder behind
        # Actors start at once: each writes its own folder, the first rename wins, the others use it.
        workshop = Path(tempfile.mkdtemp(dir=place.parent))
        try:
            openvino().save_model(model, workshop / graph.name, compress_to_fp16=False)
            workshop.rename(place)
        except OSError:
            if not graph.exists():
                raise
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
    return graph


@contextmanager
def _cpu_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
