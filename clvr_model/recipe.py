"""The paper's two training stages as data, and other recipes in the same form.

A recipe is a YAML file; overrides such as `stage2.epochs=5`, `target.lr=0.01` or `batch=32` change it. An
error names the field and the values that it may have.

Spelling: files, overrides and cards accept the field names below and those of the first release (`_FIELDS`),
in which cards are written. Outside Python the architecture is `network`, and `backbone` always means
`pretrained`, as in the first release: a file does not say how old it is. An architecture's name is therefore
refused as `backbone`.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from clvr_model.attributes import Values
from clvr_model.backbones import (
    BACKBONES,
    DEFAULT_BACKBONE,
    check_backbone,
    check_last_stride,
    check_pooling,
    check_size,
    has_top,
    imagenet_weights,
    input_size,
    is_timm,
)
from clvr_model.coupled_clusters import Center, Negatives
from clvr_model.field_errors import to_bad_setting
from clvr_model.layers import Pooling
from clvr_model.network import BRANCH_DIM, FEATURE_DIM, Architecture, HeadKind, HeadOutput
from infra.errors import BadSetting

SHIPPED = (
    "ccl",
    "clip",
    "demo",
    "dinov3",
    "lite",
    "mixeddiff",
    "paper",
    "paper-tf",
    "resnet50-ibn",
    "strong",
    "tracks",
    "unlabelled",
)
# Hinton's value (Coursera lecture 6e), with his rate of 1e-3. torch's 0.99 makes the first step three times
# as large, which can permanently silence most units of a fresh dense layer.
RMSPROP_ALPHA = 0.9

# A micro_batch of fewer sets could leave a pass with one, which has no negatives.
MIN_SETS = 3

# As a recipe's `pretrained`: the published weights of its architecture.
IMAGENET = "imagenet"

# A field's name in the first release -> its attribute. Cards keep the old names, so that the identity of a
# training does not depend on the version that started it.
_FIELDS = {
    "backbone": "pretrained",
    "network": "backbone",
    "normalised": "l2_normalized",
    "flip": "horizontal_flip",
    "erase": "random_erasing",
    "colour": "color_jitter",
    "ema": "ema_decay",
    "clip": "max_grad_norm",
}
_CARD_NAMES = {attribute: name for name, attribute in _FIELDS.items()}


def _number(value: Any) -> Any:
    """Read text as a number where it is one: YAML 1.1 reads 1e-3 as text, because it has no point."""
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


Real = Annotated[float, BeforeValidator(_number)]


class _Fields(BaseModel):
    """Fields that are checked, closed and cannot change."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def card_values(self, optional: frozenset[str]) -> dict[str, Any]:
        """Return the values by their names in cards, without optional fields that have their default."""
        return {
            _CARD_NAMES.get(name, name): getattr(self, name)
            for name, field in type(self).model_fields.items()
            if name not in optional or getattr(self, name) != field.default
        }


class Stage(_Fields):
    """One training stage. Defaults are ours; the paper's values are in recipes/paper.yaml.

    The fields from `label_smoothing` on are not part of the paper: at their defaults they change nothing, and
    each works without the others.
    """

    name: str = Field(min_length=1)
    """Name of the stage in overrides, displays and errors."""
    epochs: int = Field(ge=0)
    """Passes over the training images."""
    optimizer: Literal["rmsprop", "sgd", "adamw"]
    """The optimizer; each stage starts a fresh one."""
    lr: Real = Field(gt=0)
    """The learning rate; under a schedule, its highest value."""
    layer_decay: Real = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate of each layer of the backbone, once for each layer above it: below 1,
    pretrained layers near the input change least (Clark et al., "ELECTRA", 2020)."""
    trainable: Literal["head", "top", "all", "fusion"] = "all"
    """Which weights learn: 'head' freezes the backbone with its pool and batch statistics, 'top' the batch
    statistics and the backbone below its last reduction, 'fusion' also the branches of a mixed head."""
    momentum: Real = Field(default=0.0, ge=0, le=0.9999)
    """Momentum of the optimizer."""
    weight_decay: Real = Field(default=0.0, ge=0)
    """L2 penalty on all weights that learn. 'adamw' decays the weights themselves, but no bias or scale."""
    frozen_statistics: bool = False
    """Keep the batch statistics while all layers learn, for batches too small to estimate them."""
    horizontal_flip: bool = False
    """Mirror each training image with probability 1/2."""
    micro_batch: int = Field(default=0, ge=0)
    """Images a forward pass; the gradient is still that of the whole batch. 0: the whole batch at once. Under
    coupled clusters a pass takes whole sets, and its negatives are of that pass."""
    cache_features: bool = True
    """Compute a frozen backbone's outputs once instead of every epoch; only without augmentation."""
    label_smoothing: Real = Field(default=0.0, ge=0, le=0.9)
    """Share of each label that is spread evenly over all classes (Szegedy et al. 2015, section 7)."""
    random_erasing: Real = Field(default=0.0, ge=0, le=1)
    """Probability that a rectangle of a training image becomes grey (Zhong et al. 2017)."""
    color_jitter: Real = Field(default=0.0, ge=0, le=0.9)
    """Largest relative change of brightness, contrast and saturation."""
    blur: Real = Field(default=0.0, ge=0, le=1)
    """Probability that a training image is blurred, by up to 2 pixels of 299."""
    sampling: Literal["plain", "balanced", "vehicles"] = "plain"
    """'balanced': an epoch of the same length shows every class equally often. 'vehicles': a batch is
    `batch / images_per_vehicle` vehicles with `images_per_vehicle` images each."""
    schedule: Literal["constant", "cosine"] = "constant"
    """'cosine': the learning rate falls to zero over the stage along half a cosine."""
    warmup_epochs: Real = Field(default=0.0, ge=0)
    """Epochs over which the learning rate rises linearly from zero."""
    ema_decay: Real = Field(default=0.0, ge=0, le=0.99999)
    """Decay of the moving average of the weights that becomes the stage's result. 0: no average."""
    max_grad_norm: Real = Field(default=0.0, ge=0)
    """Norm over all weights to which longer gradients are clipped. 0: no clipping."""
    loss: Literal["softmax", "clusters", "softmax+clusters"] = "softmax"
    """'softmax' over the vehicle models, coupled 'clusters' of vehicles (Liu et al. 2016), or their sum."""
    clusters_weight: Real = Field(default=1.0, gt=0)
    """Factor on the coupled clusters loss."""
    margin: Real = Field(default=1.0, gt=0)
    """Margin of the coupled clusters loss, in squared L2 distance of features."""
    center: Center = "constant"
    """Whether the gradient of the coupled clusters loss is 'differentiated' through a vehicle's center."""
    negatives: Negatives = "any"
    """Images of which other vehicles the coupled clusters loss pushes away: 'any'; 'same_model', which puts
    vehicles of one model into a batch together; 'other_model'; or 'proven', of tracks that cannot show the
    same vehicle, which puts tracks of about the same time into a batch. The two by model need its labels."""
    clusters_on: Literal["feature", "vehicle_branch"] = "feature"
    """Which vectors of a mixed head form clusters."""
    images_per_vehicle: int = Field(default=5, ge=2)
    """Images of a vehicle in a batch, under sampling 'vehicles'; a vehicle with fewer repeats some."""

    attributes_weight: Real = Field(default=0.0, ge=0)
    """Factor on the gradient that goes on from the classifiers of attributes to the backbone. At 0 they learn
    too, and the feature is that of a training without them."""

    @property
    def uses_softmax(self) -> bool:
        """Whether the loss needs vehicle models."""
        return self.loss != "clusters"

    @property
    def uses_clusters(self) -> bool:
        """Whether the loss needs vehicles."""
        return self.loss != "softmax"

    @property
    def uses_models(self) -> bool:
        """Whether the stage needs vehicle models: for its loss, or to choose negatives."""
        return self.uses_softmax or self.negatives in ("same_model", "other_model")

    @property
    def set_size(self) -> int:
        """Images in sequence that stay in one batch, one pass and on one worker."""
        return self.images_per_vehicle if self.sampling == "vehicles" else 1

    @property
    def output(self) -> HeadOutput:
        """The vector of a mixed head that the stage trains and that is compared after it."""
        return self.clusters_on if self.uses_clusters else "model_branch"

    @property
    def augments(self) -> bool:
        """Whether the images of two epochs differ."""
        return self.horizontal_flip or self.random_erasing > 0 or self.color_jitter > 0 or self.blur > 0

    @property
    def cacheable(self) -> bool:
        """Whether the outputs of the backbone and its pool stay the same throughout the stage."""
        return self.cache_features and self.trainable not in ("all", "top") and not self.augments


class Recipe(_Fields):
    """All settings of a training except the data and the machines."""

    name: str = Field(min_length=1)
    """The recipe's name in the card."""
    # A list from a file is no tuple, but each stage in it is checked strictly.
    stages: tuple[Stage, ...] = Field(strict=False)
    """The stages, in the order in which they run."""
    pretrained: str = Field(default=imagenet_weights(DEFAULT_BACKBONE), min_length=1)
    """First weights of the backbone: a file, hf:owner/name, `random`, or `imagenet`, the published ones."""
    reestimate_statistics: int = Field(default=0, ge=0)
    """Number of training images that re-estimate the backbone's batch statistics; 0 keeps the statistics."""
    batch: int = Field(default=100, ge=1)
    """Images an optimizer step, over all workers."""
    image_size: int = input_size(DEFAULT_BACKBONE)
    """Height and width of the network's input; by default those of its architecture."""
    train_share: Real = Field(default=0.8, gt=0, le=1)
    """Share of each class that is trained on; the rest is for validation."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Decides first weights, split, order and augmentation."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """'bf16': mixed precision, the weights stay in float32."""
    feature_dim: int = Field(default=FEATURE_DIM, ge=1)
    """Length of the feature."""
    feature_relu: bool = True
    """A ReLU after the dense layer."""
    pool_counts_padding: bool = True
    """Whether Inception-V3's average pools count their border: true for torchvision's weights."""
    backbone: str = DEFAULT_BACKBONE
    """The architecture, `network` in files: a name in `backbones.BACKBONES`, or timm:NAME."""
    pooling: Pooling = "mean"
    """How the last map becomes a vector; 'gem' learns its exponent with the backbone."""
    last_stride: Literal[1, 2] = 2
    """Stride of the backbone's last reduction; 1 keeps maps twice as fine, at more cost. Not for timm."""
    bnneck: bool = False
    """Batch normalization between dense layer and classifier; its output is the feature."""
    l2_normalized: bool = False
    """The feature is divided by its length, so that L2 ranks as the cosine does."""
    classifier: Literal["dense", "cosine"] = "dense"
    """'cosine': classes are told apart by the direction of the feature alone."""
    cosine_scale: Real = Field(default=16.0, gt=0)
    """Factor on a cosine classifier's cosines, before the softmax."""
    identity: Literal["vehicle", "track"] = "vehicle"
    """What the images of a set share: a vehicle, by labels, or a camera's track of one, which needs none."""
    attributes: Literal["auto"] | bool = "auto"
    """Whether linear classifiers beside the feature learn color and body type; 'auto': those that have labels
    of two values or more."""
    head: HeadKind = "single"
    """'mixed': a branch of model labels and one of vehicle labels, with two layers behind both."""
    branch_dim: int = Field(default=BRANCH_DIM, ge=1)
    """Length of each branch of a mixed head."""
    fusion_dim: int = Field(default=BRANCH_DIM, ge=1)
    """Length of the first layer behind both branches; the second has `feature_dim`."""

    @property
    def has_classifier(self) -> bool:
        """Whether a stage learns to name vehicle models."""
        return any(stage.uses_softmax for stage in self.stages)

    @property
    def uses_vehicles(self) -> bool:
        """Whether a stage learns from sets of images of one vehicle, by `identity`."""
        return any(stage.uses_clusters or stage.sampling == "vehicles" for stage in self.stages)

    @property
    def uses_tracks(self) -> bool:
        """Whether a stage learns from tracks, which the archive states without labels."""
        return self.uses_vehicles and self.identity == "track"

    @property
    def labels_used(self) -> Literal["model", "vehicle", "both", "none"]:
        """The labels that the stages learn from; tracks are none."""
        uses_models = any(stage.uses_models for stage in self.stages)
        if self.uses_tracks:
            return "model" if uses_models else "none"
        if not self.uses_vehicles:
            return "model"
        return "both" if uses_models else "vehicle"

    @property
    def uses_journeys(self) -> bool:
        """Whether a stage separates tracks that cannot show one vehicle: they need cameras and times."""
        return any(stage.uses_clusters and stage.negatives == "proven" for stage in self.stages)

    def architecture(self, classes: int, attributes: Values | None = None) -> Architecture:
        """Return the network's architecture for that number of vehicle models, which clusters do not need.

        attributes: the values of the attributes that it learns.
        """
        classes = classes if self.has_classifier else 0
        return Architecture(
            classes,
            self.feature_dim,
            self.feature_relu,
            self.pool_counts_padding,
            backbone=self.backbone,
            pooling=self.pooling,
            last_stride=self.last_stride,
            bnneck=self.bnneck,
            l2_normalized=self.l2_normalized,
            classifier=self.classifier,
            cosine_scale=self.cosine_scale,
            head=self.head,
            branch_dim=self.branch_dim,
            fusion_dim=self.fusion_dim,
            input_size=0 if self.image_size == input_size(self.backbone) else self.image_size,
            attributes=dict(attributes or {}),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for the card and for the identity of a training.

        Fields newer than the first release are left out at their defaults, so that a training keeps the
        identity under which an older version started it.
        """
        stages = tuple(stage.card_values(_OPTIONAL_STAGE_FIELDS) for stage in self.stages)
        return {**self.card_values(_OPTIONAL_FIELDS), "stages": stages}

    def undocumented_choices(self) -> dict[str, Any]:
        """Return the choices that the paper leaves open, by their names in the card."""
        return {
            "feature_relu": self.feature_relu,
            "momentum": {stage.name: stage.momentum for stage in self.stages},
            "weight_decay": {stage.name: stage.weight_decay for stage in self.stages},
            "flip": {stage.name: stage.horizontal_flip for stage in self.stages},
            "frozen_statistics": {stage.name: stage.frozen_statistics for stage in self.stages},
            "precision": self.precision,
            "dropout": "0.5 after fc6 while it learns" if self.backbone == "vgg_m" else 0.0,
            "auxiliary_head": False,
            "l2_normalised": self.l2_normalized,
            "frozen_stage_batch_statistics": (
                f"of {self.reestimate_statistics} training pictures"
                if self.reestimate_statistics
                else "those of the pretrained weights"
            ),
            "rmsprop_alpha": RMSPROP_ALPHA,
            "last_batch": "left out of an epoch unless it is whole",
        }


_OPTIONAL_FIELDS = frozenset(
    (
        "backbone",
        "pooling",
        "last_stride",
        "bnneck",
        "l2_normalized",
        "classifier",
        "cosine_scale",
        "identity",
        "attributes",
        "head",
        "branch_dim",
        "fusion_dim",
    )
)
_OPTIONAL_STAGE_FIELDS = frozenset(
    (
        "layer_decay",
        "label_smoothing",
        "random_erasing",
        "color_jitter",
        "blur",
        "sampling",
        "schedule",
        "warmup_epochs",
        "ema_decay",
        "max_grad_norm",
        "loss",
        "clusters_weight",
        "margin",
        "center",
        "negatives",
        "clusters_on",
        "images_per_vehicle",
        "attributes_weight",
    )
)


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe (see `SHIPPED`) or a YAML file, and apply overrides.

    An override is 'batch=32' or 'stage2.epochs=5'. A stage is called stage1, stage2, ... or by its name.
    Raises BadSetting naming the field.
    """
    if name_or_path in SHIPPED:
        text = resources.files("clvr_model").joinpath("recipes", f"{name_or_path}.yaml").read_text("utf-8")
    else:
        try:
            text = Path(name_or_path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadSetting(
                f"no recipe {name_or_path!r}", remedy=f"name one of {', '.join(SHIPPED)}, or a YAML file"
            ) from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadSetting(f"{name_or_path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise BadSetting(f"{name_or_path} is not a recipe", remedy="it holds name, stages and other fields")
    for override in overrides:
        _override(values, override)
    return recipe_of(values)


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """Make a recipe from plain values, such as a card's. Raises BadSetting naming the field."""
    stages = values.get("stages")
    if not isinstance(stages, list | tuple) or not stages:
        raise BadSetting("stages is missing or empty", remedy="a recipe lists one stage or more")
    tables = [_by_attribute(stage, f"stage{number}.") for number, stage in enumerate(stages, 1)]
    try:
        recipe = Recipe.model_validate(_with_image_size(_by_attribute({**values, "stages": tables}, "")))
    except ValidationError as error:
        raise _named_as_written(error, values) from error
    _check_together(recipe)
    if recipe.pretrained == IMAGENET:
        return recipe.model_copy(update={"pretrained": imagenet_weights(recipe.backbone)})
    return recipe


def _with_image_size(values: dict[str, Any]) -> dict[str, Any]:
    """Add the image size of the backbone to a recipe that states none."""
    with suppress(BadSetting, TypeError):  # of an unknown backbone, which `_check_together` names
        backbone = values.get("backbone", DEFAULT_BACKBONE)
        check_backbone(backbone)
        return {"image_size": input_size(backbone), **values}
    return values


def _check_together(recipe: Recipe) -> None:
    """Raise BadSetting for fields that do not go together."""
    if len({stage.name for stage in recipe.stages}) < len(recipe.stages):
        raise BadSetting("stages: two have the same name")
    try:
        check_backbone(recipe.backbone)
    except BadSetting as error:
        raise BadSetting(f"network: {error.message}", remedy=error.remedy) from error
    check_last_stride(recipe.backbone, recipe.last_stride)
    check_pooling(recipe.backbone, recipe.pooling)
    check_size(recipe.backbone, recipe.image_size)
    if recipe.pretrained in BACKBONES or is_timm(recipe.pretrained):
        raise BadSetting(
            f"pretrained (or backbone) is {recipe.pretrained}, an architecture and no source of weights",
            remedy=f"set network={recipe.pretrained}; a file of that name is ./{recipe.pretrained}",
        )
    others = {
        backbone.imagenet_weights
        for name, backbone in BACKBONES.items()
        if name != recipe.backbone and backbone.imagenet_weights
    }
    if recipe.pretrained in others:
        raise BadSetting(
            f"pretrained is {recipe.pretrained}, weights of another network than {recipe.backbone}",
            remedy="give its own weights, or the word imagenet",
        )
    for number, stage in enumerate(recipe.stages, 1):
        if stage.warmup_epochs > stage.epochs > 0:
            raise BadSetting(
                f"stage{number}.warmup_epochs is {stage.warmup_epochs}",
                remedy=f"the stage has {stage.epochs} epochs",
            )
        if stage.trainable == "top" and not has_top(recipe.backbone):
            raise BadSetting(
                f"stage{number}.trainable is 'top', and {recipe.backbone} is not divided",
                remedy=f"set stage{number}.trainable=all, or head",
            )
        if stage.layer_decay < 1 and stage.trainable not in ("all", "top"):
            raise BadSetting(
                f"stage{number}.layer_decay is {stage.layer_decay}, and the backbone is frozen",
                remedy=f"set stage{number}.trainable=all, or leave layer_decay at 1",
            )
        _check_clusters(recipe, stage, f"stage{number}")
        if recipe.identity == "track" and stage.uses_clusters and stage.negatives in ("any", "same_model"):
            raise BadSetting(
                f"stage{number}.negatives is {stage.negatives!r}, and two tracks may show one vehicle",
                remedy=f"set stage{number}.negatives=other_model, or proven",
            )
        if stage.negatives == "proven" and recipe.identity != "track":
            raise BadSetting(
                f"stage{number}.negatives is 'proven', which compares the times of tracks",
                remedy="set identity=track",
            )
    if recipe.head == "mixed" and not recipe.has_classifier:
        raise BadSetting(
            "head is 'mixed', and no stage has a softmax over vehicle models",
            remedy="set stage1.loss=softmax, or head=single",
        )


def _check_clusters(recipe: Recipe, stage: Stage, name: str) -> None:
    """Raise BadSetting for batches that do not hold whole sets, and for parts that the head does not have."""
    size = stage.images_per_vehicle
    if stage.uses_clusters and stage.sampling != "vehicles":
        raise BadSetting(
            f"{name}.sampling is {stage.sampling!r}, and coupled clusters need several images of a vehicle",
            remedy=f"set {name}.sampling=vehicles",
        )
    if stage.negatives != "any" and not stage.uses_clusters:
        raise BadSetting(
            f"{name}.negatives is {stage.negatives!r}, and its loss compares no vehicles",
            remedy=f"set {name}.loss=clusters",
        )
    if stage.sampling == "vehicles" and (recipe.batch % size or recipe.batch < 2 * size):
        raise BadSetting(
            f"batch is {recipe.batch}, and {name} takes sets of {size} images",
            remedy=f"set batch={size * max(2, recipe.batch // size)}",
        )
    if stage.sampling == "vehicles" and 0 < stage.micro_batch < min(MIN_SETS * size, recipe.batch):
        raise BadSetting(
            f"{name}.micro_batch is {stage.micro_batch}, and a pass needs {MIN_SETS} sets of {size} images",
            remedy=f"set {name}.micro_batch={MIN_SETS * size}, or 0",
        )
    for field, is_mixed in (
        ("clusters_on", stage.clusters_on != "feature"),
        ("trainable", stage.trainable == "fusion"),
    ):
        if is_mixed and recipe.head != "mixed":
            raise BadSetting(
                f"{name}.{field} is {getattr(stage, field)!r}, which the single head does not have",
                remedy="set head=mixed",
            )
    if stage.trainable == "fusion" and stage.output != "feature":
        raise BadSetting(
            f"{name}.trainable is 'fusion', and its loss does not reach these layers",
            remedy=f"set {name}.loss=clusters and {name}.clusters_on=feature",
        )


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise BadSetting(f"{override!r} is not an override", remedy="write field=value, e.g. stage2.epochs=5")
    *scope, name = path.strip().split(".")
    target: dict[str, Any] = values
    if scope:
        stages = [stage for stage in values.get("stages") or [] if isinstance(stage, dict)]
        named = {f"stage{number}": stage for number, stage in enumerate(stages, 1)}
        named |= {str(stage.get("name")): stage for stage in stages}
        if len(scope) > 1 or scope[0] not in named:
            raise BadSetting(f"{path}: no such stage", remedy=f"choose one of {', '.join(named)}")
        target = named[scope[0]]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadSetting(f"{path}: {text!r} is not a value") from error
    for other_spelling in [key for key in target if _attribute(key) == _attribute(name)]:
        del target[other_spelling]
    target[name] = value


def _attribute(name: Any) -> Any:
    return _FIELDS.get(name, name) if isinstance(name, str) else name


def _by_attribute(values: Any, scope: str) -> Any:
    """Rename a table's keys to the attributes that they mean. Anything but a table stays as it is."""
    if not isinstance(values, Mapping):
        return values
    renamed: dict[Any, Any] = {}
    for name, value in values.items():
        if _attribute(name) in renamed:
            first = next(other for other in values if _attribute(other) == _attribute(name))
            raise BadSetting(
                f"{scope}{first} and {scope}{name} are the same field", remedy="give one of them"
            )
        renamed[_attribute(name)] = value
    return renamed


def _named_as_written(error: ValidationError, values: Mapping[str, Any]) -> BadSetting:
    """Describe the first error with the field's name as the file or the override has it."""
    path: list[str] = []
    model: type[_Fields] = Recipe
    table, location = values, error.errors()[0]["loc"]
    if location[0] == "stages" and len(location) > 1:
        index = int(location[1])
        path.append(f"stage{index + 1}")
        model, table, location = Stage, values["stages"][index], location[2:]
    if location:
        written = (str(name) for name in table if _attribute(name) == location[0])
        path.append(next(written, str(location[0])))
    known = ["network" if name == "backbone" else name for name in model.model_fields]
    return to_bad_setting(error, ".".join(path), known)
