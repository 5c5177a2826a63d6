"""Repeats counted together equal repeats counted one by one, with junk, ties and any galleries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.evaluation.cmc import LabeledFeatures, Split, cmc, cmc_of_splits
from index.exact import rank_counting
from infra.errors import BadInput, UnmatchedProbe


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(12, 80),
    draws=st.integers(1, 6),
    excluded=st.sampled_from([0.0, 0.1, 0.4, 0.9]),
    junk=st.booleans(),
    block_size=st.integers(1, 40),
)
def test_each_repeat_equals_a_count_of_its_own(
    seed: int, rows: int, draws: int, excluded: float, junk: bool, block_size: int
) -> None:
    rng = np.random.default_rng(seed)
    images = LabeledFeatures(
        rng.integers(0, 3, (rows, 4)).astype(np.float32),
        rng.integers(0, 4, rows),
        rng.choice(["a", "b"], rows),
        np.arange(rows),
    )
    splits = []
    for _ in range(draws):
        gallery = np.flatnonzero(rng.random(rows) >= excluded)
        splits.append(Split(rng.permutation(rows)[: rng.integers(1, rows)], gallery))
    alone = [result for split in splits if (result := _alone(images, split, junk, block_size)) is not None]
    if len(alone) < draws:
        return  # a repeat in which no probe has a match is refused, alone and together
    together = cmc_of_splits(
        images, splits, block_size=block_size, same_camera_is_junk=junk, skip_unmatched=True, max_rank=10
    )
    for expected, result in zip(alone, together, strict=True):
        assert result.ranking.positive_ranks.tolist() == expected.ranking.positive_ranks.tolist()
        assert result.ranking.num_positives.tolist() == expected.ranking.num_positives.tolist()
        assert result.means == expected.means


def test_a_probe_of_many_draws_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[int] = []
    choose = rank_counting.choose_screen

    def record(features, *args, **kwargs):  # type: ignore[no-untyped-def]
        probes.append(len(features))
        return choose(features, *args, **kwargs)

    monkeypatch.setattr(rank_counting, "choose_screen", record)
    rng = np.random.default_rng(1)
    images = LabeledFeatures(rng.standard_normal((80, 8)).astype(np.float32), np.arange(80) // 8)
    draws = [rng.integers(0, 8, 10) + np.arange(0, 80, 8) for _ in range(30)]
    cmc_of_splits(images, [Split(draw, np.setdiff1d(np.arange(80), draw)) for draw in draws])
    assert probes == [len(np.unique(draws))]


def _alone(images: LabeledFeatures, split: Split, junk: bool, block_size: int):  # type: ignore[no-untyped-def]
    def part(rows):  # type: ignore[no-untyped-def]
        return LabeledFeatures(
            *(getattr(images, name)[rows] for name in ("features", "vehicle_ids", "camera_ids", "crop_ids"))
        )

    try:
        return cmc(
            part(split.probes),
            part(split.gallery),
            block_size=block_size,
            same_camera_is_junk=junk,
            skip_unmatched=True,
            max_rank=10,
        )
    except (BadInput, UnmatchedProbe):
        return None
