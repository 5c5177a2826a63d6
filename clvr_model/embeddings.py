"""What a network says about images: features, the most likely model, attributes. It needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

UNKNOWN_LABEL = -1


@dataclass(frozen=True, slots=True)
class PredictedValues:
    """The most likely value of an attribute, by name, and its softmax, both (n,)."""

    values: NDArray[np.str_]
    confidence: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One row per image: features (n, feature_dim), predicted original label (n,) and its softmax (n,).

    A network without a classifier predicts UNKNOWN_LABEL with confidence 0. attributes: those that the
    network predicts, by name.
    """

    features: NDArray[np.float32]
    model_id: NDArray[np.int32]
    confidence: NDArray[np.float32]
    attributes: Mapping[str, PredictedValues] = field(default_factory=dict)

    @classmethod
    def concatenate(cls, parts: "Sequence[Embeddings]") -> "Embeddings":
        """Join the rows of one or more parts of the same model, in order."""
        return cls(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.model_id for part in parts]),
            np.concatenate([part.confidence for part in parts]),
            {
                name: PredictedValues(
                    np.concatenate([part.attributes[name].values for part in parts]),
                    np.concatenate([part.attributes[name].confidence for part in parts]),
                )
                for name in parts[0].attributes
            },
        )
