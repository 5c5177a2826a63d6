"""Decoded images as the input of a network. Apart from decoding, which needs no torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_input(images: Tensor) -> Tensor:
    """Convert uint8 (n, h, w, 3) to float32 (n, 3, h, w) in [-1, 1], in channels_last order.

    torchvision's and TensorFlow's Inception-V3 weights expect (x / 255 - 0.5) / 0.5.
    """
    planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    return planes.sub_(127.5).div_(127.5)


def imagenet_normalize(x: Tensor) -> Tensor:
    """Convert `to_input`'s [-1, 1] to the range that torchvision's ResNet and VGG weights expect."""
    return normalize(x, IMAGENET_MEAN, IMAGENET_STD)


def normalize(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert `to_input`'s [-1, 1], (n, 3, h, w), to ((x + 1) / 2 - mean) / std by channel."""
    scale = x.new_tensor([0.5 / deviation for deviation in std])[:, None, None]
    shift = x.new_tensor([(0.5 - center) / deviation for center, deviation in zip(mean, std, strict=True)])[
        :, None, None
    ]
    return x * scale + shift
