"""Linear classifiers of a vehicle's color and body type, and their loss.

They read the backbone's pooled output, not the feature: the feature learns to tell vehicle models apart and
may lose the paint, and a network without attributes keeps its layers, its weights and its fingerprint.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from clvr_model.attributes import UNKNOWN_VALUE


class AttributeHead(nn.ModuleDict):
    """A linear classifier for each attribute: pooled (n, pooled_dim) -> logits (n, values) of each.

    gradient: factor on the gradient that goes on to the backbone. At 0 the classifiers learn from the
    backbone's output as it is, and nothing else in the network changes by them. The first weights are zero:
    the loss is convex, and drawing none leaves those of the other layers as they are.
    """

    def __init__(self, pooled_dim: int, values: Mapping[str, Sequence[str]]) -> None:
        super().__init__({name: nn.Linear(pooled_dim, len(values[name])) for name in values})
        self.gradient = 0.0
        for parameter in self.parameters():
            if not parameter.is_meta:
                nn.init.zeros_(parameter)

    def forward(self, pooled: Tensor) -> tuple[Tensor, ...]:
        """float32 (n, pooled_dim) -> (n, values) for each attribute."""
        if self.training and self.gradient != 1:
            fixed = pooled.detach()
            pooled = torch.lerp(fixed, pooled, self.gradient) if self.gradient else fixed
        return tuple(classifier(pooled) for classifier in self.values())


def attribute_loss(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Return the cross-entropy, summed over attributes and over the images whose value is known.

    logits: (n, values) of each attribute. targets: int64 (n, attributes), UNKNOWN_VALUE where unknown.
    """
    return sum(
        (
            functional.cross_entropy(part.float(), numbers, reduction="sum", ignore_index=UNKNOWN_VALUE)
            for part, numbers in zip(logits, targets.unbind(dim=1), strict=True)
        ),
        start=torch.zeros((), device=targets.device),
    )
