"""Ranking spread over Ray workers: each takes a part of every repeat's probes against the whole gallery."""

from collections.abc import Sequence

import numpy as np
import ray

from index.evaluation.cmc import Cmc, LabeledFeatures, Ranking, Split, cmc_from_ranking, cmc_of_splits
from index.evaluation.protocols import Ranker
from infra.errors import UnmatchedProbe
from infra.settings import Settings
from jobs.runtime.ray_cluster import connect, root_cause


def workers(many: int, settings: Settings) -> Ranker:
    """A ranker that splits probes into `many` Ray tasks; the features travel once, as one object."""

    def rank(
        pictures: LabeledFeatures, splits: Sequence[Split], max_rank: int, junk: bool, skip_unmatched: bool
    ) -> list[Cmc]:
        connect(settings)
        stored = ray.put(pictures)
        task = ray.remote(_rank_part)
        waiting = [task.remote(stored, _part(splits, part, many), junk) for part in range(many)]
        try:
            answers = ray.get(waiting)
        except Exception as error:
            raise root_cause(error) from error
        results = []
        for repeat, split in enumerate(splits):
            ranking = _merge_rankings([answer[repeat] for answer in answers], len(split.probes))
            unmatched = int((ranking.matches == 0).sum())
            if unmatched and (not skip_unmatched or unmatched == len(ranking.matches)):
                raise UnmatchedProbe(f"{unmatched} of {len(ranking.matches)} probes have no true match")
            results.append(cmc_from_ranking(ranking, max_rank))
        return results

    return rank


def _part(splits: Sequence[Split], part: int, many: int) -> list[Split]:
    return [Split(split.probes[part::many], split.gallery) for split in splits]


def _rank_part(pictures: LabeledFeatures, splits: Sequence[Split], junk: bool) -> list[Ranking | None]:
    """The rankings of the splits that have probes here; probes without a true match are judged later."""
    answers: list[Ranking | None] = [None] * len(splits)
    vehicles = pictures.vehicle_ids
    some = [
        number
        for number, split in enumerate(splits)
        if len(split.probes) and np.isin(vehicles[split.probes], vehicles[split.gallery]).any()
    ]
    if some:
        found = cmc_of_splits(
            pictures, [splits[n] for n in some], same_camera_is_junk=junk, skip_unmatched=True
        )
        for number, result in zip(some, found, strict=True):
            answers[number] = result.ranking
    return answers


def _merge_rankings(parts: Sequence[Ranking | None], probes: int) -> Ranking:
    whole = Ranking(
        ranks=np.zeros(probes, dtype=np.int64),
        precision=np.zeros(probes),
        penalty=np.zeros(probes),
        matches=np.zeros(probes, dtype=np.int64),
        sizes=np.zeros(probes, dtype=np.int64),
    )
    for number, part in enumerate(parts):
        if part is not None:
            for name in ("ranks", "precision", "penalty", "matches", "sizes"):
                getattr(whole, name)[number :: len(parts)] = getattr(part, name)
    return whole
