"""The CLVR network: a backbone, a dense layer of 1024, a classifier over the vehicle models.

Source: the paper, section 3: Inception-V3's 1000-way head is replaced by a dense layer and a softmax over the
model classes; the dense layer's output is the feature that is compared by L2. The mixed head is that of the
paper's competitor MixedDiff.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, field, fields
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from clvr_model.attribute_head import AttributeHead
from clvr_model.attributes import Values, check_values
from clvr_model.backbones import DEFAULT_BACKBONE, build_backbone, check_backbone, input_size
from clvr_model.field_errors import to_bad_setting
from clvr_model.layers import Pooling, init_weights

FEATURE_DIM = 1024

BRANCH_DIM = 1024  # VGG_CNN_M_1024's fc7

Classifier = Literal["dense", "cosine"]
HeadKind = Literal["single", "mixed"]
# Which of a mixed head's vectors is the feature. A single head has the first only.
HeadOutput = Literal["feature", "model_branch", "vehicle_branch"]

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
    classes: 0 for a network that was trained on vehicles alone and has no classifier. head 'mixed': two
    branches of `branch_dim`, and two layers behind both, of which the first has `fusion_dim`; `bnneck` then
    also stands behind the branch of vehicle labels. input_size: height and width of the images, 0 for those
    of the backbone. attributes: the names of the values of color and body type that the network predicts; {}
    for none. Raises BadSetting for an unknown backbone, pydantic's
    ValidationError for other bad values.
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
    head: HeadKind = "single"
    branch_dim: int = BRANCH_DIM
    fusion_dim: int = BRANCH_DIM
    input_size: int = 0
    attributes: Annotated[Values, AfterValidator(check_values)] = field(default_factory=dict)

    @property
    def outputs(self) -> int:
        """Number of logits: of the classes, and of the values of all attributes."""
        return self.classes + sum(map(len, self.attributes.values()))

    @property
    def image_size(self) -> int:
        """Height and width of the network's input, in pixels."""
        return self.input_size or input_size(self.backbone)

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

    def as_dict(self) -> dict[str, int | bool | str | float | Values]:
        """Return plain values for the card."""
        values = asdict(self)
        saved = {
            _CARD_NAMES.get(entry.name, entry.name): values[entry.name]
            for entry in fields(self)
            if entry.name in _ALWAYS_SAVED
            or (entry.name != "backbone" and values[entry.name] != _default(entry))
        }
        return {"backbone": self.backbone, **saved}


def _default(entry: "Field[Any]") -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


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
    """Pooled (n, pooled_dim) -> feature (n, feature_dim), logits (n, classes), and those of attributes."""

    def __init__(self, architecture: Architecture, pooled_dim: int) -> None:
        super().__init__()
        self.relu = architecture.feature_relu
        self.l2_normalized = architecture.l2_normalized
        self.dense = nn.Linear(self._dense_inputs(architecture, pooled_dim), architecture.feature_dim)
        self.neck = BNNeck(architecture.feature_dim) if architecture.bnneck else nn.Identity()
        self.classifier = _classifier(architecture, self._classifier_inputs(architecture))
        self.attributes = AttributeHead(pooled_dim, {})

    def forward(self, pooled: Tensor) -> tuple[Tensor, ...]:
        """float32 (n, pooled_dim) -> ((n, feature_dim), (n, classes), (n, values) of each attribute).

        The feature, which is stored and compared by L2, is also the classifier's input: the output of the
        dense layer after ReLU, neck and normalization, where the network has them.
        """
        feature = self._feature(pooled)
        return feature, self._logits(feature), *self.attributes(pooled)

    @property
    def output_dim(self) -> int:
        """Length of the vector that `forward` returns as the feature."""
        return self.dense.out_features

    def select(
        self, *, softmax: bool, output: HeadOutput, fusion_only: bool, attribute_gradient: float = 0.0
    ) -> None:
        """Prepare a stage: freeze what its loss does not reach. `output` has an effect on mixed heads only.

        softmax: whether the loss uses the logits. fusion_only: see MixedHead. attribute_gradient: see
        AttributeHead.
        """
        self.attributes.gradient = attribute_gradient
        if self.classifier is not None:
            self.classifier.requires_grad_(softmax)

    def _feature(self, inputs: Tensor) -> Tensor:
        feature = self.dense(inputs)
        if self.relu:
            feature = functional.relu(feature)
        return self._normalized(self.neck(feature))

    def _normalized(self, feature: Tensor) -> Tensor:
        return functional.normalize(feature) if self.l2_normalized else feature

    def _logits(self, inputs: Tensor) -> Tensor:
        if self.classifier is None:
            return inputs.new_zeros((inputs.shape[0], 0))
        logits: Tensor = self.classifier(inputs)
        return logits

    def _dense_inputs(self, architecture: Architecture, pooled_dim: int) -> int:
        return pooled_dim

    def _classifier_inputs(self, architecture: Architecture) -> int:
        return architecture.feature_dim


class MixedHead(Head):
    """A branch of model labels, a branch of vehicle labels, and two layers behind both that give the feature.

    Source: Liu et al., "Deep Relative Distance Learning", CVPR 2016, as section 4.2 of the CLVR paper
    describes it: both branches' vectors are joined and go through two dense layers. `output` says which
    vector is the feature: a stage that trains one branch compares that branch's.
    """

    def __init__(self, architecture: Architecture, pooled_dim: int) -> None:
        super().__init__(architecture, pooled_dim)
        self.model_branch = nn.Linear(pooled_dim, architecture.branch_dim)
        self.vehicle_branch = nn.Linear(pooled_dim, architecture.branch_dim)
        self.vehicle_neck = BNNeck(architecture.branch_dim) if architecture.bnneck else nn.Identity()
        self.fusion = nn.Linear(2 * architecture.branch_dim, architecture.fusion_dim)
        self.output: HeadOutput = "feature"
        self._vehicles_learn = True

    def train(self, mode: bool = True) -> "MixedHead":
        """Set the mode; the neck of a frozen branch keeps its statistics."""
        super().train(mode)
        self.vehicle_neck.train(mode and self._vehicles_learn)
        return self

    def forward(self, pooled: Tensor) -> tuple[Tensor, ...]:
        """float32 (n, pooled_dim) -> (the vector that `output` names, (n, classes), those of attributes).

        The logits are those of the model branch.
        """
        by_model = functional.relu(self.model_branch(pooled))
        by_vehicle = self.vehicle_neck(functional.relu(self.vehicle_branch(pooled)))
        if self.output == "feature":
            joined = torch.cat([by_model, by_vehicle], dim=1)
            feature = self._feature(functional.relu(self.fusion(joined)))
        else:
            feature = self._normalized(by_model if self.output == "model_branch" else by_vehicle)
        return feature, self._logits(by_model), *self.attributes(pooled)

    @property
    def output_dim(self) -> int:
        """Length of the vector that `output` names."""
        return self.dense.out_features if self.output == "feature" else self.vehicle_branch.out_features

    def select(
        self, *, softmax: bool, output: HeadOutput, fusion_only: bool, attribute_gradient: float = 0.0
    ) -> None:
        """Prepare a stage: let learn what its loss reaches, and freeze the rest.

        fusion_only: the branches stay as they are.
        """
        super().select(
            softmax=softmax,
            output=output,
            fusion_only=fusion_only,
            attribute_gradient=attribute_gradient,
        )
        self.output = output
        whole = output == "feature"
        below = whole and not fusion_only
        self.model_branch.requires_grad_(below or softmax)
        self._vehicles_learn = below or output == "vehicle_branch"
        self.vehicle_branch.requires_grad_(self._vehicles_learn)
        self.fusion.requires_grad_(whole)
        self.dense.requires_grad_(whole)
        for neck, learns in ((self.neck, whole), (self.vehicle_neck, self._vehicles_learn)):
            if isinstance(neck, BNNeck):
                neck.weight.requires_grad_(learns)

    def _dense_inputs(self, architecture: Architecture, pooled_dim: int) -> int:
        return architecture.fusion_dim

    def _classifier_inputs(self, architecture: Architecture) -> int:
        return architecture.branch_dim


def _classifier(architecture: Architecture, width: int) -> nn.Linear | None:
    if not architecture.classes:
        return None
    if architecture.classifier == "cosine":
        return CosineClassifier(width, architecture.classes, architecture.cosine_scale)
    return nn.Linear(width, architecture.classes)


class Clvr(nn.Module):
    """float32 (n, 3, h, w) in [-1, 1] -> feature (n, feature_dim), logits (n, classes) and of attributes.

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
            size=self.architecture.input_size,
        )
        kind = MixedHead if self.architecture.head == "mixed" else Head
        self.head = kind(self.architecture, self.backbone.pooled_dim)
        init_weights(self.head, seed)
        # After the draw: the other layers start from the same weights with and without attributes.
        self.head.attributes = AttributeHead(self.backbone.pooled_dim, self.architecture.attributes)

    @classmethod
    def of(cls, architecture: Architecture, *, seed: int = 0) -> "Clvr":
        """Make a network of that architecture."""
        return cls(seed=seed, **asdict(architecture))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """float32 (n, 3, h, w) -> ((n, feature_dim), (n, classes), (n, values) of each attribute)."""
        outputs: tuple[Tensor, ...] = self.head(self.backbone(x))
        return outputs
