"""Recipes say what the paper says, and an error names its field."""

from pathlib import Path

import pytest
import yaml

from clvr_model.recipe import SHIPPED, Recipe, load_recipe, recipe_of
from infra.errors import BadSetting


def test_the_paper_recipe_is_the_papers() -> None:
    recipe = load_recipe("paper")
    warmup, target = recipe.stages
    assert (warmup.trainable, warmup.epochs, warmup.optimizer, warmup.lr) == ("head", 10, "rmsprop", 1e-3)
    assert (target.trainable, target.epochs, target.optimizer, target.lr) == ("all", 30, "sgd", 1e-4)
    assert (recipe.batch, recipe.image_size, recipe.feature_dim, recipe.train_share) == (100, 299, 1024, 0.8)
    assert target.momentum == recipe.unstated()["momentum"]["target"] == 0.9


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_survives_its_plain_form(name: str) -> None:
    recipe = load_recipe(name)
    assert (
        recipe_of(
            yaml.safe_load(yaml.safe_dump(recipe.as_dict() | {"stages": list(recipe.as_dict()["stages"])}))
        )
        == recipe
    )


def test_the_demo_needs_no_network() -> None:
    assert load_recipe("demo").backbone == "random"


def test_overrides_change_fields_of_the_recipe_and_of_stages() -> None:
    recipe = load_recipe(
        "paper", ["stage2.epochs=5", "warmup.lr=1e-4", "batch=32", "target.flip=true", "seed=7"]
    )
    assert recipe.stages[1].epochs == 5
    assert recipe.stages[0].lr == 1e-4
    assert recipe.batch == 32
    assert recipe.stages[1].flip is True
    assert recipe.seed == 7


def test_only_a_frozen_unaugmented_stage_may_keep_features() -> None:
    assert load_recipe("paper").stages[0].cacheable
    assert not load_recipe("paper").stages[1].cacheable
    assert not load_recipe("paper", ["warmup.flip=true"]).stages[0].cacheable
    assert not load_recipe("paper", ["warmup.cache_features=false"]).stages[0].cacheable


@pytest.mark.parametrize(
    ("override", "field", "remedy"),
    [
        ("stage2.epochs=-1", "stage2.epochs is -1", "at least 0"),
        ("stage2.epochs=many", "stage2.epochs is 'many'", "int"),
        ("stage2.epochs=true", "stage2.epochs is True", "int"),
        ("stage1.optimizer=adam", "stage1.optimizer is 'adam'", "rmsprop, sgd"),
        ("stage1.lr=0", "stage1.lr is 0", "above 0"),
        ("stage1.lr=.nan", "stage1.lr is nan", "above 0"),
        ("stage1.learning_rate=1", "stage1.learning_rate is no field", "lr"),
        ("stage3.epochs=1", "stage3.epochs: no such stage", "stage1, stage2, warmup, target"),
        ("train_share=1.5", "train_share is 1.5", "at most 1"),
        ("image_size=224", "image_size is 224", "299"),
        ("precision=fp16", "precision is 'fp16'", "fp32, bf16"),
        ("backbone=", "backbone is None", "str"),
        ("batch", "'batch' is not an override", "field=value"),
        ("batch=[1", "is not a value", ""),
        ("name=[1]", "name is", "str"),
    ],
)
def test_an_error_names_the_field_and_what_it_may_be(override: str, field: str, remedy: str) -> None:
    with pytest.raises(BadSetting) as caught:
        load_recipe("paper", [override])
    assert field in caught.value.message
    assert remedy in caught.value.remedy


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
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BadSetting, match=message):
        load_recipe(str(path))


def test_two_stages_of_one_name_are_refused() -> None:
    stage = {"name": "a", "epochs": 1, "optimizer": "sgd", "lr": 0.1}
    with pytest.raises(BadSetting, match="same name"):
        recipe_of({"name": "x", "stages": [stage, stage]})


def test_no_such_recipe() -> None:
    with pytest.raises(BadSetting, match="no recipe 'papre'") as caught:
        load_recipe("papre")
    assert "paper" in caught.value.remedy


def test_ones_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nstages: [{name: a, epochs: 1, optimizer: sgd, lr: 1}]")
    recipe = load_recipe(str(path))
    assert isinstance(recipe, Recipe)
    assert recipe.stages[0].lr == 1.0
    assert recipe.architecture(5).classes == 5
