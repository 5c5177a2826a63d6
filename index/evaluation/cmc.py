"""Cumulative matching characteristic (CMC) and mean average precision, exact, in memory bounded by the block.

The rank of a true match is one more than the number of gallery entries that stand before it, so ranks are
counted, never sorted (`index.counting`). Repeats of a protocol share the work (`index.repeats`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from index.exact.features import FeatureTable, ProbeTrials
from index.exact.rank_counting import count_negatives_ahead_shared
from infra.errors import BadInput, BadLabels, UnmatchedProbe

_Column = TypeVar("_Column", bound=np.generic)


@dataclass(frozen=True, slots=True)
class LabeledFeatures:
    """Features with the vehicles they show. `features` may be a memory map: only blocks of it are copied."""

    features: NDArray[np.float32]  # (n, d)
    vehicle_ids: NDArray[np.int64]  # (n,)
    camera_ids: NDArray[np.str_] | None = None  # (n,)
    crop_ids: NDArray[np.int64] | None = None  # (n,); a gallery entry with the probe's own id is left out

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
        """The given rows, in the given order."""
        return LabeledFeatures(
            self.features[rows],
            self.vehicle_ids[rows],
            None if self.camera_ids is None else self.camera_ids[rows],
            None if self.crop_ids is None else self.crop_ids[rows],
        )


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of a label table that are probes and gallery in one repeat."""

    probes: NDArray[np.int64]
    gallery: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ranking:
    """What was counted for each probe (p,), in the probes' order; 0 for a probe without a true match."""

    ranks: NDArray[np.int64]  # of the first true match
    precision: NDArray[np.float64]  # average precision over all its true matches
    penalty: NDArray[np.float64]  # inverse negative penalty: true matches / rank of the last one
    matches: NDArray[np.int64]  # true matches
    sizes: NDArray[np.int64]  # gallery entries that were ranked for it

    def take(self, rows: NDArray[np.int64]) -> "Ranking":
        """The given probes."""
        return Ranking(
            self.ranks[rows], self.precision[rows], self.penalty[rows], self.matches[rows], self.sizes[rows]
        )


@dataclass(frozen=True, slots=True)
class Cmc:
    """`curve[k - 1]` is the share of probes whose first true match stands at rank k or better."""

    curve: NDArray[np.float64]  # (max_rank,)
    probes: int  # that were ranked
    map: float  # mean average precision, over every true match of every probe
    minp: float  # mean inverse negative penalty: true matches / rank of the last one
    chance: NDArray[np.float64]  # (max_rank,) the curve that a random order of the same gallery would have
    ranking: Ranking  # of each probe, the skipped ones too
    skipped: int = 0  # probes without a true match

    @property
    def ranks(self) -> NDArray[np.int64]:
        """(all probes,) rank of the first true match; 0 for a probe that was skipped."""
        return self.ranking.ranks


def cmc(
    probes: LabeledFeatures,
    gallery: LabeledFeatures,
    *,
    max_rank: int = 50,
    block: int = 1024,
    same_camera_is_junk: bool = False,
    skip_unmatched: bool = False,
    device: str = "cpu",
) -> Cmc:
    """Rank the gallery for each probe by ascending L2 distance and count true matches.

    probes, gallery: float32 features (n, d) with int64 vehicle ids (n,). Distances are those of float64;
    equal ones rank by gallery order. `same_camera_is_junk` leaves out, for each probe, its vehicle's pictures
    from its own camera (the rule of VeRi and Market-1501). Memory: the features, one block of scores, and
    some 50 bytes for each pair of a probe and a picture of its vehicle.
    Raises UnmatchedProbe if a probe's vehicle is not in the gallery, unless `skip_unmatched`; BadInput for
    features that are not finite or not of one dimension; BadLabels if the junk rule lacks camera ids.
    Source: the paper, section 4, "Evaluation Protocol"; mINP: Ye et al., arXiv 2001.04193, section 4.2.
    """
    if len(probes.features) and len(gallery.features):
        dimensions = probes.features.shape[1], gallery.features.shape[1]
        if dimensions[0] != dimensions[1]:
            raise BadInput(f"probes have {dimensions[0]} dimensions, the gallery has {dimensions[1]}")
    many = len(probes.features)
    split = Split(np.arange(many), many + np.arange(len(gallery.features)))
    table = _EvaluationTable(
        FeatureTable((probes.features, gallery.features)),
        np.concatenate([probes.vehicle_ids, gallery.vehicle_ids]),
        _joined(probes.camera_ids, gallery.camera_ids),
        _joined(probes.crop_ids, gallery.crop_ids),
    )
    return _rank(table, [split], max_rank, block, same_camera_is_junk, skip_unmatched, device)[0]


def cmc_of_splits(
    pictures: LabeledFeatures,
    splits: Sequence[Split],
    *,
    max_rank: int = 50,
    block: int = 1024,
    same_camera_is_junk: bool = False,
    skip_unmatched: bool = False,
    device: str = "cpu",
) -> list[Cmc]:
    """`cmc` of several splits of the same pictures, in one pass: two pictures are compared once at most.

    The gallery's order, by which equal distances rank, is the order of `pictures`. A picture that is probe
    and gallery entry alike is not ranked for itself. Raises what `cmc` raises.
    """
    own = np.arange(len(pictures.features)) if pictures.crop_ids is None else pictures.crop_ids
    table = _EvaluationTable(
        FeatureTable((pictures.features,)), pictures.vehicle_ids, pictures.camera_ids, own
    )
    return _rank(table, splits, max_rank, block, same_camera_is_junk, skip_unmatched, device)


def cmc_from_ranking(ranking: Ranking, max_rank: int) -> Cmc:
    """The figures of probes that were ranked; those without a true match are counted as skipped."""
    rows = np.flatnonzero(ranking.matches)
    some = ranking.take(rows)
    shares = np.bincount(np.minimum(some.ranks, max_rank + 1), minlength=max_rank + 2)[1:-1]
    return Cmc(
        curve=np.cumsum(shares) / len(rows),
        probes=len(rows),
        map=float(some.precision.mean()),
        minp=float(some.penalty.mean()),
        chance=chance_curve(some.matches, some.sizes, max_rank),
        ranking=ranking,
        skipped=len(ranking.matches) - len(rows),
    )


def chance_curve(matches: NDArray[np.int64], sizes: NDArray[np.int64], max_rank: int) -> NDArray[np.float64]:
    """The CMC of a random order: `matches` true ones among `sizes` gallery entries for each probe."""
    cases, weight = np.unique(np.stack([matches, sizes]), axis=1, return_counts=True)
    drawn = np.arange(max_rank)
    left = np.maximum(cases[1][:, None] - drawn, 1)
    wrong = np.clip(cases[1][:, None] - cases[0][:, None] - drawn, 0, None)
    missed = np.cumprod(wrong / left, axis=1)
    return np.asarray(1.0 - np.average(missed, axis=0, weights=weight), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _EvaluationTable:
    pool: FeatureTable
    vehicle_ids: NDArray[np.int64]
    camera_ids: NDArray[np.str_] | None
    crop_ids: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class _PositivePairs:
    """Every pair of a picture that is ever a probe and one of its vehicle, by probe row, then by row."""

    probe: NDArray[np.int64]
    entry: NDArray[np.int64]
    counts: NDArray[np.bool_]  # False for junk and for the probe's own picture
    squared: NDArray[np.float64]  # exact; NaN where it does not count


def _rank(
    table: _EvaluationTable,
    splits: Sequence[Split],
    max_rank: int,
    block: int,
    junk: bool,
    skip_unmatched: bool,
    device: str,
) -> list[Cmc]:
    _check(table, splits, max_rank, block, junk)
    in_gallery = np.zeros((len(splits), len(table.vehicle_ids)), dtype=np.bool_)
    for repeat, split in enumerate(splits):
        in_gallery[repeat, split.gallery] = True
    probe = np.concatenate([split.probes for split in splits])
    repeat_of = np.repeat(np.arange(len(splits)), [len(split.probes) for split in splits])
    pairs = _pairs_of_one_vehicle(table, np.unique(probe), np.flatnonzero(in_gallery.any(axis=0)), junk)
    trials, left_out = _trials(probe, repeat_of, pairs, in_gallery)
    for repeat in range(len(splits)):
        _check_matched(trials, repeat, table.vehicle_ids, skip_unmatched)
    closer = count_negatives_ahead_shared(
        table.pool, in_gallery, trials, (pairs.probe, pairs.entry), block=block, device=device
    )
    ranking = _ranking(trials, closer, in_gallery.sum(axis=1)[repeat_of] - left_out)
    return [
        cmc_from_ranking(ranking.take(np.flatnonzero(repeat_of == r)), max_rank) for r in range(len(splits))
    ]


def _check(table: _EvaluationTable, splits: Sequence[Split], max_rank: int, block: int, junk: bool) -> None:
    for split in splits:
        if not len(split.probes) or not len(split.gallery):
            raise BadInput(
                f"{len(split.probes)} probes and {len(split.gallery)} gallery entries: nothing to rank"
            )
    if max_rank < 1 or not 1 <= block <= 1 << 20:
        raise BadInput(f"max_rank {max_rank} must be at least 1, block {block} between 1 and 1,048,576")
    if junk and table.camera_ids is None:
        raise BadLabels("leaving out the same camera needs camera ids for probes and gallery")


def _pairs_of_one_vehicle(
    table: _EvaluationTable, probes: NDArray[np.int64], gallery: NDArray[np.int64], junk: bool
) -> _PositivePairs:
    by_vehicle = gallery[np.argsort(table.vehicle_ids[gallery], kind="stable")]
    vehicles = table.vehicle_ids[by_vehicle]
    start = np.searchsorted(vehicles, table.vehicle_ids[probes], "left")
    many = np.searchsorted(vehicles, table.vehicle_ids[probes], "right") - start
    probe = np.repeat(probes, many)
    entry = by_vehicle[np.repeat(start, many) + _segmented_arange(many)]
    counts = np.ones(len(probe), dtype=np.bool_)
    if table.crop_ids is not None:
        counts &= table.crop_ids[probe] != table.crop_ids[entry]
    if junk and table.camera_ids is not None:
        counts &= table.camera_ids[probe] != table.camera_ids[entry]
    squared = np.full(len(probe), np.nan)
    squared[counts] = table.pool.squared(probe[counts], entry[counts])
    return _PositivePairs(probe, entry, counts, squared)


def _trials(
    probe: NDArray[np.int64],
    repeat: NDArray[np.int64],
    pairs: _PositivePairs,
    in_gallery: NDArray[np.bool_],
) -> tuple[ProbeTrials, NDArray[np.int64]]:
    """All trials, and for each how many gallery entries are left out as junk or as the probe itself."""
    start = np.searchsorted(pairs.probe, probe, "left")
    many = np.searchsorted(pairs.probe, probe, "right") - start
    trial = np.repeat(np.arange(len(probe)), many)
    pair = np.repeat(start, many) + _segmented_arange(many)
    there = in_gallery[repeat[trial], pairs.entry[pair]]
    left_out = np.bincount(trial[there & ~pairs.counts[pair]], minlength=len(probe))
    true = there & pairs.counts[pair]
    trial, pair = trial[true], pair[true]
    order = np.lexsort((pairs.entry[pair], pairs.squared[pair], trial))
    trial, pair = trial[order], pair[order]
    matches = np.bincount(trial, minlength=len(probe))
    return ProbeTrials(probe, repeat, matches, pairs.entry[pair], pairs.squared[pair]), left_out


def _check_matched(
    trials: ProbeTrials, repeat: int, vehicle_ids: NDArray[np.int64], skip_unmatched: bool
) -> None:
    here = trials.repeat == repeat
    unmatched = np.flatnonzero(here & (trials.matches == 0))
    if len(unmatched) and (not skip_unmatched or len(unmatched) == here.sum()):
        raise UnmatchedProbe(
            f"{len(unmatched)} of {here.sum()} probes have no true match in the gallery, "
            f"the first of vehicle {vehicle_ids[trials.probe[unmatched[0]]]}",
            remedy="leave these vehicles out (the named protocols do), or give a gallery that has them",
        )


def _ranking(trials: ProbeTrials, closer: NDArray[np.int64], sizes: NDArray[np.int64]) -> Ranking:
    """`closer` runs over true matches, nearest first in each trial; the n-th has n - 1 of them before it."""
    matches = trials.matches
    matched = matches > 0
    first = np.cumsum(matches) - matches
    nth = _segmented_arange(matches) + 1
    trial = np.repeat(np.arange(len(matches)), matches)
    ranks = np.zeros(len(matches), dtype=np.int64)
    ranks[matched] = closer[first[matched]] + 1
    penalty = np.zeros(len(matches))
    last = closer[(first + matches - 1)[matched]] + matches[matched]
    penalty[matched] = matches[matched] / last
    summed = np.bincount(trial, nth / (closer + nth), minlength=len(matches))
    return Ranking(ranks, summed / np.maximum(matches, 1), penalty, matches, sizes)


def _segmented_arange(many: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, …, many[0] - 1, 0, 1, …, many[1] - 1, and so on."""
    return np.asarray(np.arange(int(many.sum())) - np.repeat(np.cumsum(many) - many, many))


def _joined(left: NDArray[_Column] | None, right: NDArray[_Column] | None) -> NDArray[_Column] | None:
    return None if left is None or right is None else np.concatenate([left, right])
