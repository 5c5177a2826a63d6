"""Tracks as the unit of an evaluation: a probe, or the track it is on, against the tracks of the gallery.

A unit is a track of one vehicle at one camera; an image without a track is a unit of its own. The splits are
those of images: the gallery of a probe is the units of its images, each with its images in this gallery, so
that the figures stand beside those of images. The probe's own track is never ranked, as in a search.

image-to-track, nearest     L2 to the nearest image of the track (VeRi-776's image-to-track; HIT@1 is rank-1)
image-to-track, mean        L2 to the mean of the features of the track, brought to length 1
track-to-track, mean        the probe is the mean of its own track, too
track-to-track, weighted    both means weighted by the confidence of the predicted model

All features are L2-normalised first.
Source of image-to-track: Liu et al., "PROVID", IEEE Transactions on Multimedia 2018, section VI.
"""

import numpy as np
from numpy.typing import NDArray

from index.evaluation.cmc import Cmc, LabeledFeatures, Split, cmc_from_ranking
from index.evaluation.metrics import Ranking
from infra.errors import UnmatchedProbe

NEAREST, MEAN = "image-to-track, nearest image", "image-to-track, mean"
TRACK_MEAN, TRACK_WEIGHTED = "track-to-track, mean", "track-to-track, weighted by confidence"
TRACK_PROTOCOLS = (NEAREST, MEAN, TRACK_MEAN, TRACK_WEIGHTED)
_PROBE_ROWS = 64

Features = NDArray[np.float64]


def unit_numbers(
    vehicle_ids: NDArray[np.int64], camera_ids: NDArray[np.str_], track_ids: NDArray[np.str_]
) -> NDArray[np.int64]:
    """Return the number of the unit of each image (n,): vehicle, camera and track, or the image alone."""
    keys = np.stack([vehicle_ids.astype(np.str_), camera_ids, track_ids])
    _, numbers = np.unique(keys, axis=1, return_inverse=True)
    alone = np.flatnonzero(track_ids == "")
    numbers = numbers.astype(np.int64)
    numbers[alone] = len(track_ids) + alone
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def rank_tracks(
    images: LabeledFeatures,
    units: NDArray[np.int64],
    split: Split,
    *,
    kind: str,
    confidence: NDArray[np.float32],
    same_camera_is_junk: bool,
    max_rank: int,
) -> Cmc:
    """Rank the tracks of a split's gallery for each probe by one of TRACK_PROTOCOLS, exactly in float64.

    units: of the images (n,). confidence: of their predicted models (n,). Equal distances rank by the first
    image of the track. Memory: the features in float64, and 64 rows of distances.
    Raises UnmatchedProbe if no probe has a true match.
    """
    features = _unit_length(images.features)
    rankings = []
    for part in split.one_gallery_each:
        gallery = np.unique(part.gallery)
        order, starts = _by_unit(units[gallery])
        rows = gallery[order]  # images of the gallery by unit; units in the order of their first images
        firsts = rows[starts]
        if kind == NEAREST:
            candidates = features[rows]
        else:
            candidates = _means(features, rows, starts, confidence if kind == TRACK_WEIGHTED else None)
        probes = features[part.probes]
        if kind in (TRACK_MEAN, TRACK_WEIGHTED):
            weights = confidence if kind == TRACK_WEIGHTED else None
            probes = _probe_means(features, units, part.probes, weights)
        for start in range(0, len(part.probes), _PROBE_ROWS):
            chunk = slice(start, start + _PROBE_ROWS)
            sq_dist = _sq_distances(probes[chunk], candidates)
            if kind == NEAREST:
                sq_dist = np.minimum.reduceat(sq_dist, starts, axis=1)
            rankings.append(
                _ranking(images, units, part.probes[chunk], firsts, sq_dist, junk=same_camera_is_junk)
            )
    ranking = Ranking.concatenate(rankings)
    if not ranking.has_positive.any():
        raise UnmatchedProbe("no probe has a track of its vehicle in the gallery beside its own")
    return cmc_from_ranking(ranking, max_rank)


def _ranking(
    images: LabeledFeatures,
    units: NDArray[np.int64],
    probes: NDArray[np.int64],
    firsts: NDArray[np.int64],
    sq_dist: Features,
    *,
    junk: bool,
) -> Ranking:
    """Return the ranks of the positives among units, by their first images (u,), for distances (p, u)."""
    ranks, counts, sizes = [], [], []
    for probe, row in zip(probes.tolist(), sq_dist, strict=True):
        is_positive = images.vehicle_ids[firsts] == images.vehicle_ids[probe]
        is_left_out = units[firsts] == units[probe]
        if junk and images.camera_ids is not None:
            is_left_out |= is_positive & (images.camera_ids[firsts] == images.camera_ids[probe])
        order = np.argsort(row, kind="stable")
        order = order[~is_left_out[order]]
        found = np.flatnonzero(is_positive[order]) + 1
        ranks.append(found)
        counts.append(len(found))
        sizes.append(len(order))
    return Ranking(
        positive_ranks=np.concatenate(ranks).astype(np.int64),
        num_positives=np.array(counts, np.int64),
        gallery_sizes=np.array(sizes, np.int64),
    )


def _by_unit(units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows (n,) by unit, units in the order of their first rows, and the start of each unit."""
    _, first, inverse = np.unique(units, return_index=True, return_inverse=True)
    order = np.argsort(first[inverse], kind="stable")
    _, starts = np.unique(first[inverse][order], return_index=True)
    return order, starts


def _means(
    features: Features,
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    weights: NDArray[np.float32] | None,
) -> Features:
    """Return the means of the groups of rows that begin at `starts`, of length 1."""
    values = features[rows]
    if weights is not None:
        values = values * np.maximum(weights[rows].astype(np.float64), 1e-6)[:, None]
    return _unit_length(np.add.reduceat(values, starts, axis=0))


def _probe_means(
    features: Features,
    units: NDArray[np.int64],
    probes: NDArray[np.int64],
    weights: NDArray[np.float32] | None,
) -> Features:
    """Return the mean of the whole unit of each probe (p, d)."""
    rows = np.flatnonzero(np.isin(units, units[probes]))
    order, starts = _by_unit(units[rows])
    rows = rows[order]
    means = _means(features, rows, starts, weights)
    numbers = units[rows[starts]]
    by_number = np.argsort(numbers)
    return means[by_number[np.searchsorted(numbers[by_number], units[probes])]]


def _unit_length(features: NDArray[np.floating]) -> Features:
    values: Features = features.astype(np.float64)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return values


def _sq_distances(probes: Features, candidates: Features) -> Features:
    """Return squared L2 distances (p, n) of vectors of length 1 or 0, clipped at 0."""
    squares = (probes**2).sum(axis=1)[:, None] + (candidates**2).sum(axis=1)
    distances: Features = squares - 2 * probes @ candidates.T
    return np.maximum(distances, 0, out=distances)
