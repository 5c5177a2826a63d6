"""The engine of torch, on any device."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clvr_model.engines import Outputs, as_outputs
from clvr_model.memory import is_out_of_memory
from clvr_model.network import Clvr
from clvr_model.precision import Precision
from clvr_model.serving import ServingModule, folded_copy

logger = logging.getLogger(__name__)

_CHUNK_ROWS = 128  # images copied to the GPU at a time: 34 MB


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
        architecture = network.architecture
        self.image_size = architecture.image_size
        self.feature_dim = architecture.feature_dim
        self.num_logits = architecture.outputs
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
        return as_outputs([torch.cat(parts).float().cpu().numpy() for parts in zip(*outputs, strict=True)])


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


@contextmanager
def _cpu_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
