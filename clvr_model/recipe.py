"""The paper's two training stages as data, and other recipes in the same form.

A recipe is a YAML file; `stage2.epochs=5`, `target.lr=0.01` or `batch=32` change it from outside. What is
wrong is refused with the field's name and what it may be.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from clvr_model.backbones import IMAGENET_WEIGHTS, INCEPTION, check_backbone, imagenet_weights
from clvr_model.network import FEATURE_DIM, Architecture
from clvr_model.preprocessing import IMAGE_SIZE
from clvr_model.timm_backbone import TIMM_PREFIX
from infra.errors import BadSetting

SHIPPED = ("demo", "paper", "strong")
# Hinton's own (Coursera lecture 6e), with his rate of 1e-3. torch's 0.99 makes the first step three times as
# large, which can silence most units of a fresh dense layer for good.
RMSPROP_ALPHA = 0.9

# As a recipe's `backbone`: the published weights of its network.
IMAGENET = "imagenet"

_T = TypeVar("_T", "Stage", "Recipe")


@dataclass(frozen=True, slots=True)
class Stage:
    """One training stage. Defaults are ours; the paper's values stand in recipes/paper.yaml.

    The line after a field says what it does. The fields from `label_smoothing` on are no part of the paper:
    at their defaults they change nothing, and each works without the others.
    """

    name: str
    """What overrides, displays and errors call the stage."""
    epochs: int
    """Passes over the training pictures."""
    optimizer: Literal["rmsprop", "sgd"]
    """The optimiser; each stage starts a fresh one."""
    lr: float
    """The learning rate; under a schedule, its highest value."""
    trainable: Literal["head", "all"] = "all"
    """What learns: 'head' freezes the backbone, its batch statistics and its pool included."""
    momentum: float = 0.0
    """Momentum of the optimiser."""
    weight_decay: float = 0.0
    """L2 penalty on all weights that learn."""
    frozen_statistics: bool = False
    """Keep the batch statistics while all layers learn, for batches too small to estimate them."""
    flip: bool = False
    """Mirror each training picture with probability 1/2."""
    micro_batch: int = 0
    """Pictures a forward pass; the gradient is still that of the whole batch. 0: the whole batch at once."""
    cache_features: bool = True
    """Compute a frozen backbone's outputs once instead of every epoch; only without augmentation."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes (Szegedy et al. 2015, section 7)."""
    erase: float = 0.0
    """Probability that a rectangle of a training picture becomes grey (Zhong et al. 2017)."""
    colour: float = 0.0
    """Brightness, contrast and saturation are each changed by a factor of up to 1 +- this."""
    blur: float = 0.0
    """Probability that a training picture is blurred, by up to 2 pixels of 299."""
    sampling: Literal["plain", "balanced"] = "plain"
    """'balanced': every class is seen equally often in an epoch, which keeps its length."""
    schedule: Literal["constant", "cosine"] = "constant"
    """'cosine': the learning rate falls to zero over the stage along half a cosine."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises from zero, in a straight line."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is what is kept. 0: the last weights are."""
    clip: float = 0.0
    """Longest gradient, over all weights together; longer ones are shortened to it. 0: no limit."""

    @property
    def augments(self) -> bool:
        """Whether the pictures of two epochs differ."""
        return self.flip or self.erase > 0 or self.colour > 0 or self.blur > 0

    @property
    def cacheable(self) -> bool:
        """Whether the backbone's outputs, a learnt pool's too, stay the same throughout the stage."""
        return self.cache_features and self.trainable == "head" and not self.augments


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a training, but the data and the machines. The line after a field explains it."""

    name: str
    """What the card calls it."""
    stages: tuple[Stage, ...]
    """The stages, in the order in which they run."""
    backbone: str = IMAGENET_WEIGHTS[INCEPTION]
    """First weights of the backbone: a file, hf:owner/name, `random`, or `imagenet`, the published ones."""
    reestimate_statistics: int = 0
    """From how many training pictures the backbone's batch statistics are estimated anew; 0 keeps them."""
    batch: int = 100
    """Pictures an optimiser step, over all workers."""
    image_size: int = IMAGE_SIZE
    """Height and width of the network's input; one size is built."""
    train_share: float = 0.8
    """Share of each class that is trained on; the rest measures."""
    seed: int = 0
    """Decides first weights, split, order and augmentation."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """'bf16': mixed precision, the weights stay in float32."""
    feature_dim: int = FEATURE_DIM
    """Length of the feature."""
    feature_relu: bool = True
    """A ReLU after the dense layer."""
    pool_counts_padding: bool = True
    """Whether Inception-V3's average pools count their border: true for torchvision's weights."""
    network: str = INCEPTION
    """The backbone: inception_v3, resnet50, vgg16, or timm:NAME where timm is installed."""
    pooling: Literal["mean", "gem"] = "mean"
    """How the last map becomes a vector; 'gem' learns its exponent with the backbone."""
    last_stride: int = 2
    """Stride of the backbone's last reduction; 1 keeps maps twice as fine, at more cost. Not for timm's."""
    bnneck: bool = False
    """Batch normalisation between dense layer and classifier; the feature is what comes after it."""
    normalised: bool = False
    """The feature is divided by its length, so that L2 ranks as the cosine does."""
    classifier: Literal["dense", "cosine"] = "dense"
    """'cosine': classes are told apart by the direction of the feature alone."""
    cosine_scale: float = 16.0
    """What a cosine classifier's cosines are multiplied by, before the softmax."""

    def architecture(self, classes: int) -> Architecture:
        """The network that this recipe trains for that many vehicle models."""
        return Architecture(
            classes,
            self.feature_dim,
            self.feature_relu,
            self.pool_counts_padding,
            backbone=self.network,
            pooling=self.pooling,
            last_stride=self.last_stride,
            bnneck=self.bnneck,
            normalised=self.normalised,
            classifier=self.classifier,
            cosine_scale=self.cosine_scale,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the card and for the identity of a training.

        Fields that came after the first release are left out at their defaults: what was begun before them
        is still known as the same training.
        """
        stages = tuple(_stated(stage, _LATER_OF_STAGES) for stage in self.stages)
        return {**_stated(self, _LATER), "stages": stages}

    def unstated(self) -> dict[str, Any]:
        """The choices that the paper leaves open, for the card."""
        return {
            "feature_relu": self.feature_relu,
            "momentum": {stage.name: stage.momentum for stage in self.stages},
            "weight_decay": {stage.name: stage.weight_decay for stage in self.stages},
            "flip": {stage.name: stage.flip for stage in self.stages},
            "frozen_statistics": {stage.name: stage.frozen_statistics for stage in self.stages},
            "precision": self.precision,
            "dropout": 0.0,
            "auxiliary_head": False,
            "l2_normalised": self.normalised,
            "frozen_stage_batch_statistics": (
                f"of {self.reestimate_statistics} training pictures"
                if self.reestimate_statistics
                else "those of the pretrained weights"
            ),
            "rmsprop_alpha": RMSPROP_ALPHA,
            "last_batch": "left out of an epoch unless it is whole",
        }


_LATER = frozenset(
    ("network", "pooling", "last_stride", "bnneck", "normalised", "classifier", "cosine_scale")
)
_LATER_OF_STAGES = frozenset(
    (
        "label_smoothing",
        "erase",
        "colour",
        "blur",
        "sampling",
        "schedule",
        "warmup_epochs",
        "ema",
        "clip",
    )
)


def _stated(owner: "Stage | Recipe", later: frozenset[str]) -> dict[str, Any]:
    values = {entry.name: (getattr(owner, entry.name), entry.default) for entry in fields(owner)}
    return {name: value for name, (value, default) in values.items() if name not in later or value != default}


@dataclass(frozen=True, slots=True)
class _Range:
    low: float
    high: float = float("inf")
    excluded: bool = False  # whether `low` itself is out

    def __contains__(self, value: float) -> bool:
        return self.low < value <= self.high if self.excluded else self.low <= value <= self.high

    def __str__(self) -> str:
        lower = f"above {self.low:g}" if self.excluded else f"at least {self.low:g}"
        return lower if self.high == float("inf") else f"{lower} and at most {self.high:g}"


_RANGES = {
    "epochs": _Range(0),
    "lr": _Range(0, excluded=True),
    "momentum": _Range(0, 0.9999),
    "weight_decay": _Range(0),
    "micro_batch": _Range(0),
    "batch": _Range(1),
    "reestimate_statistics": _Range(0),
    "image_size": _Range(IMAGE_SIZE, IMAGE_SIZE),
    "train_share": _Range(0, 1, excluded=True),
    "seed": _Range(0, 2**63 - 1),
    "feature_dim": _Range(1),
    "last_stride": _Range(1, 2),
    "cosine_scale": _Range(0, excluded=True),
    "label_smoothing": _Range(0, 0.9),
    "erase": _Range(0, 1),
    "colour": _Range(0, 0.9),
    "blur": _Range(0, 1),
    "warmup_epochs": _Range(0),
    "ema": _Range(0, 0.99999),
    "clip": _Range(0),
}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe ('paper', 'strong', 'demo') or a YAML file, changed by overrides.

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
    """A recipe of plain values, checked field by field. Raises BadSetting naming the field."""
    stages = values.get("stages")
    if not isinstance(stages, list | tuple) or not stages:
        raise BadSetting("stages is missing or empty", remedy="a recipe lists one stage or more")
    built = tuple(_build(Stage, stage, f"stage{number}.") for number, stage in enumerate(stages, 1))
    if len({stage.name for stage in built}) < len(built):
        raise BadSetting("stages: two have the same name")
    recipe = _build(Recipe, {**values, "stages": built}, "")
    _check_together(recipe)
    return (
        recipe if recipe.backbone != IMAGENET else replace(recipe, backbone=imagenet_weights(recipe.network))
    )


def _check_together(recipe: Recipe) -> None:
    """Raise BadSetting for fields that do not go together."""
    try:
        check_backbone(recipe.network)
    except BadSetting as error:
        raise BadSetting(f"network: {error.message}", remedy=error.remedy) from error
    if recipe.network.startswith(TIMM_PREFIX) and recipe.last_stride != 2:
        raise BadSetting(f"last_stride is {recipe.last_stride}, which {recipe.network} cannot take")
    others = {where for name, where in IMAGENET_WEIGHTS.items() if name != recipe.network}
    if recipe.backbone in others:
        raise BadSetting(
            f"backbone is {recipe.backbone}, weights of another network than {recipe.network}",
            remedy="give its own weights, or the word imagenet",
        )
    for number, stage in enumerate(recipe.stages, 1):
        if stage.warmup_epochs > stage.epochs > 0:
            raise BadSetting(
                f"stage{number}.warmup_epochs is {stage.warmup_epochs}",
                remedy=f"the stage has {stage.epochs} epochs",
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
        target[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadSetting(f"{path}: {text!r} is not a value") from error


def _build(kind: type[_T], values: Any, scope: str) -> _T:
    if not isinstance(values, Mapping):
        raise BadSetting(f"{scope.rstrip('.')} is not a table of fields")
    known = {entry.name: entry for entry in fields(kind)}
    unknown = sorted(str(name) for name in values.keys() - known.keys())
    if unknown:
        raise BadSetting(f"{scope}{unknown[0]} is no field", remedy=f"the fields are {', '.join(known)}")
    for name, entry in known.items():
        if name not in values and entry.default is MISSING:
            raise BadSetting(f"{scope}{name} is missing")
    checked = {
        name: value if name == "stages" else _checked(f"{scope}{name}", name, known[name].type, value)
        for name, value in values.items()
    }
    return kind(**checked)


def _checked(path: str, name: str, kind: Any, value: Any) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise BadSetting(f"{path} is {value!r}", remedy=f"choose one of {', '.join(get_args(kind))}")
        return value
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 as text, because it has no point.
        with suppress(ValueError):
            value = float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (kind is str and not value):
        raise BadSetting(f"{path} is {value!r}", remedy=f"give a value of type {kind.__name__}")
    allowed = _RANGES.get(name)
    if allowed is not None and value not in allowed:
        raise BadSetting(f"{path} is {value!r}", remedy=f"it must be {allowed}")
    return value
