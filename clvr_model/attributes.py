"""Attributes of a vehicle beside its model, color and body type, which linear classifiers learn from labels.

They read the backbone's pooled output, not the feature: the feature learns to tell vehicle models apart and
may lose the paint, and a network without attributes keeps its layers, its weights and its fingerprint.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from infra.errors import BadLabels

if TYPE_CHECKING:
    from clvr_model.datasets.labelled import LabeledImages

ATTRIBUTES: Final = ("color", "body_type")
"""The attributes, in the order of logits and of columns of targets."""

COLUMNS: Final = {"color": "colors", "body_type": "body_types"}
"""Attribute -> its column of `LabeledImages`."""

UNKNOWN_VALUE: Final = -1
"""The number of a value that no label states; such images have no part in the loss and in accuracies."""

MAX_VALUES: Final = 100
MAX_VALUE_BYTES: Final = 64
"""Of a value's name in UTF-8: shards and collections keep no longer one."""

Values = dict[str, list[str]]
"""Attribute -> the names of its values, which have the numbers 0, 1, …"""


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


def learnable_values(labelled: "LabeledImages") -> Values:
    """Return the values of the attributes of which the labels have two or more, sorted.

    Raises BadLabels for more than MAX_VALUES values, and for a name that is too long.
    """
    found: Values = {}
    for name in ATTRIBUTES:
        values = sorted(set(getattr(labelled, COLUMNS[name]) or ()) - {""})
        if len(values) > MAX_VALUES:
            raise BadLabels(
                f"the labels have {len(values):,} different values of {name}, more than {MAX_VALUES}",
                remedy="check the column, or train without it: --set attributes=false",
            )
        too_long = [value for value in values if len(value.encode(errors="replace")) > MAX_VALUE_BYTES]
        if too_long:
            raise BadLabels(
                f"the labels have a {name} of more than {MAX_VALUE_BYTES} bytes: {too_long[0][:40]!r}…",
                remedy="shorten it, or train without attributes: --set attributes=false",
            )
        if len(values) > 1:
            found[name] = values
    return found


def value_numbers(labelled: "LabeledImages", values: Mapping[str, Sequence[str]]) -> NDArray[np.int64]:
    """Return the number of each image's value of each attribute, (n, attributes), or UNKNOWN_VALUE."""
    numbers = np.full((len(labelled), len(values)), UNKNOWN_VALUE, np.int64)
    for column, (name, names) in enumerate(values.items()):
        known = {value: number for number, value in enumerate(names)}
        texts = getattr(labelled, COLUMNS[name]) or ()
        numbers[: len(texts), column] = [known.get(text, UNKNOWN_VALUE) for text in texts]
    return numbers


def check_values(values: Values) -> Values:
    """Return the values in the order of ATTRIBUTES. Raises ValueError for those that no network can have."""
    unknown = sorted(set(values) - set(ATTRIBUTES))
    if unknown:
        raise ValueError(f"{unknown[0]} is none of the attributes {', '.join(ATTRIBUTES)}")
    for name, names in values.items():
        if not 1 < len(set(names)) == len(names) <= MAX_VALUES or not all(names):
            raise ValueError(f"{name} has 2 to {MAX_VALUES} different values with names")
    return {name: values[name] for name in ATTRIBUTES if name in values}
