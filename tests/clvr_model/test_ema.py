"""The moving average follows what learns, survives a resume, and is lent or given to the network."""

from pathlib import Path

import pytest
import torch

from clvr_model.ema import ExponentialMovingAverage
from clvr_model.network import Clvr
from clvr_model.recipe import Stage
from clvr_model.training import make_optimizer
from clvr_model.training_state import TrainingState
from infra.errors import BadCheckpoint

TARGET = Stage(name="target", epochs=1, optimizer="sgd", lr=0.1, ema_decay=0.5)
WARMUP = TARGET.model_copy(update={"name": "warmup", "trainable": "head"})


def _network(stage: Stage) -> Clvr:
    network = Clvr(3, 8, bnneck=True, seed=1)
    make_optimizer(network, stage)
    return network


def test_a_stage_without_ema_decay_has_no_average() -> None:
    assert ExponentialMovingAverage.of(_network(WARMUP), WARMUP.model_copy(update={"ema_decay": 0.0})) is None


def test_the_average_is_the_weighted_mean_of_the_weights_of_all_steps() -> None:
    network = _network(WARMUP)
    average = ExponentialMovingAverage(network, 0.5)
    weight = network.head.dense.weight
    expected = weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            weight.add_(1.0)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
    average.install()
    assert torch.allclose(weight, expected, atol=1e-5)


def test_a_frozen_backbone_is_not_averaged() -> None:
    names = ExponentialMovingAverage(_network(WARMUP), 0.9).state_dict().keys()
    assert names == {
        "head.dense.weight",
        "head.dense.bias",
        "head.neck.weight",
        "head.neck.bias",
        "head.neck.running_mean",
        "head.neck.running_var",
        "head.classifier.weight",
        "head.classifier.bias",
        "steps",
    }
    assert (
        "backbone.Conv2d_1a_3x3.bn.running_mean"
        in ExponentialMovingAverage(_network(TARGET), 0.9).state_dict()
    )


def test_installed_weights_are_restored_after_an_error() -> None:
    network = _network(WARMUP)
    average = ExponentialMovingAverage(network, 0.5)
    weight = network.head.dense.weight
    first = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(3.0)
    with pytest.raises(RuntimeError), average.installed():
        assert torch.equal(weight, first)
        raise RuntimeError
    assert torch.equal(weight, 3 * first)


def test_a_resumed_average_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def step(network: Clvr, average: ExponentialMovingAverage) -> None:
        with torch.no_grad():
            network.head.dense.weight.mul_(0.9)
        average.update()

    network = _network(WARMUP)
    average = ExponentialMovingAverage(network, 0.9)
    step(network, average)
    TrainingState.capture(network, None, stage=0, epoch=1, seed=0, average=average.state_dict()).save(
        tmp_path
    )
    step(network, average)

    state = TrainingState.load(tmp_path)
    other = _network(WARMUP)
    state.restore(other)
    resumed = ExponentialMovingAverage(other, 0.9)
    resumed.load_state_dict(state.average)
    step(other, resumed)
    for name, value in average.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_average_of_another_stage_is_refused() -> None:
    whole = ExponentialMovingAverage(_network(TARGET), 0.9).state_dict()
    with pytest.raises(BadCheckpoint, match="another network or stage"):
        ExponentialMovingAverage(_network(WARMUP), 0.9).load_state_dict(whole)
