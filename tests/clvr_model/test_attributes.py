"""Attributes are learned from known labels, beside the feature, which stays as it is without them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clvr_model.attribute_head import AttributeHead, attribute_loss
from clvr_model.attributes import MAX_VALUES, learnable_values, value_numbers
from clvr_model.checkpoint import Card, fingerprint_of, load_checkpoint, save_checkpoint
from clvr_model.datasets.labelled import LabeledImages
from clvr_model.embedder import Embedder
from clvr_model.network import Architecture, Clvr
from clvr_model.normalization import to_input
from clvr_model.recipe import Stage, load_recipe
from clvr_model.training import make_optimizer, train_step
from clvr_model.validation import predict, score_attributes
from infra.errors import BadLabels, BadSetting

VALUES = {"color": ["black", "red", "white"], "body_type": ["suv", "van"]}
STAGE = Stage(name="s", epochs=1, optimizer="sgd", lr=0.1, momentum=0.9, max_grad_norm=0.5)
generator = torch.Generator().manual_seed(3)
POOLED = torch.rand(24, 1280, generator=generator)
CLASSES = torch.arange(24) % 3


def clvr(**switches: object) -> Clvr:
    return Clvr(3, 16, backbone="efficientnet_lite0", seed=1, **switches)


def targets(colors: list[int], body_types: list[int]) -> torch.Tensor:
    columns = [CLASSES[: len(colors)].tolist(), [-1] * len(colors), colors, body_types]
    return torch.tensor(columns).T.contiguous()


def test_the_feature_is_that_of_a_training_without_attributes() -> None:
    plain, both = clvr(), clvr(attributes=VALUES)
    optimizers = [make_optimizer(network, STAGE) for network in (plain, both)]
    colors = (torch.arange(24) % 3).tolist()
    seen = POOLED.clone()
    seen[torch.arange(24), CLASSES] += 5  # what a linear classifier can learn
    for _ in range(20):
        train_step(plain.head, optimizers[0], seen, CLASSES, max_grad_norm=0.5)
        train_step(both.head, optimizers[1], seen, targets(colors, [-1] * 24), max_grad_norm=0.5)
    learned = both.head.state_dict()
    for name, value in plain.head.state_dict().items():
        assert torch.equal(value, learned[name]), name
    found = predict(both.head, [(seen, targets(colors, [-1] * 24))])
    expected = np.column_stack([colors, [-1] * 24])
    scores = score_attributes(found.attributes, expected, list(VALUES))
    assert scores["color"].accuracy == 1
    assert (scores["body_type"].accuracy, scores["body_type"].pictures) == (None, 0)
    # Nothing taught the body type.
    assert not learned["attributes.body_type.weight"].any()


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0])
def test_the_weight_scales_the_gradient_that_reaches_the_backbone_alone(factor: float) -> None:
    head = AttributeHead(8, {"color": ["a", "b"]})
    torch.nn.init.ones_(head["color"].weight[:1])
    head.gradient = factor
    pooled = torch.rand(4, 8, requires_grad=True)
    attribute_loss(head(pooled), torch.tensor([[1], [1], [0], [-1]])).backward()
    whole = torch.autograd.grad(
        torch.nn.functional.cross_entropy(
            head["color"](pooled)[:3], torch.tensor([1, 1, 0]), reduction="sum"
        ),
        [pooled, head["color"].weight],
    )
    reached = torch.zeros(4, 8) if pooled.grad is None else pooled.grad
    assert torch.allclose(reached, factor * whole[0])
    assert torch.allclose(head["color"].weight.grad, whole[1])


def test_the_mean_of_two_workers_is_the_gradient_of_the_whole_batch() -> None:
    expected = targets([0, 1, -1, -1, 2, 0, 1, 2], [0] * 8)  # unequal numbers of known labels
    head = clvr(attributes=VALUES).head
    gradients = []
    for rows in (slice(0, 8), slice(0, 4), slice(4, 8)):
        optimizer = make_optimizer(head, STAGE)
        before = [value.clone() for value in head.state_dict().values()]
        train_step(head, optimizer, POOLED[:8][rows], expected[rows])
        gradients.append(head.attributes["color"].weight.grad.clone())
        for value, kept in zip(head.state_dict().values(), before, strict=True):
            value.copy_(kept)
    assert torch.allclose(gradients[0], (gradients[1] + gradients[2]) / 2, atol=1e-6)


def test_only_networks_with_attributes_name_them_in_card_and_fingerprint() -> None:
    plain = Architecture(classes=3)
    assert "attributes" not in plain.as_dict()
    assert set(clvr().state_dict()) == {
        name for name in clvr(attributes=VALUES).state_dict() if ".attributes." not in name
    }
    other = replace(plain, attributes=dict(reversed(VALUES.items())))
    assert Architecture.from_dict(other.as_dict()) == replace(plain, attributes=VALUES)
    assert list(other.attributes) == ["color", "body_type"]
    assert fingerprint_of("0", plain.as_dict(), [1]) != fingerprint_of("0", other.as_dict(), [1])
    for bad in ({"brand": ["a", "b"]}, {"color": ["a"]}, {"color": ["a", "a"]}, {"color": ["", "a"]}, [1]):
        with pytest.raises(BadSetting, match="attributes"):
            Architecture.from_dict({**plain.as_dict(), "attributes": bad})


@pytest.mark.parametrize(("engine", "classes"), [("torch", 3), ("auto", 0)])
def test_an_embedder_names_values_with_their_softmax(engine: str, classes: int, tmp_path) -> None:
    network = Clvr(classes, 16, backbone="efficientnet_lite0", seed=1, attributes=VALUES).eval()
    for head in network.head.attributes.values():
        torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(4))
    save_checkpoint(str(tmp_path), network, Card(label_ids=tuple(range(classes))))
    checkpoint = load_checkpoint(str(tmp_path))
    images = np.random.default_rng(0).integers(0, 255, (3, 224, 224, 3), np.uint8)
    with torch.inference_mode():
        *_, colors, body_types = network(to_input(torch.from_numpy(images)))
    found = Embedder(checkpoint, device="cpu", engine=engine, batch_size=2)(images).attributes
    for name, logits in (("color", colors), ("body_type", body_types)):
        best = torch.softmax(logits, dim=1).max(dim=1)
        assert found[name].values.tolist() == [VALUES[name][i] for i in best.indices]
        assert np.allclose(found[name].confidence, best.values.numpy(), atol=1e-3)


def images_with(colors: list[str] | None, body_types: list[str] | None = None) -> LabeledImages:
    count = len(colors or body_types or ())
    return LabeledImages(
        [f"{number}.jpg" for number in range(count)],
        np.zeros(count, np.int64),
        colors=colors,
        body_types=body_types,
    )


def test_values_of_two_or_more_kinds_are_learned_and_unknown_ones_are_masked() -> None:
    labelled = images_with(["red", "", "blue", "red"], ["suv", "suv", "", "suv"])
    values = learnable_values(labelled)
    assert values == {"color": ["blue", "red"]}
    assert value_numbers(labelled, values).tolist() == [[1], [-1], [0], [1]]
    assert value_numbers(images_with(None, ["x"]), values).tolist() == [[-1]]
    with pytest.raises(BadLabels, match="different values of color"):
        learnable_values(images_with([str(number) for number in range(MAX_VALUES + 1)]))
    with pytest.raises(BadLabels, match="more than 64 bytes"):
        learnable_values(images_with(["a", "ü" * 33]))


def test_a_recipe_without_the_switch_keeps_its_identity() -> None:
    assert load_recipe("paper").attributes == "auto"
    assert not {"attributes", "attributes_weight"} & set(str(load_recipe("paper").as_dict()).split("'"))
    changed = load_recipe("paper", ["attributes=false", "stage2.attributes_weight=0.5"])
    assert (changed.attributes, changed.stages[1].attributes_weight) == (False, 0.5)
    with pytest.raises(BadSetting, match="attributes"):
        load_recipe("paper", ["attributes=maybe"])
