"""The CLVR network: a backbone, a dense layer of 1024, a classifier over the vehicle models.

Source: the paper, section 3: Inception-V3's 1000-way head is replaced by a dense layer and a softmax over the
model classes; the dense layer's output is the feature that is compared by L2.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional

from clvr_model.backbones import INCEPTION, build_backbone, check_backbone
from clvr_model.initialise import initialise
from clvr_model.pooling import Pooling
from infra.errors import BadSetting

FEATURE_DIM = 1024

Classifier = Literal["dense", "cosine"]

# Those that every card states. The others came later and are stated where they are not the paper's, so that
# what was trained before them keeps its fingerprint.
_ALWAYS = ("classes", "feature_dim", "feature_relu", "pool_counts_padding")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "pooling": get_args(Pooling),
    "last_stride": (1, 2),
    "bnneck": (False, True),
    "classifier": get_args(Classifier),
    "normalised": (False, True),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """All that decides the network's shape and arithmetic; it goes into the card and the fingerprint.

    Defaults are the paper's; `feature_relu` (a ReLU after the dense layer) is our choice: it does not say.
    bnneck: batch normalisation after the dense layer (Luo et al. 2019). normalised: the feature is divided by
    its length. classifier 'cosine': logits are `cosine_scale` times the cosine of feature and class.
    Raises BadSetting for what no network can have.
    """

    classes: int
    feature_dim: int = FEATURE_DIM
    feature_relu: bool = True
    pool_counts_padding: bool = True
    backbone: str = INCEPTION
    pooling: Pooling = "mean"
    last_stride: int = 2
    bnneck: bool = False
    normalised: bool = False
    classifier: Classifier = "dense"
    cosine_scale: float = 16.0

    def __post_init__(self) -> None:
        check_backbone(self.backbone)
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed or type(value) is not type(allowed[0]):
                choices = ", ".join(str(choice) for choice in allowed)
                raise BadSetting(f"{name} is {value!r}", remedy=f"choose one of {choices}")

    def as_dict(self) -> dict[str, int | bool | str | float]:
        """Plain values for the card, with the backbone's name."""
        values = asdict(self)
        told = {
            entry.name: values[entry.name]
            for entry in fields(self)
            if entry.name in _ALWAYS or (entry.name != "backbone" and values[entry.name] != entry.default)
        }
        return {"backbone": self.backbone, **told}


class Neck(nn.BatchNorm1d):
    """Batch normalisation of the feature without a shift, "BNNeck" (Luo et al., "Bag of Tricks", 2019)."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, features) -> (n, features); a single picture has no batch to be normalised by."""
        if self.training and len(x) == 1:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)


class CosineClassifier(nn.Linear):
    """Logits are the cosines between feature and class weights, times a fixed scale.

    Source: Wang et al., "NormFace", 2017: without a scale the softmax of cosines cannot become sure.
    """

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__(features, classes, bias=False)
        self.scale = scale

    def forward(self, feature: Tensor) -> Tensor:
        """(n, features) -> (n, classes)."""
        cosines = functional.linear(functional.normalize(feature), functional.normalize(self.weight))
        return self.scale * cosines


class Head(nn.Module):
    """Pooled (n, pooled_dim) -> feature (n, feature_dim) and logits (n, classes)."""

    def __init__(self, architecture: Architecture, pooled_dim: int) -> None:
        super().__init__()
        width, classes = architecture.feature_dim, architecture.classes
        self.relu = architecture.feature_relu
        self.normalised = architecture.normalised
        self.dense = nn.Linear(pooled_dim, width)
        self.neck = Neck(width) if architecture.bnneck else nn.Identity()
        self.classifier = (
            CosineClassifier(width, classes, architecture.cosine_scale)
            if architecture.classifier == "cosine"
            else nn.Linear(width, classes)
        )

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (n, pooled_dim) -> ((n, feature_dim), (n, classes)).

        The feature, what is stored and compared by L2, is what the classifier sees: after ReLU, neck and
        normalisation, as far as the network has them.
        """
        feature = self.dense(pooled)
        if self.relu:
            feature = functional.relu(feature)
        feature = self.neck(feature)
        if self.normalised:
            feature = functional.normalize(feature)
        return feature, self.classifier(feature)


class Clvr(nn.Module):
    """float32 (n, 3, 299, 299) in [-1, 1] -> feature (n, feature_dim), logits (n, classes).

    Random at first, from `seed`; `weights.load_backbone` fills in the backbone. `switches` are the other
    fields of Architecture.
    """

    def __init__(
        self, classes: int, feature_dim: int = FEATURE_DIM, *, seed: int = 0, **switches: Any
    ) -> None:
        super().__init__()
        self.architecture = Architecture(classes, feature_dim, **switches)
        self.backbone = build_backbone(
            self.architecture.backbone,
            pooling=self.architecture.pooling,
            last_stride=self.architecture.last_stride,
            pool_counts_padding=self.architecture.pool_counts_padding,
            seed=seed,
        )
        self.head = Head(self.architecture, self.backbone.pooled_dim)
        initialise(self.head, seed)

    @classmethod
    def of(cls, architecture: Architecture, *, seed: int = 0) -> "Clvr":
        """A network of that architecture."""
        return cls(seed=seed, **asdict(architecture))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (n, 3, 299, 299) -> ((n, feature_dim), (n, classes))."""
        feature, logits = self.head(self.backbone(x))
        return feature, logits
