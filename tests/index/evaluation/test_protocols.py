"""Protocols draw the splits of their rules, equal for equal seeds, and count excluded vehicles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.evaluation.protocols import (
    draw_splits,
    evaluate_protocol,
    leave_one_out,
    vehicleid_common,
    vehicleid_paper,
)
from infra.errors import BadLabels, BadSetting, UnmatchedProbe

IDS = np.array([5, 5, 5, 8, 8, 3, 9, 9])  # vehicle 3 has one image


def features(vehicle_ids: NDArray[np.int64], noise: float, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((int(vehicle_ids.max()) + 1, 16))
    return (centres[vehicle_ids] + noise * rng.standard_normal((len(vehicle_ids), 16))).astype(np.float32)


@given(ids=st.lists(st.integers(0, 9), min_size=1, max_size=60), seed=st.integers(0, 1000))
def test_paper_takes_one_probe_a_vehicle_and_the_rest_as_gallery(ids: list[int], seed: int) -> None:
    vehicle_ids = np.array(ids)
    split = vehicleid_paper(vehicle_ids, seed)
    usable = {v for v in ids if ids.count(v) > 1}
    assert sorted(vehicle_ids[split.probes]) == sorted(usable)
    together = np.concatenate([split.probes, split.gallery])
    assert sorted(together) == [row for row, v in enumerate(ids) if v in usable]


def test_common_is_the_reverse_of_paper() -> None:
    paper, common = vehicleid_paper(IDS, 4), vehicleid_common(IDS, 4)
    assert common.probes.tolist() == paper.gallery.tolist()
    assert common.gallery.tolist() == paper.probes.tolist()


def test_every_image_is_drawn_equally_often() -> None:
    drawn = np.concatenate(
        [split.probes for split in draw_splits("vehicleid-paper", IDS, repeats=3000, seed=1)]
    )
    assert np.bincount(drawn, minlength=8) / 3000 == pytest.approx(
        [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 0, 1 / 2, 1 / 2], abs=0.03
    )


def test_a_repeat_depends_on_its_seed_and_number_only() -> None:
    few = draw_splits("vehicleid-common", IDS, repeats=3, seed=7)
    many = draw_splits("vehicleid-common", IDS, repeats=9, seed=7)
    assert [s.gallery.tolist() for s in few] == [s.gallery.tolist() for s in many[:3]]
    other = draw_splits("vehicleid-common", IDS, repeats=9, seed=8)
    assert [s.gallery.tolist() for s in many] != [s.gallery.tolist() for s in other]


def test_leave_one_out_never_ranks_the_image_itself() -> None:
    ids = np.repeat(np.arange(20), 2)
    random = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    result = evaluate_protocol("leave-one-out", random, ids)
    assert result.curves.shape == (1, 50)
    assert result.curves[0, 0] < 0.3
    assert (result.probes, result.gallery, result.std.max()) == (40, 39, 0.0)
    assert leave_one_out(IDS).probes.tolist() == [0, 1, 2, 3, 4, 6, 7]


def test_the_two_protocols_differ_on_the_same_features() -> None:
    ids = np.repeat(np.arange(60), 8)
    noisy = features(ids, 0.9)
    paper = evaluate_protocol("vehicleid-paper", noisy, ids, max_rank=10)
    common = evaluate_protocol("vehicleid-common", noisy, ids, max_rank=10)
    assert paper.mean[0] > common.mean[0] + 0.1
    assert (paper.repeats, paper.probes, paper.gallery) == (10, 60, 420)
    assert (common.probes, common.gallery) == (420, 60)
    assert common.chance == pytest.approx(np.arange(1, 11) / 60)
    assert (np.diff(paper.mean) >= 0).all()
    assert 0 < paper.std[0] < 0.1
    assert paper.std == pytest.approx(paper.curves.std(axis=0, ddof=1))
    assert 0 < paper.figure("minp")[0] < paper.figure("map")[0] < 1


def test_the_summary_names_protocol_seed_and_exclusion() -> None:
    line = evaluate_protocol("vehicleid-paper", features(IDS, 0.1), IDS, seed=42).summary()
    for part in (
        "vehicleid-paper",
        "3 probes against 4 images of 3 vehicles",
        "10 times, seed 42",
        "1 excluded",
    ):
        assert part in line


def test_bad_requests_are_refused() -> None:
    with pytest.raises(BadSetting, match="unknown protocol 'market'"):
        draw_splits("market", IDS)
    with pytest.raises(BadSetting, match="repeats is 0"):
        draw_splits("vehicleid-paper", IDS, repeats=0)
    with pytest.raises(BadLabels, match="none of 4 vehicles has two images"):
        draw_splits("vehicleid-paper", np.arange(4))
    alone = draw_splits("vehicleid-paper", np.array([1, 1, 2, 2]))
    with pytest.raises(UnmatchedProbe):
        evaluate_protocol("vehicleid-paper", features(np.arange(4), 1), np.arange(4), splits=alone)
