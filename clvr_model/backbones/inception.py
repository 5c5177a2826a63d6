"""Inception-V3 up to its last average pool: (n, 3, 299, 299) -> (n, 2048).

Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015, figures 5 to 7 and
table 1. Parameters carry torchvision's names, without its `fc.*` and `AuxLogits.*`, so that its weights (and
timm's) load as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clvr_model.backbones.base import Backbone
from clvr_model.layers import Pooling, init_weights, make_pool

POOLED_DIM = 2048
BATCH_NORM_EPS = 1e-3

Kernel = tuple[int, int]


class Conv(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, padding: Kernel = (0, 0)):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, h', w')."""
        return functional.relu(self.bn(self.conv(x)), inplace=True)

    def fold(self) -> None:
        """Fold the batch normalisation into the convolution."""
        self.conv = fuse_conv_bn_eval(self.conv, self.bn)
        self.bn = nn.Identity()  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution of a branch. Stride 1 keeps height and width, stride 2 has no padding."""

    name: str
    outputs: int
    kernel: Kernel = (1, 1)
    stride: int = 1

    def build(self, inputs: int) -> Conv:
        """Make the convolution for a number of input channels."""
        padding = (self.kernel[0] // 2, self.kernel[1] // 2) if self.stride == 1 else (0, 0)
        return Conv(inputs, self.outputs, self.kernel, self.stride, padding)


Branch = Sequence[Layer | tuple[Layer, Layer]]  # a pair is last: both have the same input


class Mixed(nn.Module):
    """Parallel branches and one pool, joined by channel in the order given, the pool last.

    `pool` is the layer after an average pool that keeps the size, or None for a maximum pool with `stride`:
    2 halves the size, 1 keeps it.
    """

    def __init__(
        self,
        inputs: int,
        branches: Sequence[Branch],
        pool: Layer | None,
        counts_padding: bool,
        stride: int = 2,
    ):
        super().__init__()
        self._stride = stride
        self._chains: list[list[tuple[str, ...]]] = []
        self._pool = pool.name if pool else None
        self._counts_padding = counts_padding
        for branch in branches:
            channels, chain = inputs, []
            for step in branch:
                layers = step if isinstance(step, tuple) else (step,)
                for layer in layers:
                    self.add_module(layer.name, layer.build(channels))
                channels = layers[-1].outputs
                chain.append(tuple(layer.name for layer in layers))
            self._chains.append(chain)
        if pool:
            self.add_module(pool.name, pool.build(inputs))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, sum of the branches, h', w')."""
        joined: list[Tensor] = []
        for *steps, last in self._chains:
            y = x
            for (name,) in steps:
                y = self._modules[name](y)  # type: ignore[misc]
            joined += [self._modules[name](y) for name in last]  # type: ignore[misc]
        if self._pool is None:
            joined.append(functional.max_pool2d(x, 3, self._stride, padding=2 - self._stride))
        else:
            averaged = functional.avg_pool2d(x, 3, 1, padding=1, count_include_pad=self._counts_padding)
            joined.append(self._modules[self._pool](averaged))  # type: ignore[misc]
        return torch.cat(joined, dim=1)


class InceptionV3(Backbone):
    """The backbone. Input: float32 (n, 3, 299, 299) in [-1, 1]; output: float32 (n, 2048).

    `pool_counts_padding`: whether the average pools inside the blocks count the zero border. torchvision's
    weights were trained with True, TensorFlow's with False. The same weights give other features with the
    other choice, so it is part of the architecture and of the fingerprint.
    last_stride: of Mixed_7a; 1 gives the last blocks and the pool maps of 17 x 17 instead of 8 x 8.
    Weights start random (He et al. 2015, fan-in) from `seed`.
    """

    name = "inception_v3"
    imagenet_weights = "hf:timm/inception_v3.tv_in1k"
    any_size = True
    any_size = True
    takes_pool_counts_padding = True
    pooled_dim = POOLED_DIM
    heads = ("fc.", "AuxLogits.")
    top = ("Mixed_7a.", "Mixed_7b.", "Mixed_7c.", "pool.")

    def __init__(
        self,
        *,
        pool_counts_padding: bool = True,
        pooling: Pooling = "mean",
        last_stride: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.pool_counts_padding = pool_counts_padding
        self.Conv2d_1a_3x3 = Conv(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = Conv(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = Conv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Conv(80, 192, (3, 3))
        self.Mixed_5b = self._grid35(192, pool=32)
        self.Mixed_5c = self._grid35(256, pool=64)
        self.Mixed_5d = self._grid35(288, pool=64)
        self.Mixed_6a = self._shrink35()
        self.Mixed_6b = self._grid17(128)
        self.Mixed_6c = self._grid17(160)
        self.Mixed_6d = self._grid17(160)
        self.Mixed_6e = self._grid17(192)
        self.Mixed_7a = self._shrink17(last_stride)
        self.Mixed_7b = self._grid8(1280)
        self.Mixed_7c = self._grid8(2048)
        self.pool = make_pool(pooling)
        init_weights(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """float32 (n, 3, 299, 299) -> (n, 2048)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        pooled: Tensor = self.pool(self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))))
        return pooled

    def _mixed(self, inputs: int, *branches: Branch, pool: int = 0, stride: int = 2) -> Mixed:
        layer = Layer("branch_pool", pool) if pool else None
        return Mixed(inputs, branches, layer, self.pool_counts_padding, stride)

    def _grid35(self, inputs: int, pool: int) -> Mixed:
        return self._mixed(
            inputs,
            [Layer("branch1x1", 64)],
            [Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))],
            [
                Layer("branch3x3dbl_1", 64),
                Layer("branch3x3dbl_2", 96, (3, 3)),
                Layer("branch3x3dbl_3", 96, (3, 3)),
            ],
            pool=pool,
        )

    def _shrink35(self) -> Mixed:
        return self._mixed(
            288,
            [Layer("branch3x3", 384, (3, 3), stride=2)],
            [
                Layer("branch3x3dbl_1", 64),
                Layer("branch3x3dbl_2", 96, (3, 3)),
                Layer("branch3x3dbl_3", 96, (3, 3), stride=2),
            ],
        )

    def _grid17(self, inner: int) -> Mixed:
        row, column = (1, 7), (7, 1)
        return self._mixed(
            768,
            [Layer("branch1x1", 192)],
            [
                Layer("branch7x7_1", inner),
                Layer("branch7x7_2", inner, row),
                Layer("branch7x7_3", 192, column),
            ],
            [
                Layer("branch7x7dbl_1", inner),
                Layer("branch7x7dbl_2", inner, column),
                Layer("branch7x7dbl_3", inner, row),
                Layer("branch7x7dbl_4", inner, column),
                Layer("branch7x7dbl_5", 192, row),
            ],
            pool=192,
        )

    def _shrink17(self, stride: int) -> Mixed:
        return self._mixed(
            768,
            [Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, (3, 3), stride)],
            [
                Layer("branch7x7x3_1", 192),
                Layer("branch7x7x3_2", 192, (1, 7)),
                Layer("branch7x7x3_3", 192, (7, 1)),
                Layer("branch7x7x3_4", 192, (3, 3), stride),
            ],
            stride=stride,
        )

    def _grid8(self, inputs: int) -> Mixed:
        return self._mixed(
            inputs,
            [Layer("branch1x1", 320)],
            [
                Layer("branch3x3_1", 384),
                (Layer("branch3x3_2a", 384, (1, 3)), Layer("branch3x3_2b", 384, (3, 1))),
            ],
            [
                Layer("branch3x3dbl_1", 448),
                Layer("branch3x3dbl_2", 384, (3, 3)),
                (Layer("branch3x3dbl_3a", 384, (1, 3)), Layer("branch3x3dbl_3b", 384, (3, 1))),
            ],
            pool=192,
        )
