"""The CLVR network: Inception-V3, a dense layer of 1024, a classifier over the vehicle models.

Source: the paper, section 3: the 1000-way head is replaced by a dense layer and a softmax over the model
classes; the dense layer's output is the feature that is compared by L2.
"""

from dataclasses import asdict, dataclass

from torch import Tensor, nn
from torch.nn import functional

from clvr_model.inception import POOLED_DIM, InceptionV3, initialise

FEATURE_DIM = 1024


@dataclass(frozen=True, slots=True)
class Architecture:
    """All that decides the network's shape and arithmetic; it goes into the card and the fingerprint.

    `feature_relu` (a ReLU after the dense layer) is our choice: the paper does not say.
    """

    classes: int
    feature_dim: int = FEATURE_DIM
    feature_relu: bool = True
    pool_counts_padding: bool = True

    def as_dict(self) -> dict[str, int | bool | str]:
        """Plain values for the card, with the backbone's name."""
        return {"backbone": "inception_v3", **asdict(self)}


class Head(nn.Module):
    """Pooled (n, 2048) -> feature (n, feature_dim) and logits (n, classes)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.relu = architecture.feature_relu
        self.dense = nn.Linear(POOLED_DIM, architecture.feature_dim)
        self.classifier = nn.Linear(architecture.feature_dim, architecture.classes)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (n, 2048) -> ((n, feature_dim), (n, classes))."""
        feature = self.dense(pooled)
        if self.relu:
            feature = functional.relu(feature)
        return feature, self.classifier(feature)


class Clvr(nn.Module):
    """float32 (n, 3, 299, 299) in [-1, 1] -> feature (n, feature_dim), logits (n, classes).

    Random at first, from `seed`; `weights.load_backbone` fills in the backbone.
    """

    def __init__(
        self,
        classes: int,
        feature_dim: int = FEATURE_DIM,
        *,
        feature_relu: bool = True,
        pool_counts_padding: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.architecture = Architecture(classes, feature_dim, feature_relu, pool_counts_padding)
        self.backbone = InceptionV3(pool_counts_padding=pool_counts_padding, seed=seed)
        self.head = Head(self.architecture)
        initialise(self.head, seed)

    @classmethod
    def of(cls, architecture: Architecture, *, seed: int = 0) -> "Clvr":
        """A network of that architecture."""
        return cls(
            architecture.classes,
            architecture.feature_dim,
            feature_relu=architecture.feature_relu,
            pool_counts_padding=architecture.pool_counts_padding,
            seed=seed,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (n, 3, 299, 299) -> ((n, feature_dim), (n, classes))."""
        feature, logits = self.head(self.backbone(x))
        return feature, logits
