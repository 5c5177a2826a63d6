"""VGG-M up to its first dense layer: (n, 3, 224, 224) -> (n, 4096).

Source: Chatfield et al., "Return of the Devil in the Details", 2014: VGG_CNN_M_1024, as in the Caffe files of
Fast R-CNN. The CLVR paper's competitors CCL and MixedDiff stand on it; the head's dense layer of 1024 is its
fc7. Parameters have Caffe's names, conv1 to conv5 and fc6. Its weights exist as a Caffe model only, which a
converter by name turns into a .safetensors file.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from clvr_model.backbones.base import Backbone
from clvr_model.layers import Pooling, init_weights

MAP_SIDE = 6  # of the last map, which fixes the input's size
FC6 = 4096
DROPOUT = 0.5
# Of the Caffe model: blue, green, red, of 255.
PIXEL_MEANS = (102.9801, 115.9465, 122.7717)
PIXEL_DEVIATION = 64.0  # about that of photographs


class VggM(Backbone):
    """The backbone. Input: float32 (n, 3, 224, 224) in [-1, 1]; output: float32 (n, 4096), not negative.

    It has no pool before its dense layer: `pooling` is 'mean' and `last_stride` 2 in name only. In training
    mode half of fc6 is dropped. Weights start random from `seed`.
    """

    name = "vgg_m"
    imagenet_weights = ""
    input_size = 224
    has_pool = False
    pooled_dim = FC6
    heads = ("fc7.", "fc8.")

    def __init__(self, *, pooling: Pooling = "mean", last_stride: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2)
        self.conv2 = nn.Conv2d(96, 256, 5, stride=2, padding=1)
        self.conv3 = nn.Conv2d(256, 512, 3, padding=1)
        self.conv4 = nn.Conv2d(512, 512, 3, padding=1)
        self.conv5 = nn.Conv2d(512, 512, 3, padding=1)
        self.fc6 = nn.Linear(512 * MAP_SIDE * MAP_SIDE, FC6)
        init_weights(self, seed)
        if not self.conv1.weight.is_meta:
            with torch.no_grad():  # pixels of 0 to 255 would make the activations of random weights as large
                self.conv1.weight /= PIXEL_DEVIATION

    def forward(self, x: Tensor) -> Tensor:
        """float32 (n, 3, 224, 224) -> (n, 4096)."""
        x = _max_pool(_normalized(functional.relu(self.conv1(_caffe_pixels(x)))))
        x = _max_pool(_normalized(functional.relu(self.conv2(x))))
        x = functional.relu(self.conv4(functional.relu(self.conv3(x))))
        x = _max_pool(functional.relu(self.conv5(x)))
        x = functional.relu(self.fc6(x.flatten(1)))
        return functional.dropout(x, DROPOUT, self.training)


def _caffe_pixels(x: Tensor) -> Tensor:
    """Convert RGB in [-1, 1] to blue, green, red of 0 to 255 without their means."""
    return x.flip(1) * 127.5 + (127.5 - x.new_tensor(PIXEL_MEANS))[:, None, None]


def _normalized(x: Tensor) -> Tensor:
    """Caffe's normalization over five channels, of which torch's definition is the same."""
    return functional.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)


def _max_pool(x: Tensor) -> Tensor:
    """Caffe rounds the size of the output up."""
    return functional.max_pool2d(x, 3, stride=2, ceil_mode=True)
