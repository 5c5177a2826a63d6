"""From a map of features to one vector: the mean, or a generalised mean that learns what to favour."""

from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["mean", "gem"]

# Radenovic et al. (TPAMI 2019) start at 3, between the mean (1) and the maximum (infinity).
GEM_START = 3.0
GEM_FLOOR = 1e-6


class Mean(nn.Module):
    """(n, c, h, w) -> (n, c): the plain mean, as the paper's network has it."""

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
        """In float32 whatever comes in: powers of bfloat16 would lose what they are taken for."""
        powers: Tensor = x.float().clamp(min=GEM_FLOOR).pow(self.p)
        return powers.mean(dim=(2, 3)).pow(1.0 / self.p)


def pool_of(pooling: Pooling) -> nn.Module:
    """The pool of that name."""
    return GeM() if pooling == "gem" else Mean()
