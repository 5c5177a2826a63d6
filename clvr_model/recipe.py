"""The paper's two training stages as data, and other recipes in the same form.

A recipe is a YAML file; `stage2.epochs=5`, `target.lr=0.01` or `batch=32` change it from outside. What is
wrong is refused with the field's name and what it may be.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from clvr_model.network import FEATURE_DIM, Architecture
from clvr_model.preprocessing import IMAGE_SIZE
from infra.errors import BadSetting

SHIPPED = ("demo", "paper")
# Hinton's own (Coursera lecture 6e), with his rate of 1e-3. torch's 0.99 makes the first step three times as
# large, which can silence most units of a fresh dense layer for good.
RMSPROP_ALPHA = 0.9

_T = TypeVar("_T", "Stage", "Recipe")


@dataclass(frozen=True, slots=True)
class Stage:
    """One training stage. Defaults are ours; the paper's values stand in recipes/paper.yaml."""

    name: str
    epochs: int
    optimizer: Literal["rmsprop", "sgd"]
    lr: float
    # 'head' freezes the backbone, its batch statistics included.
    trainable: Literal["head", "all"] = "all"
    momentum: float = 0.0
    weight_decay: float = 0.0
    # Keep the batch statistics as they are while all layers learn, for batches too small to estimate them.
    frozen_statistics: bool = False
    # Mirror each training picture with probability 1/2.
    flip: bool = False
    # Pictures a forward pass; the gradient is still that of the whole batch. 0: the whole batch at once.
    micro_batch: int = 0
    # Compute a frozen backbone's outputs once instead of every epoch; same result, needs flip: false.
    cache_features: bool = True

    @property
    def cacheable(self) -> bool:
        """Whether the backbone's outputs stay the same throughout the stage and may be kept."""
        return self.cache_features and self.trainable == "head" and not self.flip


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a training, but the data and the machines."""

    name: str
    stages: tuple[Stage, ...]
    # As weights.load_backbone takes it.
    backbone: str = "hf:timm/inception_v3.tv_in1k"
    # From how many training pictures the backbone's batch statistics are estimated anew; 0 keeps them.
    reestimate_statistics: int = 0
    # Pictures an optimiser step, over all workers.
    batch: int = 100
    image_size: int = IMAGE_SIZE
    # Share of each class that is trained on; the rest measures.
    train_share: float = 0.8
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    feature_dim: int = FEATURE_DIM
    feature_relu: bool = True
    pool_counts_padding: bool = True

    def architecture(self, classes: int) -> Architecture:
        """The network that this recipe trains for that many vehicle models."""
        return Architecture(classes, self.feature_dim, self.feature_relu, self.pool_counts_padding)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the card."""
        return asdict(self)

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
            "l2_normalised": False,
            "frozen_stage_batch_statistics": (
                f"of {self.reestimate_statistics} training pictures"
                if self.reestimate_statistics
                else "those of the pretrained weights"
            ),
            "rmsprop_alpha": RMSPROP_ALPHA,
        }


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
}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe ('paper', 'demo') or a YAML file, changed by overrides such as 'stage2.epochs=5'.

    A stage is called stage1, stage2, ... or by its name. Raises BadSetting naming the field.
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
    return _build(Recipe, {**values, "stages": built}, "")


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
