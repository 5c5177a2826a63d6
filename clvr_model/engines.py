"""Inference engines of a trained network: OpenVINO on CPUs, torch on any device.

An engine maps uint8 (batch, h, w, 3) images of the network's size, in one fixed batch size, to float32
features, and logits of classes and attributes. The normalization of pixels is part of its graph. torch takes
seconds to import, so this module imports it only where a device must be asked.
"""

import ctypes
import os
from functools import cache as memoised
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clvr_model.precision import Precision

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]

_TF32_CAPABILITY = 8  # of CUDA devices, from Ampere on


class Engine(Protocol):
    """uint8 (batch, h, w, 3) -> float32 (batch, feature_dim), (batch, num_logits); one call at a time."""

    image_size: int
    feature_dim: int
    num_logits: int

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        """Run one full batch."""


def as_outputs(arrays: list[NDArray[np.float32]]) -> Outputs:
    """Return features and logits; the latter (n, 0) without a classifier."""
    return arrays[0], arrays[1] if len(arrays) > 1 else np.zeros((len(arrays[0]), 0), np.float32)


@memoised
def openvino() -> Any:
    """Return the openvino package, or None if it is not installed."""
    try:
        import openvino as package
    except ImportError:
        return None
    return package


@memoised
def has_gpu() -> bool:
    """Whether torch can use a GPU of this machine. Without the driver of one, torch is not asked."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        if not Path("/dev/kfd").exists():  # AMD's, which torch calls CUDA too
            return False
    import torch

    return torch.cuda.is_available()


@memoised
def has_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware; emulation is slower than float32."""
    if device == "cpu" and openvino():
        capabilities: list[str] = openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "BF16" in capabilities
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@memoised
def reduced_precisions(device: str) -> tuple[Precision, ...]:
    """Return the precisions that are faster than fp32 in the device's hardware, the fastest first."""
    precisions: list[Precision] = ["bf16"] if has_bf16(device) else []
    if device.startswith("cuda"):
        import torch

        if torch.cuda.get_device_capability(device)[0] >= _TF32_CAPABILITY:
            precisions.append("tf32")
    return tuple(precisions)


def default_cache() -> Path:
    """Return the folder of converted networks: `$XDG_CACHE_HOME/clvr-archive`, or `~/.cache/clvr-archive`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clvr-archive"
