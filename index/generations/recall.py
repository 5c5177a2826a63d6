"""Recall of an index against exact search: of all rows, or of a sample of partitions of them."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv

from index.exact import NO_ID
from index.milvus.search import Hit

_NORMAL_975 = 1.959964
"""The 97.5 % quantile of the normal distribution."""
_RESAMPLES = 2000


def share_found(
    ids: NDArray[np.int64], distances: NDArray[np.float32], hits: Sequence[Hit], k: int, norm: float
) -> float:
    """Return the share of the k nearest rows that are among the first k hits of a probe.

    ids, distances: the nearest rows of all that was searched (k or more), nearest first. norm: length of the
    probe. Rows at the same distance are equally right.
    """
    expected, limit = set(ids[:k].tolist()), float(distances[k - 1])
    correct = sum(hit.crop_id in expected or _is_same(hit.distance, limit, norm) for hit in hits[:k])
    return correct / k


def missed(
    ids: NDArray[np.int64], distances: NDArray[np.float32], hits: Sequence[Hit], k: int, norm: float
) -> list[int]:
    """Return the rows that must be among the first k hits of a probe and are not.

    ids, distances: the nearest rows (m,) of a part of what was searched, nearest first, padded with NO_ID.
    Those that are nearer than the k-th hit belong among the hits, whatever the other parts hold.
    """
    hits = hits[:k]
    among = {hit.crop_id for hit in hits}
    limit = hits[-1].distance if len(hits) == k else math.inf
    pairs = zip(ids[:k].tolist(), distances[:k].tolist(), strict=True)
    return [
        row
        for row, far in pairs
        if row != NO_ID and row not in among and far < limit and not _is_same(far, limit, norm)
    ]


def _is_same(distance: float, other: float, norm: float) -> bool:
    # In float32, equal squares differ by up to this share.
    tolerance = 1e-5 * (norm**2 + min(distance, other) ** 2)
    return math.isclose(distance**2, other**2, rel_tol=0, abs_tol=tolerance)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the bounds of a share of `count` trials with 95 % confidence; (0, 1) without trials.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    if not count:
        return 0.0, 1.0
    squared = _NORMAL_975**2 / count
    centre = share + squared / 2
    spread = math.sqrt(squared * (share * (1 - share) + squared / 4))
    return max(0.0, (centre - spread) / (1 + squared)), min(1.0, (centre + spread) / (1 + squared))


def poisson_interval(count: int) -> tuple[float, float]:
    """Return the bounds of the expected number of rare events after `count` of them, with 95 % confidence.

    Source: F. Garwood, Fiducial limits for the Poisson distribution, 1936.
    """
    low = float(gammaincinv(count, 0.025)) if count else 0.0
    return low, float(gammaincinv(count + 1, 0.975))


def sampled_recall(
    probes: NDArray[np.int64],
    near: NDArray[np.int64],
    far: NDArray[np.int64],
    weighted: NDArray[np.float64],
    *,
    depth: int,
    weight: float,
    seed: int,
) -> tuple[float, float, float]:
    """Return recall@depth of an index by a sample of partitions, and its bounds with 95 % confidence.

    Of each partition (n,): its probes, the rows of the partition itself that they missed, the rows of the
    other partitions of the sample that they missed, and how many of these that makes in all partitions.
    weight: how many rows of all partitions a row of the sample stands for.
    The bounds are the wider of two: those of a bootstrap over the partitions, because probes of one partition
    resemble each other; and, because they hold where nothing was missed, Wilson's for the near rows with
    Garwood's for the far ones, as independent errors.
    """
    total = depth * probes.sum()
    if not total:
        return 0.0, 0.0, 1.0
    recall = 1 - (near.sum() + weighted.sum()) / total
    draws = np.random.default_rng(seed).integers(len(probes), size=(_RESAMPLES, len(probes)))
    shares = 1 - (near + weighted)[draws].sum(1) / (depth * probes[draws].sum(1))
    near_low, near_high = wilson_interval(float(1 - near.sum() / total), int(probes.sum()))
    fewer, more = poisson_interval(int(far.sum()))
    more, fewer = weight * (more - far.sum()) / total, weight * (far.sum() - fewer) / total
    near_share = float(1 - near.sum() / total)
    low = recall - math.hypot(near_share - near_low, more)
    high = recall + math.hypot(near_high - near_share, fewer)
    low, high = min(low, *np.percentile(shares, [2.5])), max(high, *np.percentile(shares, [97.5]))
    return max(0.0, float(recall)), max(0.0, float(low)), min(1.0, max(float(high), float(recall)))
