"""The loss of a stage: its terms, whole sets in every pass, and which weights it reaches."""

import numpy as np
import pytest
import torch

from clvr_model.coupled_clusters import coupled_clusters
from clvr_model.layers import init_weights
from clvr_model.network import Architecture, Clvr, Head, MixedHead
from clvr_model.objective import Objective
from clvr_model.recipe import Recipe, Stage, load_recipe
from clvr_model.training import make_optimizer, train_step
from clvr_model.unstated import competitor_choices
from infra.errors import BadSetting

RNG = np.random.default_rng(4)
POOLED = torch.from_numpy(RNG.normal(size=(12, 2048)).astype(np.float32))
CLASSES = torch.arange(12) % 3
VEHICLES = torch.arange(12) // 2
TARGETS = torch.stack([CLASSES, VEHICLES], dim=1)


def _stage(**changes: object) -> Stage:
    return Stage.model_validate({"name": "s", "epochs": 1, "optimizer": "sgd", "lr": 0.1, **changes})


SETS = {"sampling": "vehicles", "images_per_vehicle": 2}
CLUSTERS = _stage(loss="clusters", margin=0.5, **SETS)


def _mixed() -> Clvr:
    # Inception-V3, whose backbone these tests do not run.
    return Clvr(3, 8, head="mixed", branch_dim=6, fusion_dim=7, l2_normalized=True, bnneck=True, seed=2)


def test_sum_of_both_terms() -> None:
    feature, logits = POOLED[:, :8], POOLED[:, 8:11]
    softmax, right = Objective()(feature, logits, TARGETS)
    assert float(softmax) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, CLASSES, reduction="sum"))
    )
    assert right == int((logits.argmax(dim=1) == CLASSES).sum())
    clusters, _ = coupled_clusters(feature, VEHICLES, margin=0.5)
    both = Objective(clusters=True, clusters_weight=3.0, margin=0.5)
    assert float(both(feature, logits, TARGETS)[0]) == pytest.approx(float(softmax + 3 * clusters))


@pytest.mark.parametrize(("images", "micro_batch"), [(12, 0), (12, 6), (12, 7), (16, 6), (30, 9), (10, 6)])
def test_passes_hold_whole_sets_and_two_vehicles_or_more(images: int, micro_batch: int) -> None:
    objective = Objective.of(CLUSTERS)
    rows = torch.arange(images)
    parts = objective.split(rows, objective.num_passes(images, micro_batch))
    assert torch.equal(torch.cat(parts), rows)
    for part in parts:
        assert len(part) >= 4
        assert len(part) % 2 == 0
        assert len(part) <= (micro_batch or images)
        assert (part.view(-1, 2)[:, 0] % 2 == 0).all()


def test_without_sets_a_batch_is_split_as_before() -> None:
    objective = Objective()
    assert objective.num_passes(10, 4) == 3
    assert [len(part) for part in objective.split(torch.arange(10), 3)] == [4, 3, 3]


def test_pure_clusters_learn_without_a_classifier() -> None:
    network = Clvr(0, 8, l2_normalized=True, seed=1)
    assert "head.classifier.weight" not in network.state_dict()
    head, optimizer = network.head, make_optimizer(network, CLUSTERS.model_copy(update={"trainable": "head"}))
    objective = Objective.of(CLUSTERS)
    steps = [train_step(head, optimizer, POOLED, TARGETS, objective=objective) for _ in range(40)]
    losses = [step.read().loss for step in steps]
    assert losses[-1] < losses[0] / 3
    feature, logits = head(POOLED)
    assert logits.shape == (12, 0)
    assert torch.allclose(feature.norm(dim=1), torch.ones(12), atol=1e-5)


STAGES = [
    ({}, {"model_branch", "classifier"}, 6),
    (
        {"loss": "clusters", "clusters_on": "vehicle_branch", **SETS},
        {"vehicle_branch", "vehicle_neck"},
        6,
    ),
    (
        {"loss": "softmax+clusters", "clusters_on": "vehicle_branch", **SETS},
        {"model_branch", "classifier", "vehicle_branch", "vehicle_neck"},
        6,
    ),
    ({"loss": "clusters", "trainable": "fusion", **SETS}, {"fusion", "dense", "neck"}, 8),
    (
        {"loss": "clusters", "trainable": "head", **SETS},
        {"fusion", "dense", "neck", "model_branch", "vehicle_branch", "vehicle_neck"},
        8,
    ),
]


@pytest.mark.parametrize(("changes", "expected", "width"), STAGES)
def test_a_mixed_head_learns_what_the_stages_loss_reaches(
    changes: dict[str, object], expected: set[str], width: int
) -> None:
    network, stage = _mixed(), _stage(**{"trainable": "head", **changes})
    before = {name: value.clone() for name, value in network.head.state_dict().items()}
    optimizer = make_optimizer(network, stage)
    train_step(network.head, optimizer, POOLED, TARGETS, objective=Objective.of(stage))
    after = dict(network.head.named_parameters())
    learned = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert learned == expected
    # Weights that get no gradient would stop a distributed training.
    reached = {name.split(".")[0] for name, value in network.head.named_parameters() if value.requires_grad}
    assert reached == expected
    assert network.head(POOLED)[0].shape == (12, width) == (12, network.head.output_dim)


def test_a_mixed_head_compares_the_layers_behind_both_branches() -> None:
    head = _mixed().eval().head
    assert isinstance(head, MixedHead)
    relu = torch.nn.functional.relu
    by_model = relu(head.model_branch(POOLED))
    by_vehicle = head.vehicle_neck(relu(head.vehicle_branch(POOLED)))
    joined = relu(head.fusion(torch.cat([by_model, by_vehicle], dim=1)))
    feature, logits = head(POOLED)
    expected = torch.nn.functional.normalize(head.neck(relu(head.dense(joined))))
    assert torch.allclose(feature, expected)
    assert torch.allclose(logits, head.classifier(by_model))  # type: ignore[misc]


def test_a_frozen_branch_keeps_its_statistics() -> None:
    network = _mixed()
    before = network.head.vehicle_neck.running_mean.clone()  # type: ignore[union-attr, operator]
    for trainable, kept in (("fusion", True), ("head", False)):
        stage = _stage(loss="clusters", trainable=trainable, **SETS)
        optimizer = make_optimizer(network, stage)
        network.head.train()
        train_step(network.head, optimizer, POOLED, TARGETS, objective=Objective.of(stage))
        assert torch.equal(network.head.vehicle_neck.running_mean, before) == kept  # type: ignore[arg-type]


def test_batch_normalization_keeps_clusters_from_falling_into_one_point() -> None:
    """Features of a network that does not tell vehicles apart are almost parallel."""
    rng = np.random.default_rng(0)
    vehicles = torch.arange(48) // 4
    parts = rng.normal(size=(12, 64))[vehicles] + 0.7 * rng.normal(size=(48, 64))
    pooled = torch.from_numpy((5 + 0.5 * parts).astype(np.float32))
    spread = {}
    for bnneck in (False, True):
        head = Head(Architecture(0, 32, feature_relu=False, l2_normalized=True, bnneck=bnneck), 64)
        init_weights(head, 0)
        optimizer = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], 0.1, 0.9)
        objective = Objective(softmax=False, clusters=True, margin=0.5, set_size=4)
        targets = torch.stack([vehicles, vehicles], dim=1)
        for _ in range(100):
            train_step(head, optimizer, pooled, targets, objective=objective)
        with torch.inference_mode():
            spread[bnneck] = float(head.eval()(pooled)[0].var(dim=0).sum())
    assert spread[False] < 0.05
    assert spread[True] > 0.5


@pytest.mark.parametrize(("name", "labels", "classes"), [("ccl", "vehicle", 0), ("mixeddiff", "both", 9)])
def test_shipped_recipes_of_the_papers_competitors(name: str, labels: str, classes: int) -> None:
    recipe = load_recipe(name)
    assert (recipe.backbone, recipe.image_size, recipe.labels_used) == ("vgg_m", 224, labels)
    assert recipe.architecture(9).classes == classes
    unstated = competitor_choices(recipe)
    assert competitor_choices(load_recipe("paper")) == {}
    assert {
        "sets",
        "margin",
        "center",
        "negatives",
        "length_of_feature",
        "dropout",
        "input",
    } <= unstated.keys()
    again: Recipe = load_recipe(name, [])
    assert again.as_dict() == recipe.as_dict()
    assert Architecture.from_dict(recipe.architecture(9).as_dict()) == recipe.architecture(9)
    other = load_recipe(name, ["network=inception_v3", "pretrained=imagenet"])
    assert (other.image_size, other.backbone) == (299, "inception_v3")


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("ccl", "stage1.sampling=plain", "coupled clusters need several images"),
        ("ccl", "batch=98", "sets of 5"),
        ("ccl", "batch=5", "sets of 5"),
        ("ccl", "stage1.micro_batch=10", "3 sets of 5"),
        ("ccl", "stage1.trainable=fusion", "single head"),
        ("ccl", "stage1.clusters_on=vehicle_branch", "single head"),
        ("ccl", "head=mixed", "no stage has a softmax"),
        ("paper", "stage1.negatives=same_model", "compares no vehicles"),
        ("tracks", "stage2.negatives=any", "two tracks may show one vehicle"),
        ("ccl", "pooling=gem", "has no pool"),
        ("ccl", "pretrained=imagenet", "no weights of vgg_m have an address"),
        ("ccl", "image_size=299", "224"),
        ("mixeddiff", "stage3.clusters_on=vehicle_branch", "does not reach"),
    ],
)
def test_settings_that_do_not_go_together_are_named(name: str, override: str, message: str) -> None:
    with pytest.raises(BadSetting) as caught:
        load_recipe(name, [override])
    assert message in f"{caught.value.message} {caught.value.remedy}"


def test_negatives_of_the_same_model_need_model_labels_and_no_classifier() -> None:
    recipe = load_recipe("ccl", ["stage1.negatives=same_model"])
    assert (recipe.labels_used, recipe.architecture(9).classes) == ("both", 0)
    assert "same model" in competitor_choices(recipe)["negatives"]["clusters"]


def test_tracks_need_model_labels_alone() -> None:
    recipe = load_recipe("tracks")
    assert (recipe.uses_vehicles, recipe.uses_tracks, recipe.labels_used) == (True, True, "model")
    assert recipe.architecture(9).classes == 9
    objective = Objective.of(recipe.stages[1])
    assert (objective.negatives, objective.softmax, objective.clusters) == ("other_model", True, True)


def test_a_remedy_of_the_batch_is_a_batch_that_fits() -> None:
    with pytest.raises(BadSetting) as caught:
        load_recipe("ccl", ["batch=98"])
    load_recipe("ccl", [caught.value.remedy.removeprefix("set ")])
