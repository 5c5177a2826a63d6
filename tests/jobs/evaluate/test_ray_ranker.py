"""A ranking that is spread over workers equals that of one process, whatever the number of parts."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from index.evaluation.cmc import LabeledFeatures, Split, cmc_of_splits
from index.evaluation.rerank import rerank
from infra.errors import UnmatchedProbe
from infra.settings import load_settings
from jobs.evaluate import ray_ranker


@pytest.fixture(autouse=True)
def tasks_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def remote(function: Callable[..., object]) -> SimpleNamespace:
        return SimpleNamespace(remote=function)

    monkeypatch.setattr(ray_ranker, "connect", lambda settings: None)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "get", lambda values: values)
    monkeypatch.setattr(ray, "remote", remote)


def make_images() -> LabeledFeatures:
    rng = np.random.default_rng(0)
    return LabeledFeatures(
        rng.integers(0, 3, (60, 4)).astype(np.float32), np.arange(60) % 7, rng.choice(["a", "b"], 60)
    )


@pytest.mark.parametrize("num_parts", [1, 3, 50])
def test_parts_merge_into_the_ranking_of_one_process(num_parts: int) -> None:
    images = make_images()
    splits = [Split(np.arange(0, 48, 2), np.arange(1, 60, 2)), Split(np.arange(10), np.arange(8, 40))]
    rank = ray_ranker.make_ray_ranker(num_parts, load_settings({}))
    options = {"max_rank": 20, "same_camera_is_junk": False, "skip_unmatched": True}
    expected = cmc_of_splits(images, splits, **options)
    for result, single in zip(rank(images, splits, **options), expected, strict=True):
        assert result.first_ranks.tolist() == single.first_ranks.tolist()
        assert result.curve.tolist() == single.curve.tolist()
        assert result.means == single.means
        assert result.skipped == single.skipped


def test_a_probe_without_a_positive_is_refused_unless_skipped() -> None:
    splits = [Split(np.arange(10), np.arange(20, 25))]
    rank = ray_ranker.make_ray_ranker(2, load_settings({}))
    with pytest.raises(UnmatchedProbe, match="2 of 10 probes"):
        rank(make_images(), splits, max_rank=5, same_camera_is_junk=False, skip_unmatched=False)


def test_parts_with_their_own_galleries_merge_too() -> None:
    images = make_images()
    parts = [Split(np.arange(0, 30, 4), np.arange(40)), Split(np.arange(1, 30, 4), np.arange(20, 60))]
    options = {"max_rank": 20, "same_camera_is_junk": False, "skip_unmatched": True}
    (expected,) = cmc_of_splits(images, [Split.of_parts(parts)], **options)
    rank = ray_ranker.make_ray_ranker(3, load_settings({}))
    (result,) = rank(images, [Split.of_parts(parts)], **options)
    assert result.first_ranks.tolist() == expected.first_ranks.tolist()
    assert result.means == expected.means


def test_re_ranking_in_tasks_equals_that_of_one_process() -> None:
    images, split = make_images(), Split(np.arange(0, 48, 2), np.arange(1, 60, 2))
    run = ray_ranker.make_ray_blocks(load_settings({}))
    expected, result = rerank(images, split), rerank(images, split, run=run)
    assert result.ranking.positive_ranks.tolist() == expected.ranking.positive_ranks.tolist()
