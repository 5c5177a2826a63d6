"""Cumulative matching characteristic (CMC) and the other metrics of a ranking, exact, in bounded memory.

The rank of a positive is one more than the number of gallery entries ahead of it, so ranks are counted
(`index.exact.rank_counting`) and the gallery is never sorted. Repeats of a protocol share the work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from index.evaluation.metrics import COMPUTED, Ranking, segmented_arange
from index.exact.features import FeatureTable, ProbeTrials
from index.exact.numba_kernels import rank_order
from index.exact.rank_counting import count_negatives_ahead
from infra.errors import BadInput, BadLabels, UnmatchedProbe

_MAX_MEMBERSHIPS = 1 << 28  # of images in galleries, a byte each, in memory at once

_Column = TypeVar("_Column", bound=np.generic)


@dataclass(frozen=True, slots=True)
class LabeledFeatures:
    """Features with the vehicles they show. `features` may be a memory map: only blocks of it are copied."""

    features: NDArray[np.float32]  # (n, d)
    vehicle_ids: NDArray[np.int64]  # (n,)
    camera_ids: NDArray[np.str_] | None = None  # (n,)
    crop_ids: NDArray[np.int64] | None = None  # (n,); a gallery entry with the probe's id is not ranked

    def __post_init__(self) -> None:
        if self.features.ndim != 2:
            raise BadInput(
                f"features must be rows of one length, not an array of shape {self.features.shape}"
            )
        for name in ("vehicle_ids", "camera_ids", "crop_ids"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.features):
                raise BadLabels(f"{len(column)} {name} for {len(self.features)} features")

    def take(self, rows: NDArray[np.int64]) -> "LabeledFeatures":
        """Return the given rows, in the given order."""
        return LabeledFeatures(
            features=self.features[rows],
            vehicle_ids=self.vehicle_ids[rows],
            camera_ids=None if self.camera_ids is None else self.camera_ids[rows],
            crop_ids=None if self.crop_ids is None else self.crop_ids[rows],
        )


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of a label table that are probes and gallery in one repeat.

    `parts` divide the probes, in their order, where not all of them have the same gallery; `gallery` is then
    the union of theirs.
    """

    probes: NDArray[np.int64]
    gallery: NDArray[np.int64]
    parts: "tuple[Split, ...]" = ()

    @classmethod
    def of_parts(cls, parts: "Sequence[Split]") -> "Split":
        """Join splits of different galleries to one repeat."""
        return cls(
            probes=np.concatenate([part.probes for part in parts]),
            gallery=np.unique(np.concatenate([part.gallery for part in parts])),
            parts=tuple(parts),
        )

    @property
    def one_gallery_each(self) -> "tuple[Split, ...]":
        """The parts, or the split itself if all its probes have the same gallery."""
        return self.parts or (self,)


@dataclass(frozen=True, slots=True)
class Cmc:
    """`curve[k - 1]` is the share of probes whose first positive is at rank k or better."""

    curve: NDArray[np.float64]  # (max_rank,)
    probes: int  # that have a positive
    means: Mapping[str, float]  # of each of `COMPUTED` by its name, over these probes
    chance: NDArray[np.float64]  # (max_rank,) the curve of a random order of the same gallery
    ranking: Ranking  # of all probes
    skipped: int = 0  # probes without a positive

    @property
    def first_ranks(self) -> NDArray[np.int64]:
        """Rank of the first positive (all probes,); 0 for a skipped probe."""
        return self.ranking.first_ranks

    @property
    def mean_ap(self) -> float:
        """Mean average precision."""
        return self.means["map"]


def cmc(
    probes: LabeledFeatures,
    gallery: LabeledFeatures,
    *,
    max_rank: int = 50,
    block_size: int = 2048,
    same_camera_is_junk: bool = False,
    skip_unmatched: bool = False,
    device: str = "cpu",
) -> Cmc:
    """Rank the gallery for each probe by ascending L2 distance, and compute the metrics.

    probes, gallery: float32 features (n, d) with int64 vehicle ids (n,). Distances are those of float64;
    equal ones rank by gallery order. `same_camera_is_junk` excludes, for each probe, the images of its
    vehicle by its camera (the rule of VeRi and Market-1501). Memory: the features, blocks of them, a tile of
    scores, and about 50 bytes for each pair of a probe and an image of its vehicle.
    Raises UnmatchedProbe if a probe's vehicle is not in the gallery, unless `skip_unmatched`; BadInput for
    features that are not finite or not of one dimension; BadLabels if the junk rule lacks camera ids.
    Source: the paper, section 4, "Evaluation Protocol".
    """
    if len(probes.features) and len(gallery.features):
        dimensions = probes.features.shape[1], gallery.features.shape[1]
        if dimensions[0] != dimensions[1]:
            raise BadInput(f"probes have {dimensions[0]} dimensions, the gallery has {dimensions[1]}")
    num_probes = len(probes.features)
    split = Split(np.arange(num_probes), num_probes + np.arange(len(gallery.features)))
    table = _EvaluationTable(
        features=FeatureTable((probes.features, gallery.features)),
        vehicle_ids=np.concatenate([probes.vehicle_ids, gallery.vehicle_ids]),
        camera_ids=_concatenate(probes.camera_ids, gallery.camera_ids),
        crop_ids=_concatenate(probes.crop_ids, gallery.crop_ids),
    )
    (result,) = _rank(
        table,
        [split],
        max_rank=max_rank,
        block_size=block_size,
        junk=same_camera_is_junk,
        skip_unmatched=skip_unmatched,
        device=device,
    )
    return result


def cmc_of_splits(
    images: LabeledFeatures,
    splits: Sequence[Split],
    *,
    max_rank: int = 50,
    block_size: int = 2048,
    same_camera_is_junk: bool = False,
    skip_unmatched: bool = False,
    device: str = "cpu",
) -> list[Cmc]:
    """`cmc` of several splits of the same images, in one pass that compares two images at most once.

    The gallery order, by which equal distances rank, is the order of `images`. An image that is both probe
    and gallery entry is not ranked for itself. Raises the errors of `cmc`.
    """
    crop_ids = np.arange(len(images.features)) if images.crop_ids is None else images.crop_ids
    table = _EvaluationTable(
        features=FeatureTable((images.features,)),
        vehicle_ids=images.vehicle_ids,
        camera_ids=images.camera_ids,
        crop_ids=crop_ids,
    )
    return _rank(
        table,
        splits,
        max_rank=max_rank,
        block_size=block_size,
        junk=same_camera_is_junk,
        skip_unmatched=skip_unmatched,
        device=device,
    )


def rankings_of_splits(rankings: Sequence[Ranking], splits: Sequence[Split]) -> list[Ranking]:
    """Join the rankings of all `one_gallery_each` of some splits to one ranking for each split."""
    remaining = iter(rankings)
    return [Ranking.concatenate([next(remaining) for _ in split.one_gallery_each]) for split in splits]


def cmc_from_ranking(ranking: Ranking, max_rank: int) -> Cmc:
    """Compute curve and metrics of ranked probes; probes without a positive count as skipped."""
    rows = np.flatnonzero(ranking.has_positive)
    ranked = ranking.take(rows)
    hits = np.bincount(np.minimum(ranked.first_ranks, max_rank + 1), minlength=max_rank + 2)[1:-1]
    return Cmc(
        curve=np.cumsum(hits) / len(rows),
        probes=len(rows),
        means={metric.name: metric.mean(ranked) for metric in COMPUTED},
        chance=chance_curve(ranked.num_positives, ranked.gallery_sizes, max_rank),
        ranking=ranking,
        skipped=len(ranking.num_positives) - len(rows),
    )


def chance_curve(
    num_positives: NDArray[np.int64], gallery_sizes: NDArray[np.int64], max_rank: int
) -> NDArray[np.float64]:
    """The CMC (max_rank,) of a random order, for the positives and the gallery size of each probe (p,)."""
    cases, weights = np.unique(np.stack([num_positives, gallery_sizes]), axis=1, return_counts=True)
    drawn = np.arange(max_rank)
    remaining = np.maximum(cases[1][:, None] - drawn, 1)
    negatives = np.clip(cases[1][:, None] - cases[0][:, None] - drawn, 0, None)
    missed = np.cumprod(negatives / remaining, axis=1)
    return np.asarray(1.0 - np.average(missed, axis=0, weights=weights), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _EvaluationTable:
    """All images of an evaluation and their labels, by row."""

    features: FeatureTable
    vehicle_ids: NDArray[np.int64]
    camera_ids: NDArray[np.str_] | None
    crop_ids: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class _PositivePairs:
    """All pairs (m,) of a probe and a gallery image of its vehicle, by probe row, then by gallery row."""

    probe_row: NDArray[np.int64]
    gallery_row: NDArray[np.int64]
    is_ranked: NDArray[np.bool_]  # False for junk and for the probe's own image
    sq_dist: NDArray[np.float64]  # exact; NaN where the pair is not ranked


def _rank(
    table: _EvaluationTable,
    splits: Sequence[Split],
    *,
    max_rank: int,
    block_size: int,
    junk: bool,
    skip_unmatched: bool,
    device: str,
) -> list[Cmc]:
    parts = [part for split in splits for part in split.one_gallery_each]
    _check(table, parts, max_rank, block_size, junk)
    at_once = max(1, _MAX_MEMBERSHIPS // len(table.vehicle_ids))
    ranked = [
        ranking
        for start in range(0, len(parts), at_once)
        for ranking in _rankings(table, parts[start : start + at_once], block_size, junk, device)
    ]
    rankings = rankings_of_splits(ranked, splits)
    for split, ranking in zip(splits, rankings, strict=True):
        _check_matched(ranking, table.vehicle_ids[split.probes], skip_unmatched)
    return [cmc_from_ranking(ranking, max_rank) for ranking in rankings]


def _rankings(
    table: _EvaluationTable, splits: Sequence[Split], block_size: int, junk: bool, device: str
) -> list[Ranking]:
    in_gallery = np.zeros((len(splits), len(table.vehicle_ids)), dtype=np.bool_)
    for repeat, split in enumerate(splits):
        in_gallery[repeat, split.gallery] = True
    probe_row = np.concatenate([split.probes for split in splits])
    repeat_of = np.repeat(np.arange(len(splits)), [len(split.probes) for split in splits])
    gallery_rows = np.flatnonzero(in_gallery.any(axis=0))
    pairs = _positive_pairs(table, np.unique(probe_row), gallery_rows, junk)
    trials, num_excluded = _make_trials(probe_row, repeat_of, pairs, in_gallery)
    num_ahead = count_negatives_ahead(
        table.features,
        in_gallery,
        trials,
        (pairs.probe_row, pairs.gallery_row),
        block_size=block_size,
        device=device,
    )
    gallery_sizes = in_gallery.sum(axis=1)[repeat_of] - num_excluded
    ranking = Ranking.from_counts(num_ahead, trials.num_targets, gallery_sizes)
    return [ranking.take(np.flatnonzero(repeat_of == repeat)) for repeat in range(len(splits))]


def _check(
    table: _EvaluationTable, splits: Sequence[Split], max_rank: int, block_size: int, junk: bool
) -> None:
    for split in splits:
        if not len(split.probes) or not len(split.gallery):
            raise BadInput(
                f"{len(split.probes)} probes and {len(split.gallery)} gallery entries: nothing to rank"
            )
    if max_rank < 1 or not 1 <= block_size <= 1 << 20:
        raise BadInput(
            f"max_rank {max_rank} must be at least 1, block_size {block_size} between 1 and 1,048,576"
        )
    if junk and table.camera_ids is None:
        raise BadLabels("excluding the probe's camera needs camera ids for probes and gallery")


def _positive_pairs(
    table: _EvaluationTable, probe_rows: NDArray[np.int64], gallery_rows: NDArray[np.int64], junk: bool
) -> _PositivePairs:
    by_vehicle = gallery_rows[np.argsort(table.vehicle_ids[gallery_rows], kind="stable")]
    vehicles = table.vehicle_ids[by_vehicle]
    start = np.searchsorted(vehicles, table.vehicle_ids[probe_rows], "left")
    counts = np.searchsorted(vehicles, table.vehicle_ids[probe_rows], "right") - start
    probe_row = np.repeat(probe_rows, counts)
    gallery_row = by_vehicle[np.repeat(start, counts) + segmented_arange(counts)]
    is_ranked = np.ones(len(probe_row), dtype=np.bool_)
    if table.crop_ids is not None:
        is_ranked &= table.crop_ids[probe_row] != table.crop_ids[gallery_row]
    if junk and table.camera_ids is not None:
        is_ranked &= table.camera_ids[probe_row] != table.camera_ids[gallery_row]
    sq_dist = np.full(len(probe_row), np.nan)
    sq_dist[is_ranked] = table.features.pair_sq_distances(probe_row[is_ranked], gallery_row[is_ranked])
    return _PositivePairs(probe_row=probe_row, gallery_row=gallery_row, is_ranked=is_ranked, sq_dist=sq_dist)


def _make_trials(
    probe_row: NDArray[np.int64],
    repeat: NDArray[np.int64],
    pairs: _PositivePairs,
    in_gallery: NDArray[np.bool_],
) -> tuple[ProbeTrials, NDArray[np.int64]]:
    """All trials (v,), and for each the number of gallery entries that are junk or the probe itself."""
    start = np.searchsorted(pairs.probe_row, probe_row, "left")
    counts = np.searchsorted(pairs.probe_row, probe_row, "right") - start
    trial = np.repeat(np.arange(len(probe_row)), counts)
    pair = np.repeat(start, counts) + segmented_arange(counts)
    is_in_gallery = in_gallery[repeat[trial], pairs.gallery_row[pair]]
    is_ranked = pairs.is_ranked[pair]
    num_excluded = np.bincount(trial[is_in_gallery & ~is_ranked], minlength=len(probe_row))
    is_target = is_in_gallery & is_ranked
    trial, pair = trial[is_target], pair[is_target]
    order = rank_order(pairs.sq_dist[pair], pairs.gallery_row[pair], trial)
    trial, pair = trial[order], pair[order]
    trials = ProbeTrials(
        probe_row=probe_row,
        repeat=repeat,
        num_targets=np.bincount(trial, minlength=len(probe_row)),
        target_row=pairs.gallery_row[pair],
        target_sq_dist=pairs.sq_dist[pair],
    )
    return trials, num_excluded


def _check_matched(ranking: Ranking, vehicle_ids: NDArray[np.int64], skip_unmatched: bool) -> None:
    unmatched = np.flatnonzero(~ranking.has_positive)
    if len(unmatched) and (not skip_unmatched or len(unmatched) == len(vehicle_ids)):
        raise UnmatchedProbe(
            f"{len(unmatched)} of {len(vehicle_ids)} probes have no true match in the gallery, "
            f"the first of vehicle {vehicle_ids[unmatched[0]]}",
            remedy="exclude these vehicles (the named protocols do), or give a gallery that has them",
        )


def _concatenate(left: NDArray[_Column] | None, right: NDArray[_Column] | None) -> NDArray[_Column] | None:
    return None if left is None or right is None else np.concatenate([left, right])
