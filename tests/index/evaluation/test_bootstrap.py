"""The paired interval covers zero for equal models and excludes it for a better one."""

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


def test_a_better_model_differs_significantly() -> None:
    worse, better = (
        evaluate_protocol("vehicleid-paper", features(noise, 1), VEHICLES, repeats=3) for noise in (1.2, 0.8)
    )
    differences = {row.measure: row for row in compare(worse, better, VEHICLES)}
    assert list(differences) == ["rank-1", "rank-5", "mAP", "mINP"]
    assert differences["mAP"].is_significant
    assert differences["mAP"].ci_low < differences["mAP"].difference < differences["mAP"].ci_high
    assert differences["mAP"].a == pytest.approx(worse.figure("map")[0])
    assert differences["rank-1"].b == pytest.approx(better.mean[0])
    reverse = {row.measure: row for row in compare(better, worse, VEHICLES)}
    assert reverse["mAP"].ci_high == pytest.approx(-differences["mAP"].ci_low)


def test_equal_models_differ_by_chance_only() -> None:
    a, b = (evaluate_protocol("vehicleid-paper", features(1.0, seed), VEHICLES, repeats=3) for seed in (5, 6))
    assert not any(row.is_significant for row in compare(a, b, VEHICLES))
    assert all(row.ci_low == row.ci_high == 0 for row in compare(a, a, VEHICLES))


def test_other_splits_are_refused() -> None:
    a, b = (
        evaluate_protocol("vehicleid-paper", features(1.0, 1), VEHICLES, repeats=2, seed=s) for s in (1, 2)
    )
    with pytest.raises(BadInput, match="same probes and gallery"):
        compare(a, b, VEHICLES)
