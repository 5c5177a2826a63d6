"""The coupled clusters loss against values by hand, a plain loop, and finite differences."""

import numpy as np
import pytest
import torch

from clvr_model.coupled_clusters import Center, coupled_clusters
from infra.errors import BadInput


def _loop(features: np.ndarray, vehicles: np.ndarray, margin: float, centers: dict | None = None) -> float:
    """The formula as it is written in the paper, image by image."""
    total = 0.0
    for vehicle in np.unique(vehicles):
        positives, negatives = features[vehicles == vehicle], features[vehicles != vehicle]
        center = positives.mean(axis=0) if centers is None else centers[vehicle]
        nearest = min(float(((x - center) ** 2).sum()) for x in negatives)
        for x in positives:
            total += 0.5 * max(0.0, float(((x - center) ** 2).sum()) + margin - nearest)
    return total


def _random(seed: int, count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 5)), rng.permutation(np.arange(count) % 4)


def test_loss_of_two_vehicles_by_hand() -> None:
    # Vehicle 7 at 0 and 2, its center is 1; vehicle 9 at 4 and 6, its center is 5. Nearest negatives: 4 is at
    # 9 of center 1, and 2 at 9 of center 5. With margin 10 each of the four images adds (1 + 10 - 9) / 2.
    features = torch.tensor([[0.0], [2.0], [4.0], [6.0]])
    vehicles = torch.tensor([7, 7, 9, 9])
    loss, nearer = coupled_clusters(features, vehicles, margin=10.0)
    assert float(loss) == pytest.approx(4.0)
    assert nearer == 4
    assert float(coupled_clusters(features, vehicles, margin=8.0)[0]) == 0.0


def test_gradients_of_both_centers_by_hand() -> None:
    features = torch.tensor([[0.0], [2.0], [4.0], [7.0]], requires_grad=True)
    vehicles = torch.tensor([0, 0, 1, 1])  # centers 1 and 5.5
    # Of vehicle 0, both add 1 + 9 - 9; vehicle 1 is outside of the margin: 2.25 + 9 - 12.25 < 0.
    loss, _ = coupled_clusters(features, vehicles, margin=9.0)
    loss.backward()
    # x - c for the positives; the nearest negative, 4, gets c - x* = 1 - 4 for each of the two.
    assert features.grad.ravel().tolist() == pytest.approx([-1.0, 1.0, -6.0, 0.0])
    features.grad = None
    loss, _ = coupled_clusters(features, vehicles, margin=9.0, center="differentiated")
    loss.backward()
    # With all of a set violated, each positive gets x* - c = 3 more.
    assert features.grad.ravel().tolist() == pytest.approx([2.0, 4.0, -6.0, 0.0])


@pytest.mark.parametrize("seed", range(4))
def test_loss_equals_the_formula(seed: int) -> None:
    features, vehicles = _random(seed)
    loss, _ = coupled_clusters(torch.tensor(features), torch.tensor(vehicles), margin=2.0)
    assert float(loss) == pytest.approx(_loop(features, vehicles, 2.0))


@pytest.mark.parametrize("center", ["constant", "differentiated"])
@pytest.mark.parametrize("seed", range(3))
def test_gradient_equals_finite_differences(center: Center, seed: int) -> None:
    features, vehicles = _random(seed)
    tensor = torch.tensor(features, requires_grad=True)
    loss, _ = coupled_clusters(tensor, torch.tensor(vehicles), margin=2.0, center=center)
    loss.backward()
    fixed = {vehicle: features[vehicles == vehicle].mean(axis=0) for vehicle in np.unique(vehicles)}
    centers = fixed if center == "constant" else None
    step = 1e-6
    for index in np.ndindex(features.shape):
        above, below = features.copy(), features.copy()
        above[index] += step
        below[index] -= step
        slope = (_loop(above, vehicles, 2.0, centers) - _loop(below, vehicles, 2.0, centers)) / (2 * step)
        assert float(tensor.grad[index]) == pytest.approx(slope, abs=1e-5)


def test_single_image_only_pushes_its_nearest_negative() -> None:
    features = torch.tensor([[0.0], [1.0], [3.0]], requires_grad=True)
    loss, _ = coupled_clusters(features, torch.tensor([5, 6, 6]), margin=2.0)
    loss.backward()
    # Vehicle 5: 0 + 2 - 1 at x* = 1. Vehicle 6: center 2, x* = 0 is at 4: 1 + 2 - 4 < 0.
    assert float(loss.detach()) == pytest.approx(0.5)
    assert features.grad.ravel().tolist() == pytest.approx([0.0, -1.0, 0.0])


def test_negatives_of_the_same_model_by_hand() -> None:
    # The vehicles at 0 and 1 are of one model; those at 1.5 and 10 are the only ones of theirs.
    features = torch.tensor([[0.0], [1.0], [1.5], [10.0]], requires_grad=True)
    vehicles, models = torch.tensor([1, 2, 5, 6]), torch.tensor([3, 3, 8, 4])
    # With one image each, the center is the image. The nearest negative of 1 is 0, not 1.5.
    losses = [2 - 1, 2 - 1, 2 - 0.25, 0]
    loss, _ = coupled_clusters(features, vehicles, margin=2.0, negatives="same_model", models=models)
    assert float(loss.detach()) == pytest.approx(sum(losses) / 2)
    loss.backward()
    # Of 0: x* = 1 moves away by c - x* = -1. Of 1: x* = 0 gets 1. Of 1.5: x* = 1 gets 0.5.
    assert features.grad.ravel().tolist() == pytest.approx([1.0, -1.0 + 0.5, 0.0, 0.0])
    zeros = torch.zeros_like(models)
    alike = coupled_clusters(features, vehicles, margin=2.0, negatives="same_model", models=zeros)
    assert float(alike[0].detach()) == pytest.approx(
        float(coupled_clusters(features, vehicles, margin=2.0)[0].detach())
    )


def test_negatives_of_other_models_by_hand() -> None:
    # Tracks 1 and 2 are of one model, and may show one vehicle; track 3 is of another.
    features = torch.tensor([[0.0], [2.0], [3.0], [9.0]], requires_grad=True)
    tracks, models = torch.tensor([1, 1, 2, 3]), torch.tensor([5, 5, 5, 6])
    # Track 1 has center 1, and its nearest negative is 9, at 64; 3 would be nearer. Of 9, it is 3, at 36.
    loss, nearer = coupled_clusters(features, tracks, margin=64.0, negatives="other_model", models=models)
    assert float(loss.detach()) == pytest.approx((1 + 1 + (64 - 36) + (64 - 36)) / 2)
    assert nearer == 4
    # Without another model, the images of a track are drawn together, and nothing is pushed.
    features.grad = None
    zeros = torch.zeros_like(models)
    loss, _ = coupled_clusters(features, tracks, margin=64.0, negatives="other_model", models=zeros)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.0)
    assert features.grad.ravel().tolist() == pytest.approx([-1.0, 1.0, 0.0, 0.0])


def test_one_vehicle_has_no_negative() -> None:
    with pytest.raises(BadInput, match="no negative"):
        coupled_clusters(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), margin=1.0)


def test_far_features_keep_small_distances() -> None:
    features, vehicles = _random(3)
    near = coupled_clusters(torch.tensor(features), torch.tensor(vehicles), margin=2.0)[0]
    far = coupled_clusters(torch.tensor(features + 1e5), torch.tensor(vehicles), margin=2.0)[0]
    assert float(far) == pytest.approx(float(near), rel=1e-6)
