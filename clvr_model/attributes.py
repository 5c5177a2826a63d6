"""Attributes of a vehicle beside its model, color and body type: their values, from labels and in cards.

`attribute_head` learns them. This module needs no torch.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

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
