"""Repeats counted together are what repeats counted one by one are: junk, ties and odd galleries included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.evaluation.cmc import LabeledFeatures, Split, cmc, cmc_of_splits
from index.exact import rank_counting as together
from infra.errors import BadInput, UnmatchedProbe


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(12, 80),
    draws=st.integers(1, 6),
    left_out=st.sampled_from([0.0, 0.1, 0.4, 0.9]),
    junk=st.booleans(),
    block=st.integers(1, 40),
)
def test_each_repeat_is_as_if_it_stood_alone(
    seed: int, rows: int, draws: int, left_out: float, junk: bool, block: int
) -> None:
    rng = np.random.default_rng(seed)
    pictures = LabeledFeatures(
        rng.integers(0, 3, (rows, 4)).astype(np.float32),
        rng.integers(0, 4, rows),
        rng.choice(["a", "b"], rows),
        np.arange(rows),
    )
    splits = []
    for _ in range(draws):
        gallery = np.flatnonzero(rng.random(rows) >= left_out)
        splits.append(Split(rng.permutation(rows)[: rng.integers(1, rows)], gallery))
    alone = [one for split in splits if (one := _alone(pictures, split, junk, block)) is not None]
    if len(alone) < draws:
        return  # a repeat in which no probe has a match is refused, alone and together
    found = cmc_of_splits(
        pictures, splits, block=block, same_camera_is_junk=junk, skip_unmatched=True, max_rank=10
    )
    for one, other in zip(alone, found, strict=True):
        assert one.ranks.tolist() == other.ranks.tolist()
        assert one.ranking.precision.tolist() == other.ranking.precision.tolist()
        assert one.ranking.penalty.tolist() == other.ranking.penalty.tolist()


def test_ten_draws_of_probes_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    count = together.count_negatives_ahead

    def counted(pool, in_gallery, *rest, **how):  # type: ignore[no-untyped-def]
        calls.append(len(in_gallery))
        return count(pool, in_gallery, *rest, **how)

    monkeypatch.setattr(together, "count_negatives_ahead", counted)
    rng = np.random.default_rng(1)
    pictures = LabeledFeatures(rng.standard_normal((80, 8)).astype(np.float32), np.arange(80) // 8)
    probes = [rng.integers(0, 8, 10) + np.arange(0, 80, 8) for _ in range(10)]
    cmc_of_splits(pictures, [Split(p, np.setdiff1d(np.arange(80), p)) for p in probes])
    assert calls == [11]  # what each repeat leaves out, and all pictures once
    cmc_of_splits(pictures, [Split(np.setdiff1d(np.arange(80), p), p) for p in probes])
    assert calls == [11, 10]  # small galleries: nothing to share


def _alone(pictures: LabeledFeatures, split: Split, junk: bool, block: int):  # type: ignore[no-untyped-def]
    def part(rows):  # type: ignore[no-untyped-def]
        return LabeledFeatures(
            *(getattr(pictures, name)[rows] for name in ("features", "vehicle_ids", "camera_ids", "crop_ids"))
        )

    try:
        return cmc(
            part(split.probes),
            part(split.gallery),
            block=block,
            same_camera_is_junk=junk,
            skip_unmatched=True,
            max_rank=10,
        )
    except (BadInput, UnmatchedProbe):
        return None
