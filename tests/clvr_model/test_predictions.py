"""Predictions and their scores: right ones over all pictures, and as the mean over the models."""

import numpy as np
import pytest
import torch
from torch import nn

from clvr_model.predictions import Predictions, predict, score


class Fixed(nn.Module):
    """Logits are the inputs."""

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs, inputs


def predictions(*classes: int) -> Predictions:
    count = len(classes)
    return Predictions(np.array(classes, np.int64), np.ones(count, np.float32), np.ones(count, np.float32))


def test_the_likeliest_class_its_probability_and_the_loss_of_the_true_one() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    found = predict(Fixed(), [(logits[:2], torch.tensor([0, 1])), (logits[2:], torch.tensor([0]))])
    assert found.classes.tolist() == [0, 0, 1]
    assert found.confidence[0] == pytest.approx(1 / (1 + np.exp(-2)))
    assert found.losses[2] == pytest.approx(np.log(1 + np.exp(3)))


def test_micro_counts_pictures_and_macro_counts_models() -> None:
    scores = score(predictions(0, 0, 0, 1), np.array([0, 0, 0, 2]), classes=4)
    assert scores.micro == 0.75
    assert scores.macro == 0.5
    assert scores.per_class == (1.0, None, 0.0, None)


def test_without_pictures_there_is_nothing_right() -> None:
    found = predict(Fixed(), [])
    assert score(found, np.zeros(0, np.int64), classes=2).micro == 0.0
