"""k-reciprocal distances between images (Zhong et al. 2017), computed exactly."""

import numpy as np
from numpy.typing import NDArray

from index.exact.masked import require_finite
from index.exact.products import pairwise_sq_distances, subsample
from infra.errors import BadSetting

MAX_IMAGES = 10_000  # probes and gallery together: three float32 matrices of that square are 1.2 GB


def k_reciprocal(
    features: NDArray[np.float32], num_probes: int, *, k1: int = 20, k2: int = 6, lambda_: float = 0.3
) -> NDArray[np.float32]:
    """Re-ranked distances (num_probes, n - num_probes) of float32 features (n, d), probes first.

    The Jaccard distance of k-reciprocal neighbourhoods, plus `lambda_` times the squared L2 distance divided
    by the largest of its row. Source: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal
    Encoding", CVPR 2017, sections 3.2 to 3.5 and its parameters k1 = 20, k2 = 6, λ = 0.3.
    Raises BadSetting for more than `MAX_IMAGES` images: all pairs must fit in memory; BadInput for NaN and
    infinity.
    """
    total = len(features)
    if total > MAX_IMAGES:
        raise BadSetting(
            f"re-ranking {total:,} images needs all their pairs in memory",
            remedy=f"re-rank at most {MAX_IMAGES:,}: give a smaller list, or leave re-ranking out",
        )
    require_finite(features)
    # Far from zero the squared norms would hide the distances. The median ignores a single outlier.
    moved = (features - np.median(subsample(features, 2048), axis=0)).astype(np.float32)
    sq_dist = pairwise_sq_distances(moved, moved)
    sq_dist /= np.maximum(sq_dist.max(axis=1, keepdims=True), 1e-30)
    order = np.argsort(sq_dist, axis=1, kind="stable")
    nearest_k1 = order[:, : k1 + 1]
    nearest_half_k1 = order[:, : round(k1 / 2) + 1]
    weights = np.zeros((total, total), dtype=np.float32)
    for row in range(total):
        reciprocal = _reciprocal(nearest_k1, row)
        expanded = [reciprocal]
        for candidate in reciprocal:
            candidate_set = _reciprocal(nearest_half_k1, int(candidate))
            if len(np.intersect1d(candidate_set, reciprocal)) > 2 / 3 * len(candidate_set):
                expanded.append(candidate_set)
        members = np.unique(np.concatenate(expanded))
        member_weights = np.exp(-sq_dist[row, members])
        weights[row, members] = member_weights / member_weights.sum()
    if k2 > 1:
        weights = np.stack([weights[order[row, :k2]].mean(axis=0) for row in range(total)])
    jaccard = _jaccard(weights, num_probes)
    return np.asarray(jaccard * (1 - lambda_) + sq_dist[:num_probes, num_probes:] * lambda_, dtype=np.float32)


def _reciprocal(neighbours: NDArray[np.int64], row: int) -> NDArray[np.int64]:
    """The neighbours of `row` that have `row` as a neighbour."""
    candidates = neighbours[row]
    return np.asarray(candidates[(neighbours[candidates] == row).any(axis=1)])


def _jaccard(weights: NDArray[np.float32], num_probes: int) -> NDArray[np.float32]:
    distance = np.empty((num_probes, len(weights) - num_probes), dtype=np.float32)
    for probe in range(num_probes):
        members = np.flatnonzero(weights[probe])
        common = np.minimum(weights[probe, members], weights[num_probes:, members]).sum(axis=1)
        distance[probe] = 1 - common / (2 - common)
    return distance
