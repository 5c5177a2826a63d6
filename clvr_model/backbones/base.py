"""Base class of the backbones: the facts and the interface that the registry uses."""

from collections.abc import Iterator
from typing import ClassVar

from torch import nn

from clvr_model.preprocessing import IMAGE_SIZE


class Backbone(nn.Module):
    """A network without its classifier: float32 (n, 3, h, w) in [-1, 1] -> float32 (n, pooled_dim).

    Subclasses take the keywords `pooling`, `last_stride` and `seed`. name: the architecture in recipes and
    cards. imagenet_weights: address of published weights for `weights.load_backbone`, "" without any that it
    can read. input_size: h and w. any_size: whether it takes others too. has_pool: whether `pooling` and
    `last_stride` have an effect. heads: prefixes of the classifier's parameters in published weights, which
    are ignored. top: prefixes of the parameters of the layers from the last reduction on, which
    `trainable: top` trains; () without a pool.
    """

    name: ClassVar[str]
    imagenet_weights: ClassVar[str]
    input_size: ClassVar[int] = IMAGE_SIZE
    any_size: ClassVar[bool] = False
    takes_pool_counts_padding: ClassVar[bool] = False
    has_pool: ClassVar[bool] = True
    top: tuple[str, ...] = ()
    pooled_dim: int
    heads: tuple[str, ...]

    @property
    def published_part(self) -> nn.Module:
        """The module whose parameters have the names of published weights."""
        return self

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters by layer, from the input on.

        A layer is a child of the published part; a child that is a sequence counts as its members. Parameters
        of the module itself (tokens and positions of a transformer) belong to the first layer, and those of
        the pool to the last.
        """
        part = self.published_part
        layers = [list(part.parameters(recurse=False))]
        layers += [list(member.parameters()) for child in part.children() for member in _members(child)]
        if part is not self:
            inside = {id(parameter) for parameter in part.parameters()}
            layers.append([one for one in self.parameters() if id(one) not in inside])
        first, *rest = layers
        kept = [layer for layer in rest if layer]
        return [first + kept[0], *kept[1:]] if kept else [first]


def _members(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential | nn.ModuleList):
        for child in module:
            yield from _members(child)
    else:
        yield module
