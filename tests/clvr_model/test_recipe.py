"""Recipes say what the paper says, and an error names its field."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from clvr_model.recipe import SHIPPED, Recipe, Stage, load_recipe, recipe_of
from infra.errors import BadSetting


def test_the_paper_recipe_has_the_values_of_the_paper() -> None:
    recipe = load_recipe("paper")
    warmup, target = recipe.stages
    assert (warmup.trainable, warmup.epochs, warmup.optimizer, warmup.lr) == ("head", 10, "rmsprop", 1e-3)
    assert (target.trainable, target.epochs, target.optimizer, target.lr) == ("all", 30, "sgd", 1e-4)
    assert (recipe.batch, recipe.image_size, recipe.feature_dim, recipe.train_share) == (100, 299, 1024, 0.8)
    assert target.momentum == recipe.undocumented_choices()["momentum"]["target"] == 0.9


def test_the_paper_recipe_and_its_identity_never_change() -> None:
    """Resuming a training and recognising a checkpoint depend on these values."""
    recipe = load_recipe("paper")
    digest = hashlib.sha256(json.dumps(recipe.as_dict(), sort_keys=True).encode()).hexdigest()
    assert digest == "cc7a3b0a640822891cb037ff6772af77595dd8dbe7094020bbb47ffde4f8c3fe"
    assert recipe.architecture(228).as_dict() == {
        "backbone": "inception_v3",
        "classes": 228,
        "feature_dim": 1024,
        "feature_relu": True,
        "pool_counts_padding": True,
    }
    assert not any(stage.augments for stage in recipe.stages)


SWITCHES = {
    "label_smoothing": "0",
    "sampling": "plain",
    "horizontal_flip": "false",
    "random_erasing": "0",
    "color_jitter": "0",
    "blur": "0",
    "schedule": "constant",
    "warmup_epochs": "0",
    "ema_decay": "0",
    "max_grad_norm": "0",
}
NETWORK_SWITCHES = {
    "pooling": "mean",
    "last_stride": "2",
    "bnneck": "false",
    "l2_normalized": "false",
    "classifier": "dense",
    "feature_relu": "true",
    "precision": "fp32",
}


def test_the_strong_recipe_turns_on_every_switch() -> None:
    strong, target = load_recipe("strong"), load_recipe("strong").stages[1]
    off = load_recipe("strong", [f"target.{name}={value}" for name, value in SWITCHES.items()]).stages[1]
    assert all(getattr(target, name) != getattr(off, name) for name in SWITCHES)
    plain = load_recipe("strong", [f"{name}={value}" for name, value in NETWORK_SWITCHES.items()])
    assert all(getattr(strong, name) != getattr(plain, name) for name in NETWORK_SWITCHES)
    assert plain.architecture(3) == load_recipe("paper").architecture(3)
    assert strong.pretrained == load_recipe("paper").pretrained
    assert strong.stages[0].cacheable


@pytest.mark.parametrize("name", SWITCHES)
def test_each_switch_of_a_stage_can_be_turned_off_alone(name: str) -> None:
    changed = load_recipe("strong", [f"stage2.{name}={SWITCHES[name]}"]).stages[1]
    differing = {
        field
        for field in Stage.model_fields
        if getattr(changed, field) != getattr(load_recipe("strong").stages[1], field)
    }
    assert differing == {name}


@pytest.mark.parametrize("name", NETWORK_SWITCHES)
def test_each_switch_of_the_network_can_be_turned_off_alone(name: str) -> None:
    changed = load_recipe("strong", [f"{name}={NETWORK_SWITCHES[name]}"])
    assert getattr(changed, name) != getattr(load_recipe("strong"), name)
    assert changed.stages == load_recipe("strong").stages
    if name != "precision":
        assert changed.architecture(3).as_dict() != load_recipe("strong").architecture(3).as_dict()


@pytest.mark.parametrize("kind", [Stage, Recipe])
def test_every_field_has_a_description(kind: type[Stage] | type[Recipe]) -> None:
    assert all(field.description for field in kind.model_fields.values())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_survives_yaml(name: str) -> None:
    recipe = load_recipe(name)
    assert (
        recipe_of(
            yaml.safe_load(yaml.safe_dump(recipe.as_dict() | {"stages": list(recipe.as_dict()["stages"])}))
        )
        == recipe
    )


def test_the_demo_needs_no_network() -> None:
    assert load_recipe("demo").pretrained == "random"


def test_overrides_change_fields_of_the_recipe_and_of_stages() -> None:
    recipe = load_recipe(
        "paper", ["stage2.epochs=5", "warmup.lr=1e-4", "batch=32", "target.flip=true", "seed=7"]
    )
    assert recipe.stages[1].epochs == 5
    assert recipe.stages[0].lr == 1e-4
    assert recipe.batch == 32
    assert recipe.stages[1].horizontal_flip is True
    assert recipe.seed == 7


def test_the_word_imagenet_means_the_published_weights_of_the_network() -> None:
    assert load_recipe("paper", ["network=resnet50", "backbone=imagenet"]).pretrained == (
        "hf:timm/resnet50.tv_in1k"
    )
    timm = load_recipe("paper", ["network=timm:resnet18.a1_in1k", "backbone=imagenet"])
    assert timm.pretrained == "hf:timm/resnet18.a1_in1k"
    with pytest.raises(BadSetting, match="last_stride is 1, which timm"):
        load_recipe("paper", ["network=timm:resnet18.a1_in1k", "backbone=imagenet", "last_stride=1"])


PAIRS = {
    "flip": ("horizontal_flip", True),
    "erase": ("random_erasing", 0.25),
    "colour": ("color_jitter", 0.25),
    "ema": ("ema_decay", 0.25),
    "clip": ("max_grad_norm", 0.25),
}


def _file(**changes: Any) -> dict[str, Any]:
    stage = {"name": "a", "epochs": 1, "optimizer": "sgd", "lr": 0.1}
    return {"name": "x", "stages": [{**stage, **changes.pop("stage", {})}], **changes}


@pytest.mark.parametrize(("old", "new", "value"), [(old, *pair) for old, pair in PAIRS.items()])
def test_a_stage_reads_both_spellings_and_its_card_keeps_the_first(old: str, new: str, value: object) -> None:
    recipe = recipe_of(_file(stage={old: value}))
    assert recipe == recipe_of(_file(stage={new: value}))
    assert getattr(recipe.stages[0], new) == value
    assert recipe.as_dict()["stages"][0][old] == value
    assert new not in recipe.as_dict()["stages"][0]


def test_a_recipe_reads_both_spellings_and_its_card_keeps_the_first() -> None:
    old = recipe_of(_file(network="resnet50", backbone="random", normalised=True))
    assert old == recipe_of(_file(network="resnet50", pretrained="random", l2_normalized=True))
    assert (old.backbone, old.pretrained, old.l2_normalized) == ("resnet50", "random", True)
    card = old.as_dict()
    assert (card["network"], card["backbone"], card["normalised"]) == ("resnet50", "random", True)
    assert not card.keys() & {"pretrained", "l2_normalized"}


@pytest.mark.parametrize("name", ["horizontal_flip", "flip"])
def test_an_override_replaces_a_value_in_either_spelling(tmp_path: Path, name: str) -> None:
    assert load_recipe("paper", [f"target.{name}=true"]).stages[1].horizontal_flip is True
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(_file(stage={"flip": False})))
    assert load_recipe(str(path), [f"a.{name}=true"]).stages[0].horizontal_flip is True


@pytest.mark.parametrize("source", ["imagenet", "random", "hf:me/mine", "a/resnet50.pth", "resnet50.pth"])
def test_the_word_backbone_means_the_source_of_the_weights_in_files_and_overrides(source: str) -> None:
    expected = load_recipe("paper").pretrained if source == "imagenet" else source
    assert recipe_of(_file(backbone=source)).pretrained == expected
    assert load_recipe("paper", [f"backbone={source}"]).pretrained == expected
    assert load_recipe("demo", [f"backbone={source}"]).backbone == "inception_v3"


@pytest.mark.parametrize("name", ["resnet50", "inception_v3", "timm:resnet18"])
def test_an_architecture_as_the_source_of_weights_is_refused_with_the_right_field(name: str) -> None:
    for field in ("backbone", "pretrained"):
        with pytest.raises(BadSetting, match="an architecture") as caught:
            load_recipe("paper", [f"{field}={name}"])
        assert f"network={name}" in caught.value.remedy


def test_a_field_given_in_both_spellings_is_refused() -> None:
    with pytest.raises(BadSetting, match=r"stage1\.flip and stage1\.horizontal_flip are the same field"):
        recipe_of(_file(stage={"flip": True, "horizontal_flip": True}))
    with pytest.raises(BadSetting, match="pretrained and backbone are the same field"):
        recipe_of(_file(pretrained="random", backbone="imagenet"))


def test_only_a_frozen_unaugmented_stage_may_keep_features() -> None:
    for change in ("erase=0.1", "colour=0.1", "blur=0.1"):
        assert not load_recipe("paper", [f"warmup.{change}"]).stages[0].cacheable
    for change in ("warmup.label_smoothing=0.1", "warmup.sampling=balanced", "pooling=gem", "bnneck=true"):
        assert load_recipe("paper", [change]).stages[0].cacheable
    assert load_recipe("paper").stages[0].cacheable
    assert not load_recipe("paper").stages[1].cacheable
    assert not load_recipe("paper", ["warmup.flip=true"]).stages[0].cacheable
    assert not load_recipe("paper", ["warmup.cache_features=false"]).stages[0].cacheable


@pytest.mark.parametrize(
    ("override", "field", "remedy"),
    [
        ("stage2.epochs=-1", "stage2.epochs is -1", "greater than or equal to 0"),
        ("stage2.epochs=many", "stage2.epochs is 'many'", "valid integer"),
        ("stage2.epochs=true", "stage2.epochs is True", "valid integer"),
        ("stage1.optimizer=adam", "stage1.optimizer is 'adam'", "'rmsprop', 'sgd' or 'adamw'"),
        ("stage2.epochs=3.5", "stage2.epochs is 3.5", "valid integer"),
        ("stage2.epochs=3.0", "stage2.epochs is 3.0", "valid integer"),
        ("stage1.lr=true", "stage1.lr is True", "valid number"),
        ("stage1.lr=fast", "stage1.lr is 'fast'", "valid number"),
        ("stage1.lr=.inf", "stage1.lr is inf", "finite number"),
        ("stage1.lr=0", "stage1.lr is 0", "greater than 0"),
        ("stage1.lr=.nan", "stage1.lr is nan", "finite number"),
        ("stage1.learning_rate=1", "stage1.learning_rate is no field", "lr"),
        ("stage2.max_grad_nrom=1", "stage2.max_grad_nrom is no field", "did you mean max_grad_norm?"),
        ("stage2.max_grad_norm=-1", "stage2.max_grad_norm is -1", "greater than or equal to 0"),
        ("pretrained=", "pretrained is None", "valid string"),
        ("stage3.epochs=1", "stage3.epochs: no such stage", "stage1, stage2, warmup, target"),
        ("train_share=1.5", "train_share is 1.5", "less than or equal to 1"),
        ("stage2.label_smoothing=1", "stage2.label_smoothing is 1", "less than or equal to 0.9"),
        ("stage2.erase=1.1", "stage2.erase is 1.1", "less than or equal to 1"),
        ("stage2.colour=-0.1", "stage2.colour is -0.1", "greater than or equal to 0"),
        ("stage2.blur=2", "stage2.blur is 2", "less than or equal to 1"),
        ("stage2.sampling=even", "stage2.sampling is 'even'", "'plain', 'balanced' or 'vehicles'"),
        ("stage2.schedule=step", "stage2.schedule is 'step'", "'constant' or 'cosine'"),
        ("stage2.warmup_epochs=31", "stage2.warmup_epochs is 31", "30 epochs"),
        ("stage2.ema=1", "stage2.ema is 1", "less than or equal to 0.99999"),
        ("stage2.clip=-1", "stage2.clip is -1", "greater than or equal to 0"),
        ("pooling=max", "pooling is 'max'", "'mean' or 'gem'"),
        ("last_stride=3", "last_stride is 3", "1 or 2"),
        ("bnneck=1", "bnneck is 1", "valid boolean"),
        ("classifier=arc", "classifier is 'arc'", "'dense' or 'cosine'"),
        ("cosine_scale=0", "cosine_scale is 0", "greater than 0"),
        ("network=resnet51", "network: there is no backbone 'resnet51'", "resnet50"),
        ("network=resnet50", "weights of another network than resnet50", "imagenet"),
        ("image_size=250", "image_size is 250", "299, or a multiple of 16"),
        ("stage1.layer_decay=0.5", "stage1.layer_decay is 0.5", "trainable=all"),
        ("precision=fp16", "precision is 'fp16'", "'fp32' or 'bf16'"),
        ("backbone=", "backbone is None", "valid string"),
        ("batch", "'batch' is not an override", "field=value"),
        ("batch=[1", "is not a value", ""),
        ("name=[1]", "name is [1]", "valid string"),
    ],
)
def test_an_error_names_the_field_and_its_allowed_values(override: str, field: str, remedy: str) -> None:
    with pytest.raises(BadSetting) as caught:
        load_recipe("paper", [override])
    assert field in caught.value.message
    assert remedy in caught.value.remedy
    assert "\n" not in caught.value.message + caught.value.remedy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a recipe"),
        ("- 1", "is not a recipe"),
        ("name: x", "stages is missing"),
        ("name: x\nstages: [1]", "stage1 is not a table"),
        ("name: x\nstages: [{name: a}]", r"stage1\.epochs is missing"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BadSetting, match=message):
        load_recipe(str(path))


def test_two_stages_with_one_name_are_refused() -> None:
    stage = {"name": "a", "epochs": 1, "optimizer": "sgd", "lr": 0.1}
    with pytest.raises(BadSetting, match="same name"):
        recipe_of({"name": "x", "stages": [stage, stage]})


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadSetting, match="no recipe 'papre'") as caught:
        load_recipe("papre")
    assert "paper" in caught.value.remedy


def test_a_recipe_may_be_a_file_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nstages: [{name: a, epochs: 1, optimizer: sgd, lr: 1}]")
    recipe = load_recipe(str(path))
    assert isinstance(recipe, Recipe)
    assert recipe.stages[0].lr == 1.0
    assert recipe.architecture(5).classes == 5
