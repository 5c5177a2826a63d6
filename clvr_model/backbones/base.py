"""Base class of the backbones: the facts and the interface that the registry uses."""

from typing import ClassVar

from torch import nn

from clvr_model.preprocessing import IMAGE_SIZE


class Backbone(nn.Module):
    """A network without its classifier: float32 (n, 3, h, w) in [-1, 1] -> float32 (n, pooled_dim).

    Subclasses take the keywords `pooling`, `last_stride` and `seed`. name: the architecture in recipes and
    cards. imagenet_weights: address of published weights for `weights.load_backbone`, "" without any that it
    can read. input_size: h and w. has_pool: whether `pooling` and `last_stride` have an effect. heads:
    prefixes of the classifier's parameters in published weights, which are ignored. top: prefixes of the
    parameters of the layers from the last reduction on, which `trainable: top` trains; () without a pool.
    """

    name: ClassVar[str]
    imagenet_weights: ClassVar[str]
    input_size: ClassVar[int] = IMAGE_SIZE
    takes_pool_counts_padding: ClassVar[bool] = False
    has_pool: ClassVar[bool] = True
    top: tuple[str, ...] = ()
    pooled_dim: int
    heads: tuple[str, ...]

    @property
    def published_part(self) -> nn.Module:
        """The module whose parameters have the names of published weights."""
        return self
