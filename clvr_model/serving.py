"""The network as it is served: with the normalization of pixels, and as a graph of OpenVINO."""

import copy
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from clvr_model.engines import openvino
from clvr_model.network import Clvr
from clvr_model.normalization import to_input


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


def folded_copy(network: Clvr) -> Clvr:
    """Copy the network in eval mode, with batch normalization folded into the convolutions.

    timm's models stay as they are.
    """
    folded = copy.deepcopy(network).eval()
    for part in list(folded.modules()):
        if isinstance(part, FoldsBatchNorm):
            part.fold()
    return folded


def openvino_graph(network: Clvr) -> Any:
    """Return an openvino.Model of `ServingModule`, for any number of images."""
    size = network.architecture.image_size
    example = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    with torch.inference_mode():
        # OpenVINO would trace and check it itself, which runs the network two times more.
        traced = torch.jit.trace(ServingModule(network.eval()), example, check_trace=False)  # type: ignore[no-untyped-call]
        return openvino().convert_model(traced, example_input=example, input=[[-1, size, size, 3]])
