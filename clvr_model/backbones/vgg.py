"""VGG-16 up to its last map, averaged: (n, 3, 299, 299) -> (n, 512).

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks", 2014, table 1, column D. Parameters have
torchvision's names, without its `classifier.*`: our dense layer of 1024 replaces its two of 4096.
"""

from torch import Tensor, nn

from clvr_model.backbones.base import Backbone
from clvr_model.layers import Pooling, init_weights, make_pool
from clvr_model.normalization import imagenet_normalize

BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class Vgg16(Backbone):
    """The backbone. Input: float32 (n, 3, 299, 299) in [-1, 1]; output: float32 (n, 512).

    last_stride: 2 keeps the last maximum pool, 1 removes it. Weights start random from `seed`.
    """

    name = "vgg16"
    imagenet_weights = "hf:timm/vgg16.tv_in1k"
    pooled_dim = BLOCKS[-1][1]
    heads = ("classifier.", "pre_logits.", "head.")  # torchvision's name, and timm's two
    any_size = True

    def __init__(self, *, pooling: Pooling = "mean", last_stride: int = 2, seed: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for convolutions, width in BLOCKS:
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*(layers if last_stride == 2 else layers[:-1]))
        self.pool = make_pool(pooling)
        init_weights(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """float32 (n, 3, 299, 299) -> (n, 512)."""
        pooled: Tensor = self.pool(self.features(imagenet_normalize(x)))
        return pooled
