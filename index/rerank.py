"""k-reciprocal re-ranking of the head of a list: neighbours of the probe that also see it as a neighbour.

Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017;
k1 = 20, k2 = 6 and lambda = 0.3 as there. Only the head takes part, so neighbourhoods are those in the head.
"""

import numpy as np
from numpy.typing import NDArray

K1, K2, LAMBDA = 20, 6, 0.3


def k_reciprocal(
    probe: NDArray[np.float32],
    head: NDArray[np.float32],
    *,
    k1: int = K1,
    k2: int = K2,
    weight: float = LAMBDA,
) -> NDArray[np.int64]:
    """Return the new order of the head, int64 (n,): positions in `head`, best first.

    probe: (d,); head: (n, d), any order. `weight` is the share of the plain distance in the new one.
    Memory is n x n, so keep n to a few hundred.
    """
    if not len(head):
        return np.empty(0, np.int64)
    vectors = np.concatenate([probe[None], head]).astype(np.float64)
    squares = np.einsum("ij,ij->i", vectors, vectors)
    distance = np.maximum(squares[:, None] + squares - 2 * vectors @ vectors.T, 0)
    distance /= np.maximum(distance.max(axis=0), 1e-12)
    ranked = np.argsort(distance, axis=1, kind="stable")
    encoded = np.zeros_like(distance)
    for row in range(len(vectors)):
        members = _expanded(ranked, row, k1)
        weights = np.exp(-distance[row, members])
        encoded[row, members] = weights / weights.sum()
    if k2 > 1:
        encoded = np.stack([encoded[ranked[row, :k2]].mean(axis=0) for row in range(len(vectors))])
    overlap = np.minimum(encoded[0], encoded[1:]).sum(axis=1)
    jaccard = 1 - overlap / np.maximum(2 - overlap, 1e-12)
    return np.argsort((1 - weight) * jaccard + weight * distance[0, 1:], kind="stable").astype(np.int64)


def _reciprocal(ranked: NDArray[np.int64], row: int, k: int) -> NDArray[np.int64]:
    forward = ranked[row, : k + 1]
    mutual: NDArray[np.bool_] = (ranked[forward, : k + 1] == row).any(axis=1)
    return forward[mutual]


def _expanded(ranked: NDArray[np.int64], row: int, k1: int) -> NDArray[np.int64]:
    """R* of the paper: take in a neighbour's own neighbourhood where two thirds of it are ours already."""
    ours = _reciprocal(ranked, row, k1)
    members = ours
    for other in ours:
        theirs = _reciprocal(ranked, int(other), round(k1 / 2))
        if 3 * len(np.intersect1d(theirs, ours)) > 2 * len(theirs):
            members = np.union1d(members, theirs)
    return members
