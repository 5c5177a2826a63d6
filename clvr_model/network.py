"""The CLVR network: a backbone, a dense layer of 1024, a classifier over the vehicle models.

Source: the paper, section 3: Inception-V3's 1000-way head is replaced by a dense layer and a softmax over the
model classes; the dense layer's output is the feature that is compared by L2.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from clvr_model.backbones import DEFAULT_BACKBONE, build_backbone, check_backbone, input_size
from clvr_model.field_errors import to_bad_setting
from clvr_model.layers import Pooling, init_weights

FEATURE_DIM = 1024

Classifier = Literal["dense", "cosine"]

# Every card has these. The others are newer and are saved only where they differ from the paper's, so that
# older checkpoints keep their fingerprint.
_ALWAYS_SAVED = ("classes", "feature_dim", "feature_relu", "pool_counts_padding")
# Attribute -> its name in cards, where the two differ.
_CARD_NAMES = {"l2_normalized": "normalised"}


def _known(name: str) -> str:
    check_backbone(name)
    return name


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class Architecture:
    """The network's shape and arithmetic, which the card and the fingerprint contain.

    Defaults are the paper's, except `feature_relu` (a ReLU after the dense layer), which it leaves open.
    bnneck: batch normalization after the dense layer (Luo et al. 2019). l2_normalized: the feature is divided
    by its length. classifier 'cosine': logits are `cosine_scale` times the cosine of feature and class.
    Raises BadSetting for an unknown backbone, pydantic's ValidationError for other bad values.
    """

    classes: int
    feature_dim: int = FEATURE_DIM
    feature_relu: bool = True
    pool_counts_padding: bool = True
    backbone: Annotated[str, AfterValidator(_known)] = DEFAULT_BACKBONE
    pooling: Pooling = "mean"
    last_stride: Literal[1, 2] = 2
    bnneck: bool = False
    l2_normalized: bool = False
    classifier: Classifier = "dense"
    cosine_scale: float = 16.0

    @property
    def image_size(self) -> int:
        """Height and width of the network's input, in pixels."""
        return input_size(self.backbone)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Architecture":
        """Read the plain values of a card. Raises BadSetting naming the field."""
        attributes = {name: attribute for attribute, name in _CARD_NAMES.items()}
        try:
            return cls(**{attributes.get(name, name): value for name, value in values.items()})
        except ValidationError as error:
            path = ".".join(str(part) for part in error.errors()[0]["loc"])
            names = [_CARD_NAMES.get(entry.name, entry.name) for entry in fields(cls)]
            raise to_bad_setting(error, _CARD_NAMES.get(path, path), names) from error

    def as_dict(self) -> dict[str, int | bool | str | float]:
        """Return plain values for the card."""
        values = asdict(self)
        saved = {
            _CARD_NAMES.get(entry.name, entry.name): values[entry.name]
            for entry in fields(self)
            if entry.name in _ALWAYS_SAVED
            or (entry.name != "backbone" and values[entry.name] != entry.default)
        }
        return {"backbone": self.backbone, **saved}


class BNNeck(nn.BatchNorm1d):
    """Batch normalization of the feature without a shift, "BNNeck" (Luo et al., "Bag of Tricks", 2019)."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, features) -> (n, features). One image alone uses the running statistics."""
        if self.training and len(x) == 1:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)


class CosineClassifier(nn.Linear):
    """Logits are the cosines between feature and class weights, times a fixed scale.

    Source: Wang et al., "NormFace", 2017: without a scale, the softmax of cosines stays close to uniform.
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
        self.l2_normalized = architecture.l2_normalized
        self.dense = nn.Linear(pooled_dim, width)
        self.neck = BNNeck(width) if architecture.bnneck else nn.Identity()
        self.classifier = (
            CosineClassifier(width, classes, architecture.cosine_scale)
            if architecture.classifier == "cosine"
            else nn.Linear(width, classes)
        )

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (n, pooled_dim) -> ((n, feature_dim), (n, classes)).

        The feature, which is stored and compared by L2, is also the classifier's input: the output of the
        dense layer after ReLU, neck and normalization, where the network has them.
        """
        feature = self.dense(pooled)
        if self.relu:
            feature = functional.relu(feature)
        feature = self.neck(feature)
        if self.l2_normalized:
            feature = functional.normalize(feature)
        return feature, self.classifier(feature)


class Clvr(nn.Module):
    """float32 (n, 3, h, w) in [-1, 1] -> feature (n, feature_dim), logits (n, classes).

    The first weights are random, from `seed`; `weights.load_backbone` replaces the backbone's. `switches` are
    the other fields of Architecture.
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
        init_weights(self.head, seed)

    @classmethod
    def of(cls, architecture: Architecture, *, seed: int = 0) -> "Clvr":
        """Make a network of that architecture."""
        return cls(seed=seed, **asdict(architecture))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (n, 3, h, w) -> ((n, feature_dim), (n, classes))."""
        feature, logits = self.head(self.backbone(x))
        return feature, logits
