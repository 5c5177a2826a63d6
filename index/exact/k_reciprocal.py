"""k-reciprocal distances between images (Zhong et al. 2017), computed exactly."""

import numpy as np
from numpy.typing import NDArray

from infra.errors import BadSetting

MAX_IMAGES = 10_000  # probes and gallery together: three float32 matrices of that square are 1.2 GB


def k_reciprocal(
    features: NDArray[np.float32], probes: int, *, k1: int = 20, k2: int = 6, weight: float = 0.3
) -> NDArray[np.float32]:
    """Re-ranked distances (probes, n - probes) of float32 features (n, d), probes first.

    The Jaccard distance of k-reciprocal neighbourhoods, plus `weight` times the squared L2 distance divided
    by each row's largest. Source: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal
    Encoding", CVPR 2017, sections 3.2 to 3.5 and its parameters k1 = 20, k2 = 6, λ = 0.3.
    Raises BadSetting for more pictures than fit: it needs all pairs in memory.
    """
    total = len(features)
    if total > MAX_IMAGES:
        raise BadSetting(
            f"re-ranking {total:,} pictures needs all their pairs in memory",
            remedy=f"re-rank at most {MAX_IMAGES:,}: give a smaller list, or leave re-ranking out",
        )
    squares = np.square(features).sum(axis=1)
    original = np.maximum(squares[:, None] + squares - 2 * features @ features.T, 0)
    original /= np.maximum(original.max(axis=1, keepdims=True), 1e-30)
    order = np.argsort(original, axis=1, kind="stable")
    neighbours = order[:, : k1 + 1]
    half = order[:, : round(k1 / 2) + 1]
    weights = np.zeros((total, total), dtype=np.float32)
    for row in range(total):
        close = _reciprocal(neighbours, row)
        members = [close]
        for candidate in close:
            theirs = _reciprocal(half, int(candidate))
            if len(np.intersect1d(theirs, close)) > 2 / 3 * len(theirs):
                members.append(theirs)
        together = np.unique(np.concatenate(members))
        weight_of = np.exp(-original[row, together])
        weights[row, together] = weight_of / weight_of.sum()
    if k2 > 1:
        weights = np.stack([weights[order[row, :k2]].mean(axis=0) for row in range(total)])
    jaccard = _jaccard(weights, probes)
    return np.asarray(jaccard * (1 - weight) + original[:probes, probes:] * weight, dtype=np.float32)


def _reciprocal(neighbours: NDArray[np.int64], row: int) -> NDArray[np.int64]:
    """The neighbours of `row` that have it as a neighbour too."""
    mine = neighbours[row]
    return np.asarray(mine[(neighbours[mine] == row).any(axis=1)])


def _jaccard(weights: NDArray[np.float32], probes: int) -> NDArray[np.float32]:
    distance = np.empty((probes, len(weights) - probes), dtype=np.float32)
    for probe in range(probes):
        there = np.flatnonzero(weights[probe])
        common = np.minimum(weights[probe, there], weights[probes:, there]).sum(axis=1)
        distance[probe] = 1 - common / (2 - common)
    return distance
