"""Layers that the backbones share: pooling of the last feature map, and seeded first weights."""

from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["mean", "gem"]

# Radenovic et al. (TPAMI 2019) start at 3, between the mean (1) and the maximum (infinity).
GEM_START = 3.0
GEM_FLOOR = 1e-6


class GlobalAveragePool(nn.Module):
    """(n, c, h, w) -> (n, c): the mean over height and width, as in the paper's network."""

    def forward(self, x: Tensor) -> Tensor:
        """Average over height and width."""
        return x.mean(dim=(2, 3))


class GeM(nn.Module):
    """(n, c, h, w) -> (n, c): the p-th root of the mean p-th power; p is learnt with the backbone.

    Source: Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019, eq. 3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), GEM_START))

    def forward(self, x: Tensor) -> Tensor:
        """Pool in float32 whatever the input's type: powers of bfloat16 lose too much precision."""
        powers: Tensor = x.float().clamp(min=GEM_FLOOR).pow(self.p)
        return powers.mean(dim=(2, 3)).pow(1.0 / self.p)


def make_pool(pooling: Pooling) -> nn.Module:
    """Make the pool of that name."""
    return GeM() if pooling == "gem" else GlobalAveragePool()


def init_weights(module: nn.Module, seed: int) -> None:
    """Draw all convolution and dense weights from `seed`, so that random networks are reproducible.

    Fan-in scaling (He et al. 2015) keeps the activations' size through all layers, also with untrained batch
    statistics. A module on the meta device stays as it is: its weights are about to be loaded.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear) and not part.weight.is_meta:
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu", generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
