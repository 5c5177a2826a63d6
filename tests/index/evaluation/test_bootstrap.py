"""The paired interval covers zero for equals and leaves it for a better model; unpaired ones are refused."""

import numpy as np
import pytest
from numpy.typing import NDArray

from index.evaluation.bootstrap import compare
from index.evaluation.protocols import evaluate_protocol
from infra.errors import BadInput

VEHICLES = np.repeat(np.arange(80), 5)


def features(noise: float, seed: int) -> NDArray[np.float32]:
    centres = np.random.default_rng(0).standard_normal((80, 12))
    other = np.random.default_rng(seed).standard_normal((400, 12))
    return (centres[VEHICLES] + noise * other).astype(np.float32)


def test_a_better_model_is_told_from_chance() -> None:
    worse, better = (
        evaluate_protocol("vehicleid-paper", features(noise, 1), VEHICLES, repeats=3) for noise in (1.2, 0.8)
    )
    found = {one.measure: one for one in compare(worse, better, VEHICLES)}
    assert list(found) == ["rank-1", "rank-5", "mAP", "mINP"]
    assert found["mAP"].certain
    assert found["mAP"].low < found["mAP"].difference < found["mAP"].high
    assert found["mAP"].a == pytest.approx(worse.map[0])
    assert found["rank-1"].b == pytest.approx(better.mean[0])
    back = {one.measure: one for one in compare(better, worse, VEHICLES)}
    assert back["mAP"].high == pytest.approx(-found["mAP"].low)


def test_equal_models_differ_by_chance_only() -> None:
    a, b = (evaluate_protocol("vehicleid-paper", features(1.0, seed), VEHICLES, repeats=3) for seed in (5, 6))
    assert not any(one.certain for one in compare(a, b, VEHICLES))
    assert all(one.low == one.high == 0 for one in compare(a, a, VEHICLES))


def test_other_splits_are_refused() -> None:
    a, b = (
        evaluate_protocol("vehicleid-paper", features(1.0, 1), VEHICLES, repeats=2, seed=s) for s in (1, 2)
    )
    with pytest.raises(BadInput, match="same probes and gallery"):
        compare(a, b, VEHICLES)
