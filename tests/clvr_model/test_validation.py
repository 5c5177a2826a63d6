"""Predictions and their scores: right ones over all images, and as the mean over the models."""

import numpy as np
import pytest
import torch
from torch import nn

from clvr_model.network import Clvr
from clvr_model.validation import Predictions, predict, score, vehicle_rank1


class Fixed(nn.Module):
    """Logits are the inputs."""

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs, inputs


def predictions(*classes: int) -> Predictions:
    count = len(classes)
    return Predictions(np.array(classes, np.int64), np.ones(count, np.float32), np.ones(count, np.float32))


def test_a_prediction_has_the_likeliest_class_its_probability_and_the_loss() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    predicted = predict(Fixed(), [(logits[:2], torch.tensor([0, 1])), (logits[2:], torch.tensor([0]))])
    assert predicted.classes.tolist() == [0, 0, 1]
    assert predicted.confidence[0] == pytest.approx(1 / (1 + np.exp(-2)))
    assert predicted.losses[2] == pytest.approx(np.log(1 + np.exp(3)))


def test_micro_accuracy_averages_images_and_macro_accuracy_averages_models() -> None:
    scores = score(predictions(0, 0, 0, 1), np.array([0, 0, 0, 2]), classes=4)
    assert scores.micro == 0.75
    assert scores.macro == 0.5
    assert scores.per_class == (1.0, None, 0.0, None)


def test_accuracy_without_images_is_zero() -> None:
    predicted = predict(Fixed(), [])
    assert score(predicted, np.zeros(0, np.int64), classes=2).micro == 0.0


def test_a_head_that_always_predicts_one_class_is_right_for_that_class_alone() -> None:
    head = Clvr(3, feature_dim=8, seed=1).head
    with torch.no_grad():
        head.classifier.weight.zero_()
        head.classifier.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    pooled, expected = torch.rand(5, 2048), torch.tensor([1, 0, 1, 1, 0])
    batches = [(pooled[:2], expected[:2]), (pooled[2:], expected[2:])]
    result = score(predict(head, batches), expected.numpy(), classes=3)
    assert result.micro == pytest.approx(0.6)
    assert result.macro == pytest.approx(0.5)
    assert result.per_class == (0.0, 1.0, None)
    assert result.pictures == 5


def test_rank1_is_the_share_of_images_whose_nearest_other_is_of_the_same_vehicle() -> None:
    rng = np.random.default_rng(0)
    vehicles = rng.permutation(np.arange(60) // 3)
    features = rng.normal(size=(60, 4)).astype(np.float32) + rng.normal(size=(20, 4))[vehicles].astype(
        np.float32
    )
    distances = ((features[:, None].astype(np.float64) - features[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    expected = float((vehicles[distances.argmin(axis=1)] == vehicles).mean())
    assert 0 < expected < 1
    assert vehicle_rank1(features, vehicles) == pytest.approx(expected)
    assert vehicle_rank1(features + 1000, vehicles) == pytest.approx(expected, abs=0.04)
    assert vehicle_rank1(features, np.arange(60)) == 0.0  # no image has another of its vehicle


def test_a_network_without_a_classifier_predicts_no_class() -> None:
    network = Clvr(0, 8, seed=1).eval()
    pooled = torch.rand(3, 2048)
    predictions = predict(network.head, [(pooled, torch.tensor([[-1, 5]] * 3))], keep_features=True)
    assert predictions.classes.tolist() == [-1, -1, -1]
    assert predictions.confidence.tolist() == [0, 0, 0]
    assert predictions.features is not None
    assert predictions.features.shape == (3, 8)
