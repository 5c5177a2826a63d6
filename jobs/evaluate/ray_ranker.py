"""Ranking and re-ranking on Ray workers, by parts of the probes and by blocks of images."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import ray

from index.evaluation.cmc import (
    Cmc,
    LabeledFeatures,
    Split,
    cmc_from_ranking,
    cmc_of_splits,
    rankings_of_splits,
)
from index.evaluation.metrics import Ranking
from index.evaluation.protocols import Ranker
from index.exact.k_reciprocal import Block, RunBlocks
from infra.errors import UnmatchedProbe
from infra.settings import Settings
from jobs.runtime.ray_cluster import connect, root_cause

_Result = TypeVar("_Result")


def make_ray_ranker(num_parts: int, settings: Settings) -> Ranker:
    """Return a ranker that splits the probes into Ray tasks; the features travel once, as one object."""

    def rank(
        images: LabeledFeatures,
        splits: Sequence[Split],
        *,
        max_rank: int,
        same_camera_is_junk: bool,
        skip_unmatched: bool,
    ) -> list[Cmc]:
        connect(settings)
        one_gallery_each = [part for split in splits for part in split.one_gallery_each]
        images_ref = ray.put(images)
        task = ray.remote(_rank_part)
        tasks = [
            task.remote(images_ref, _part_of(one_gallery_each, part, num_parts), same_camera_is_junk)
            for part in range(num_parts)
        ]
        try:
            parts: list[list[Ranking]] = ray.get(tasks)
        except Exception as error:
            raise root_cause(error) from error
        results = []
        merged = [_merge_rankings(rankings) for rankings in zip(*parts, strict=True)]
        for ranking in rankings_of_splits(merged, splits):
            num_probes, num_unmatched = len(ranking.num_positives), int((~ranking.has_positive).sum())
            if num_unmatched and (not skip_unmatched or num_unmatched == num_probes):
                raise UnmatchedProbe(f"{num_unmatched} of {num_probes} probes have no true match")
            results.append(cmc_from_ranking(ranking, max_rank))
        return results

    return rank


def make_ray_blocks(settings: Settings) -> RunBlocks:
    """Return a runner of blocks as Ray tasks; what they share travels once, each as one object."""

    def run(
        function: Callable[..., _Result], shared: Sequence[Any], blocks: Sequence[Block]
    ) -> list[_Result]:
        connect(settings)
        refs = [ray.put(value) for value in shared]
        task = ray.remote(function)
        try:
            results: list[_Result] = ray.get([task.remote(*refs, block) for block in blocks])
        except Exception as error:
            raise root_cause(error) from error
        return results

    return run


def _part_of(splits: Sequence[Split], part: int, num_parts: int) -> list[Split]:
    return [Split(split.probes[part::num_parts], split.gallery) for split in splits]


def _rank_part(images: LabeledFeatures, splits: Sequence[Split], junk: bool) -> list[Ranking]:
    """Rank one part of the probes of each split. The caller checks for probes without a positive."""
    rankings = [Ranking.empty(len(split.probes)) for split in splits]
    vehicles = images.vehicle_ids
    rankable = [
        number
        for number, split in enumerate(splits)
        if len(split.probes) and np.isin(vehicles[split.probes], vehicles[split.gallery]).any()
    ]
    if rankable:
        results = cmc_of_splits(
            images,
            [splits[number] for number in rankable],
            same_camera_is_junk=junk,
            skip_unmatched=True,
        )
        for number, result in zip(rankable, results, strict=True):
            rankings[number] = result.ranking
    return rankings


def _merge_rankings(parts: Sequence[Ranking]) -> Ranking:
    """Undo `_part_of`: probe i of a split is probe i // n of part i % n."""
    sizes = np.array([len(part.num_positives) for part in parts])
    start = np.cumsum(sizes) - sizes
    probes = np.arange(int(sizes.sum()))
    return Ranking.concatenate(parts).take(start[probes % len(parts)] + probes // len(parts))
