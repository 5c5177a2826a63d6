"""Proven differences of tracks, the loss that uses them, and batches of tracks of about the same time."""

import numpy as np
import pytest
import torch

from clvr_model.coupled_clusters import coupled_clusters
from clvr_model.datasets.labelled import LabeledImages
from clvr_model.journeys import Journeys, on_globe
from clvr_model.objective import Objective
from clvr_model.recipe import load_recipe
from clvr_model.training import stage_order
from infra.errors import BadInput, BadSetting

MINUTE = 60_000
# Cameras 0 and 1 are 10 km apart on a meridian: 4 minutes at 150 km/h. The position of camera 2 is unknown.
POSITIONS = on_globe(np.array([50.0, 50 + 10 / 111.195, np.nan]), np.array([8.0, 8.0, np.nan]), 6371.0088)


def journeys(*tracks: tuple[int, float, float], models: list[int] | None = None) -> Journeys:
    """Tracks of (camera, first minute, last minute)."""
    cameras, first, last = (np.array(column) for column in zip(*tracks, strict=True))
    return Journeys(
        cameras=cameras,
        first_ms=np.where(first < 0, -1, first * MINUTE).astype(np.int64),
        last_ms=np.where(last < 0, -1, last * MINUTE).astype(np.int64),
        models=np.array(models or [-1] * len(tracks)),
        positions=POSITIONS,
    )


@pytest.mark.parametrize(
    ("a", "b", "proven"),
    [
        ((0, 1, 2), (0, 1.5, 3), True),  # both in view of one camera
        ((0, 1, 2), (0, 2, 3), False),  # one may be the other, under a new number
        ((0, 1, 2), (0, 2.5, 3), False),
        ((0, 1, 2), (1, 5, 6), True),  # 10 km in three minutes
        ((0, 1, 2), (1, 6, 7), False),  # in four minutes, with the tolerance for clocks
        ((1, 6, 7), (0, 1, 2), False),
        ((1, 5, 6), (0, 1, 2), True),
        ((0, 1, 2), (1, 1, 2), True),
        ((0, 1, 2), (2, 1, 2), False),  # nobody knows how far that is
        ((2, 1, 2), (2, 1, 2), True),
        ((0, 1, 2), (0, -1, -1), False),
        ((0, -1, -1), (1, -1, -1), False),
    ],
)
def test_tracks_differ_where_one_vehicle_cannot_have_made_both(a, b, proven: bool) -> None:
    different = journeys(a, b).are_different(np.array([0, 1]))
    assert different.tolist() == [[False, proven], [proven, False]]
    # The order and the number of a track do not matter.
    assert journeys((0, 0, 0), b, a).are_different(np.array([2, 1])).tolist() == different.tolist()


def test_labelled_models_that_differ_are_two_vehicles() -> None:
    facts = journeys(*[(0, -1, -1)] * 4, models=[5, 5, 6, -1])
    assert facts.are_different(np.arange(4)).tolist() == [
        [False, False, True, False],
        [False, False, True, False],
        [True, True, False, False],
        [False] * 4,
    ]


def test_loss_pushes_proven_negatives_only() -> None:
    # Track 0 at 0 and 2, its center is 1. Track 1 at 3 may show the same vehicle, track 2 at 9 does not.
    facts = journeys((0, 1, 2), (0, 5, 6), (0, 1.5, 1.7), (2, 90, 91))
    features = torch.tensor([[0.0], [2.0], [3.0], [9.0]], requires_grad=True)
    tracks = torch.tensor([0, 0, 1, 2])
    loss, _ = coupled_clusters(features, tracks, margin=64.0, negatives="proven", journeys=facts)
    # Of track 0: x* = 9 at 64 from the center. Of track 2: x* = 2, at 49. Track 1 has no proven negative.
    assert float(loss.detach()) == pytest.approx((1 + 1 + (64 - 49)) / 2)
    loss.backward()
    assert features.grad.ravel().tolist() == pytest.approx([-1.0, 1.0 + 7.0, 0.0, -16.0])
    # A pass without any proven pair teaches nothing, and its gradient is a number.
    features.grad = None
    apart = torch.tensor([0, 0, 1, 3])
    loss, _ = coupled_clusters(features, apart, margin=64.0, negatives="proven", journeys=facts)
    loss.backward()
    assert float(loss.detach()) == 0
    assert features.grad.ravel().tolist() == [0.0] * 4
    with pytest.raises(BadInput, match="no journeys"):
        coupled_clusters(features, tracks, margin=1.0, negatives="proven")


def test_unknown_models_are_no_other_models() -> None:
    features = torch.tensor([[0.0], [2.0], [3.0]])
    models = torch.tensor([5, 5, -1])
    loss, _ = coupled_clusters(
        features, torch.tensor([0, 0, 1]), margin=64.0, negatives="other_model", models=models
    )
    assert float(loss) == pytest.approx(1.0)  # the images of track 0 are drawn together, nothing is pushed


def test_images_without_a_model_take_no_part_in_the_softmax() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[0, 0], [2, 0], [-1, 1], [-1, 1]])
    objective = Objective(label_smoothing=0.1)
    loss, right = objective(torch.zeros(4, 2), logits, targets)
    alone, right_alone = objective(torch.zeros(2, 2), logits[:2], targets[:2])
    assert (float(loss), right) == (float(alone), right_alone)


def test_batches_hold_tracks_of_about_the_same_time() -> None:
    stage = load_recipe("unlabelled", ["batch=12", "stage1.images_per_vehicle=3"]).stages[0]
    tracks = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 3))
    facts = journeys(*[(0, number, number + 0.1) for number in range(40)])
    seen = set()
    for epoch in range(4):
        order = stage_order(
            stage, np.full(120, -1), seed=1, number=0, epoch=epoch, vehicles=tracks, batch=12, journeys=facts
        )
        batches = [np.unique(tracks[batch]) for batch in order.reshape(-1, 12)]
        for batch in batches:
            # Four neighbours in time, also across midnight of the round.
            assert len(batch) == 4
            assert min(np.ptp((batch + shift) % 40) for shift in range(40)) == 3
        assert sorted(np.concatenate(batches)) == list(range(40))
        seen.add(tuple(map(tuple, batches)))
    assert len(seen) == 4


def test_stages_of_labels_leave_out_images_without_one() -> None:
    stage = load_recipe("lite").stages[0]
    classes = np.array([-1, 0, 1, -1, 0, 1])
    order = stage_order(stage, classes, seed=1, number=0, epoch=0)
    assert sorted(order) == [1, 2, 4, 5]


def test_recipes_of_tracks_need_negatives_that_show_other_vehicles() -> None:
    recipe = load_recipe("unlabelled")
    assert (recipe.labels_used, recipe.has_classifier, recipe.uses_journeys) == ("none", False, True)
    for override, message in (
        ("stage1.negatives=any", "may show one vehicle"),
        ("stage1.negatives=same_model", "may show one vehicle"),
        ("identity=vehicle", "compares the times of tracks"),
    ):
        with pytest.raises(BadSetting, match=message):
            load_recipe("unlabelled", [override])
    both = load_recipe("tracks", ["target.negatives=proven"])
    assert (both.labels_used, both.uses_journeys) == ("model", True)


def test_times_follow_their_images() -> None:
    images = LabeledImages(["a", "b"], np.array([-1, -1]), captured_at=np.array([5, 9]))
    assert images.take(np.array([1])).captured_at.tolist() == [9]
