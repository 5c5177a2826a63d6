"""ResNet-50 and ResNet-50-IBN-a up to their pool: (n, 3, h, w) -> (n, 2048).

Sources: He et al., "Deep Residual Learning for Image Recognition", 2015, table 1, with the stride on the
3 x 3 convolution, as in torchvision's weights; Pan et al., "Two at Once: Enhancing Learning and
Generalization Capacities via IBN-Net", ECCV 2018. Parameters have the names of torchvision and of IBN-Net's
release, without `fc.*`.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clvr_model.backbones.base import Backbone
from clvr_model.layers import Pooling, init_weights, make_pool
from clvr_model.normalization import imagenet_normalize

EXPANSION = 4


class InstanceBatchNorm(nn.Module):
    """IBN-a: instance normalization of the first half of the channels, batch normalization of the others.

    An image's own statistics take away its light and colour cast, which differ between cameras.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.instances = channels // 2
        self.IN = nn.InstanceNorm2d(self.instances, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.instances)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> the same shape."""
        return torch.cat([self.IN(x[:, : self.instances]), self.BN(x[:, self.instances :])], dim=1)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut: a convolution where the shape changes.

    ibn: whether InstanceBatchNorm follows the first convolution.
    """

    def __init__(self, inputs: int, width: int, stride: int, *, ibn: bool = False) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = InstanceBatchNorm(width) if ibn else nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, 4 * width, h', w')."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = functional.relu(self.bn2(self.conv2(y)), inplace=True)
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x), inplace=True)

    def fold(self) -> None:
        """Fold each batch normalization into its convolution; that of instances depends on the image."""
        for number in (1, 2, 3):
            if isinstance(getattr(self, f"bn{number}"), nn.BatchNorm2d):
                _fold(self, f"conv{number}", f"bn{number}")
        if len(self.downsample):
            _fold(self.downsample, "0", "1")


class ResNet50(Backbone):
    """The backbone. Input: float32 (n, 3, h, w) in [-1, 1]; output: float32 (n, 2048).

    last_stride: of the last stage; 1 gives the pool maps of 19 x 19 instead of 10 x 10 (Luo et al., "Bag of
    Tricks", 2019). Weights start random from `seed`.
    """

    name = "resnet50"
    imagenet_weights = "hf:timm/resnet50.tv_in1k"
    pooled_dim = 512 * EXPANSION
    heads = ("fc.",)
    top = ("layer4.", "pool.")
    any_size = True
    ibn: ClassVar[bool] = False

    def __init__(self, *, pooling: Pooling = "mean", last_stride: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, blocks=3, stride=1, ibn=self.ibn)
        self.layer2 = _stage(256, 128, blocks=4, stride=2, ibn=self.ibn)
        self.layer3 = _stage(512, 256, blocks=6, stride=2, ibn=self.ibn)
        self.layer4 = _stage(1024, 512, blocks=3, stride=last_stride)
        self.pool = make_pool(pooling)
        init_weights(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """float32 (n, 3, h, w) -> (n, 2048)."""
        x = functional.relu(self.bn1(self.conv1(imagenet_normalize(x))), inplace=True)
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
        pooled: Tensor = self.pool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return pooled

    def fold(self) -> None:
        """Fold the first batch normalization into its convolution; the blocks fold the others."""
        _fold(self, "conv1", "bn1")


class ResNet50Ibn(ResNet50):
    """ResNet-50-IBN-a: InstanceBatchNorm in the first three stages, the usual network of re-id."""

    name = "resnet50_ibn_a"
    imagenet_weights = ""  # published as resnet50_ibn_a-d9d0bb7b.pth, at an address that no hub serves
    ibn = True


def _stage(inputs: int, width: int, *, blocks: int, stride: int, ibn: bool = False) -> nn.Sequential:
    rest = [Bottleneck(width * EXPANSION, width, 1, ibn=ibn) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(inputs, width, stride, ibn=ibn), *rest)


def _fold(parent: nn.Module, conv: str, norm: str) -> None:
    setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
    setattr(parent, norm, nn.Identity())
