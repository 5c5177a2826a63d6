"""k-reciprocal distances between images (Zhong et al. 2017), exact and sparse, in blocks.

An image is described by the weights of the few images in its k-reciprocal neighbourhood. Almost all pairs of
images share none of them, so all weights of n images take a few KB an image and not n² numbers. Each step
works on blocks of images, and `RunBlocks` says where: in this process, or as tasks on a cluster.
Source: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, sections
3.2 to 3.5, with its parameters k1 = 20, k2 = 6, λ = 0.3.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from index.exact.knn import nearest
from index.exact.numba_kernels import pair_sq_distances, sq_distance_matrix
from index.exact.products import require_finite, subsample

BLOCK_ROWS = 4096  # images of one task
_MAX_COMPARISONS = 1 << 25  # of neighbours, at once: their results are in memory
_FAR_ROWS = 1024  # images whose farthest image is looked for at once
_GALLERY_CHUNK = 8192
_FAR_CANDIDATES = 4  # of each chunk, measured exactly: float32 products can confuse the largest few
_SMALLEST = 1e-30  # instead of a division by zero

_Result = TypeVar("_Result")
Block = tuple[int, int]  # first row, and the row after the last
Csr = Any  # scipy.sparse.csr_array


class RunBlocks(Protocol):
    """Calls a function for each block, and returns the results in the order of the blocks."""

    def __call__(
        self, function: Callable[..., _Result], shared: Sequence[Any], blocks: Sequence[Block]
    ) -> list[_Result]:
        """Return `function(*shared, block)` of each block."""
        ...


def run_here(
    function: Callable[..., _Result], shared: Sequence[Any], blocks: Sequence[Block]
) -> list[_Result]:
    """Run the blocks in this process, one after the other."""
    return [function(*shared, block) for block in blocks]


@dataclass(frozen=True, slots=True)
class Parameters:
    """Neighbours of an image (k1), neighbours whose weights are averaged (k2), and the share of plain L2."""

    k1: int = 20
    k2: int = 6
    lambda_: float = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class ReciprocalEncoding:
    """The neighbourhoods of n images, the probes first, as sparse weights."""

    probe_weights: Csr  # (num_probes, n)
    gallery_weights: (
        Csr  # (n, n - num_probes): the gallery images that have each image in their neighbourhood
    )
    probe_totals: NDArray[np.float64]  # (num_probes,) sum of the weights; 1 but for rounding, or 0
    gallery_totals: NDArray[np.float64]  # (n - num_probes,)
    farthest_sq: NDArray[np.float64]  # (num_probes,) largest squared L2 distance of each probe to any image
    parameters: Parameters

    def jaccard(self, probe: int) -> NDArray[np.float64]:
        """Return the Jaccard distances (n - num_probes,) of a probe to the gallery."""
        members, weights = _row(self.probe_weights, probe)
        start = self.gallery_weights.indptr[members].astype(np.int64)
        counts = self.gallery_weights.indptr[members + 1] - start
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        entries = np.repeat(start, counts) + within
        smaller = np.minimum(np.repeat(weights, counts), self.gallery_weights.data[entries])
        columns = self.gallery_weights.indices[entries]
        common = np.bincount(columns, smaller, minlength=len(self.gallery_totals))
        either = self.probe_totals[probe] + self.gallery_totals - common
        return np.asarray(1.0 - common / np.maximum(either, _SMALLEST))

    def combine(
        self, probe: int, jaccard: NDArray[np.float64], sq_dist: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the final distances of a probe from Jaccard and squared L2 distances, element by element."""
        lambda_ = self.parameters.lambda_
        return np.asarray((1 - lambda_) * jaccard + lambda_ * (sq_dist / self.farthest_sq[probe]))


def k_reciprocal(
    features: NDArray[np.float32], num_probes: int, *, k1: int = 20, k2: int = 6, lambda_: float = 0.3
) -> NDArray[np.float32]:
    """Re-ranked distances (num_probes, n - num_probes) of float32 features (n, d), probes first.

    The Jaccard distance of k-reciprocal neighbourhoods, plus `lambda_` times the squared L2 distance divided
    by the largest of its row. For few probes; `index.evaluation.rerank` ranks many of them without this
    matrix. Raises BadInput for NaN and infinity.
    """
    features = np.ascontiguousarray(features, dtype=np.float32)
    encoding = encode(features, num_probes, Parameters(k1, k2, lambda_))
    sq_dist = sq_distance_matrix(features[:num_probes], features[num_probes:])
    rows = [encoding.combine(probe, encoding.jaccard(probe), sq_dist[probe]) for probe in range(num_probes)]
    return np.asarray(rows, dtype=np.float32).reshape(sq_dist.shape)


def encode(
    features: NDArray[np.float32],
    num_probes: int,
    parameters: Parameters | None = None,
    *,
    run: RunBlocks = run_here,
    block_rows: int = BLOCK_ROWS,
) -> ReciprocalEncoding:
    """Encode the neighbourhoods of float32 features (n, d), probes first.

    Equal distances rank by row. Memory besides the features: about 2 KB an image, at most 18 KB, and some
    100 MB for each block at work. Raises BadInput for NaN and infinity.
    """
    parameters = parameters or Parameters()
    features = np.ascontiguousarray(features, dtype=np.float32)
    require_finite(features)
    total = len(features)
    blocks = list(blocks_of(total, block_rows))
    k = min(max(parameters.k1 + 1, parameters.k2, 1), total)
    # Far from zero the rounding of products would hide the distances. The median ignores a single outlier.
    origin = np.median(subsample(features, 2048), axis=0).astype(np.float32)
    found = run(_neighbours, (features, origin, k), blocks)
    neighbours = np.concatenate([rows for rows, _ in found])
    farthest_sq = np.maximum(np.concatenate([sq_dist for _, sq_dist in found]), _SMALLEST)
    weights = _stack(run(_weights, (features, neighbours, farthest_sq, parameters.k1), blocks))
    if parameters.k2 > 1:
        weights = _stack(run(_expand, (weights, neighbours, parameters.k2), blocks))
    totals = np.asarray(weights.sum(axis=1)).ravel()
    gallery_weights = weights[num_probes:].T.tocsr()
    gallery_weights.sort_indices()
    return ReciprocalEncoding(
        probe_weights=weights[:num_probes],
        gallery_weights=gallery_weights,
        probe_totals=totals[:num_probes],
        gallery_totals=totals[num_probes:],
        farthest_sq=farthest_sq[:num_probes],
        parameters=parameters,
    )


def blocks_of(rows: int, size: int) -> Iterator[Block]:
    """Yield blocks of up to `size` rows that cover rows 0 to `rows` - 1."""
    return ((start, min(start + size, rows)) for start in range(0, rows, size))


def _neighbours(
    features: NDArray[np.float32], origin: NDArray[np.float32], k: int, block: Block
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the k nearest rows of each row of a block, (b, k), and its largest squared distance, (b,)."""
    probes = features[slice(*block)]
    chunks = ((np.arange(*rows), features[slice(*rows)]) for rows in blocks_of(len(features), _GALLERY_CHUNK))
    rows, _ = nearest(probes, chunks, k)
    farthest = [
        _farthest_sq(features, origin, (block[0] + start, block[0] + stop))
        for start, stop in blocks_of(len(probes), _FAR_ROWS)
    ]
    return rows.astype(np.int32), np.concatenate(farthest)


def _farthest_sq(
    features: NDArray[np.float32], origin: NDArray[np.float32], block: Block
) -> NDArray[np.float64]:
    x = torch.from_numpy(features[slice(*block)] - origin)
    probes = np.arange(*block)
    farthest = np.zeros(len(probes))
    for start, stop in blocks_of(len(features), _GALLERY_CHUNK):
        y = torch.from_numpy(features[start:stop] - origin)
        scores = torch.addmm(y.square().sum(1)[None], x, y.T, alpha=-2.0)
        columns = scores.topk(min(_FAR_CANDIDATES, stop - start), dim=1).indices.numpy() + start
        pairs = np.repeat(probes, columns.shape[1]), np.ascontiguousarray(columns.ravel())
        sq_dist = pair_sq_distances(features, features, *pairs).reshape(columns.shape)
        np.maximum(farthest, sq_dist.max(axis=1), out=farthest)
    return farthest


def _weights(
    features: NDArray[np.float32],
    neighbours: NDArray[np.int32],
    farthest_sq: NDArray[np.float64],
    k1: int,
    block: Block,
) -> Csr:
    """Return the weights (b, n) of the k-reciprocal neighbourhoods of a block, before they are averaged."""
    parts = []
    k, narrow_k = (min(size, neighbours.shape[1]) for size in (k1 + 1, round(k1 / 2) + 1))
    set_rows = max(1, _MAX_COMPARISONS // (k * narrow_k * k))
    for start, stop in blocks_of(block[1] - block[0], set_rows):
        first, last = block[0] + start, block[0] + stop
        row, member = _neighbourhoods(neighbours, k1, (first, last))
        sq_dist = pair_sq_distances(features, features, row, member)
        weight = np.exp(-sq_dist / farthest_sq[row])
        weight /= np.bincount(row - first, weight, minlength=last - first)[row - first]
        parts.append(sparse.csr_array((weight, (row - first, member)), shape=(last - first, len(features))))
    return _stack(parts)


def _neighbourhoods(
    neighbours: NDArray[np.int32], k1: int, block: Block
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs (row, member) of the expanded k-reciprocal neighbourhoods of a block, ascending.

    A neighbour's own half-size neighbourhood joins if more than two thirds of it are neighbours already.
    """
    wide, narrow = neighbours[:, : k1 + 1], neighbours[:, : round(k1 / 2) + 1]
    rows = np.arange(*block)
    candidates = wide[rows]  # (b, k1 + 1)
    is_mutual = (wide[candidates] == rows[:, None, None]).any(axis=2)
    others = narrow[candidates]  # (b, k1 + 1, k1 / 2 + 1)
    is_theirs = (narrow[others] == candidates[:, :, None, None]).any(axis=3)
    is_ours = ((others[..., None] == candidates[:, None, None]) & is_mutual[:, None, None]).any(axis=3)
    is_close = is_mutual & (3 * (is_theirs & is_ours).sum(axis=2) > 2 * is_theirs.sum(axis=2))
    near_row, near = np.nonzero(is_mutual)
    other_row, via, other = np.nonzero(is_theirs & is_close[:, :, None])
    row = np.concatenate([near_row, other_row]) + block[0]
    member = np.concatenate([candidates[near_row, near], others[other_row, via, other]])
    pairs = np.unique(row.astype(np.int64) * len(neighbours) + member)
    return pairs // len(neighbours), pairs % len(neighbours)


def _expand(weights: Csr, neighbours: NDArray[np.int32], k2: int, block: Block) -> Csr:
    """Return the mean weights (b, n) of the k2 nearest rows of each row of a block."""
    nearest_rows = neighbours[slice(*block), :k2]
    size, k = nearest_rows.shape
    share = np.full(size * k, 1.0 / k)
    start = np.arange(size + 1) * k
    mean = sparse.csr_array((share, nearest_rows.ravel(), start), shape=(size, len(neighbours))) @ weights
    mean.sort_indices()
    return mean


def _stack(parts: Sequence[Csr]) -> Csr:
    return parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")


def _row(weights: Csr, row: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    entries = slice(weights.indptr[row], weights.indptr[row + 1])
    return weights.indices[entries].astype(np.int64), weights.data[entries]
