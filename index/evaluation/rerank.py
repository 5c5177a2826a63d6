"""k-reciprocal re-ranking and query expansion: variants that are reported beside plain L2."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from index.evaluation.cmc import Cmc, LabeledFeatures, Split, cmc, cmc_from_ranking, rankings_of_splits
from index.evaluation.metrics import Ranking
from index.exact import NO_ID
from index.exact.k_reciprocal import (
    Block,
    Parameters,
    ReciprocalEncoding,
    RunBlocks,
    blocks_of,
    encode,
    run_here,
)
from index.exact.knn import nearest
from index.exact.numba_kernels import pair_sq_distances
from index.exact.products import subsample

_GALLERY_CHUNK = 8192
_MAX_DISTANCES = 1 << 24  # between some probes and the whole gallery, in memory at once
_TASK_PROBES = 1024
_FP64_UNIT_ROUNDOFF = 2.0**-53


def rerank(
    images: LabeledFeatures,
    split: Split,
    *,
    junk: bool = False,
    max_rank: int = 50,
    parameters: Parameters | None = None,
    run: RunBlocks = run_here,
) -> Cmc:
    """Rank one split by k-reciprocal distances, as a matrix of all of them would; equal ones rank by row.

    An image that is a probe and in the gallery is encoded twice, as in public code. `run` takes the blocks of
    images to workers. Memory besides the features, which are copied once: see `encode`, and 128 MB of
    distances. Raises BadInput for NaN and infinity.
    """
    rankings = [
        _rank_part(images, part, junk, parameters or Parameters(), run) for part in split.one_gallery_each
    ]
    (ranking,) = rankings_of_splits(rankings, [split])
    return cmc_from_ranking(ranking, max_rank)


def _rank_part(
    images: LabeledFeatures, split: Split, junk: bool, parameters: Parameters, run: RunBlocks
) -> Ranking:
    part = images.take(np.concatenate([split.probes, split.gallery]))
    part = LabeledFeatures(
        features=np.ascontiguousarray(part.features, dtype=np.float32),
        vehicle_ids=part.vehicle_ids,
        camera_ids=part.camera_ids,
        crop_ids=np.concatenate([split.probes, split.gallery]),  # an image is not ranked for itself
    )
    encoding = encode(part.features, len(split.probes), parameters, run=run)
    blocks = list(blocks_of(len(split.probes), _TASK_PROBES))
    return Ranking.concatenate(run(_rank_block, (encoding, part, junk), blocks))


def _rank_block(encoding: ReciprocalEncoding, images: LabeledFeatures, junk: bool, block: Block) -> Ranking:
    """Rank the gallery for a block of probes: the rows of `images` are the probes and then the gallery."""
    num_probes = len(encoding.probe_totals)
    vehicles, cameras, crops = (
        images.vehicle_ids,
        images.camera_ids,
        np.arange(len(images.features)) if images.crop_ids is None else images.crop_ids,
    )
    ranks, gallery_sizes = [], []
    for probe, sq_dist, sq_error in _sq_distances(images.features, num_probes, block):
        is_positive = vehicles[num_probes:] == vehicles[probe]
        is_ranked = crops[num_probes:] != crops[probe]
        if junk and cameras is not None:
            is_ranked &= ~(is_positive & (cameras[num_probes:] == cameras[probe]))
        jaccard = encoding.jaccard(probe)
        distance = encoding.combine(probe, jaccard, sq_dist)
        error = encoding.combine(probe, np.zeros(1), sq_error) + 8 * _FP64_UNIT_ROUNDOFF
        distance[~is_ranked] = np.inf
        targets = np.flatnonzero(is_positive & is_ranked)
        distance[targets] = _exact_distances(encoding, images.features, probe, jaccard, targets)
        is_near = np.zeros(len(distance), dtype=np.bool_)
        for target in targets:
            is_near |= np.abs(distance - distance[target]) <= error
        near = np.flatnonzero(is_near & is_ranked)
        distance[near] = _exact_distances(encoding, images.features, probe, jaccard, near)
        ranks.append(_ranks(distance, targets))
        gallery_sizes.append(int(is_ranked.sum()))
    return Ranking(
        positive_ranks=np.concatenate(ranks),
        num_positives=np.array([len(positives) for positives in ranks], dtype=np.int64),
        gallery_sizes=np.array(gallery_sizes, dtype=np.int64),
    )


def _exact_distances(
    encoding: ReciprocalEncoding,
    features: NDArray[np.float32],
    probe: int,
    jaccard: NDArray[np.float64],
    columns: NDArray[np.int64],
) -> NDArray[np.float64]:
    rows = len(encoding.probe_totals) + columns
    sq_dist = pair_sq_distances(features, features, np.full(len(rows), probe), rows)
    return encoding.combine(probe, jaccard[columns], sq_dist)


def _ranks(distance: NDArray[np.float64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ranks (t,), from 1, ascending, of some columns (t,) in a row of distances."""
    ranks = [
        1 + (distance < distance[target]).sum() + (distance[:target] == distance[target]).sum()
        for target in targets
    ]
    return np.sort(np.array(ranks, dtype=np.int64))


def _sq_distances(
    features: NDArray[np.float32], num_probes: int, block: Block
) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
    """Yield each probe of a block with its squared distances to the gallery and their largest errors."""
    # Far from zero the rounding of products would hide the distances. The median ignores a single outlier.
    origin = np.median(subsample(features, 2048).astype(np.float64), axis=0)
    gallery = features[num_probes:]
    y_sq = np.empty(len(gallery))
    # Both norms, the product and the sums: Higham, "Accuracy and Stability", section 3.1.
    relative = 4 * (features.shape[1] + 8) * _FP64_UNIT_ROUNDOFF
    for start, stop in blocks_of(block[1] - block[0], max(1, _MAX_DISTANCES // len(gallery))):
        probes = np.arange(block[0] + start, block[0] + stop)
        x = features[probes].astype(np.float64) - origin
        x_sq = np.einsum("ij,ij->i", x, x)
        sq_dist = np.empty((len(probes), len(gallery)))
        for first, last in blocks_of(len(gallery), _GALLERY_CHUNK):
            y = gallery[first:last] - origin
            y_sq[first:last] = np.einsum("ij,ij->i", y, y)
            np.matmul(x, y.T, out=sq_dist[:, first:last])
        sq_dist *= -2
        sq_dist += y_sq
        for number, probe in enumerate(probes.tolist()):
            yield probe, sq_dist[number] + x_sq[number], relative * (y_sq + x_sq[number])


def expand_probes(images: LabeledFeatures, split: Split, *, junk: bool = False, max_rank: int = 50) -> Cmc:
    """Rank one split by expanded probes: see `with_probe_expansion`. Raises the errors of `cmc`."""
    rankings = [
        cmc(
            with_probe_expansion(images, part),
            images.take(part.gallery),
            same_camera_is_junk=junk,
            skip_unmatched=True,
        ).ranking
        for part in split.one_gallery_each
    ]
    (ranking,) = rankings_of_splits(rankings, [split])
    return cmc_from_ranking(ranking, max_rank)


def with_probe_expansion(images: LabeledFeatures, split: Split, *, neighbours: int = 5) -> LabeledFeatures:
    """Average query expansion: replace each probe by the mean of itself and its nearest gallery images.

    Source: Chum et al., "Total Recall", ICCV 2007, section 4. The probe's own image is not among them.
    Returns the probes alone: the gallery keeps its features.
    """
    blocks = (
        (rows, images.features[rows])
        for rows in np.array_split(split.gallery, -(-len(split.gallery) // _GALLERY_CHUNK))
    )
    k = min(neighbours, len(split.gallery) - 1)
    features = images.features[split.probes].copy()
    if k > 0:
        neighbour_rows, _ = nearest(features, blocks, k, exclude_ids=split.probes)
        for number, rows in enumerate(neighbour_rows):
            rows = rows[rows != NO_ID]
            members = np.concatenate([features[number : number + 1], images.features[rows]])
            features[number] = members.mean(axis=0)
    camera_ids = None if images.camera_ids is None else images.camera_ids[split.probes]
    crop_ids = split.probes if images.crop_ids is None else images.crop_ids[split.probes]
    return LabeledFeatures(
        features=features,
        vehicle_ids=images.vehicle_ids[split.probes],
        camera_ids=camera_ids,
        crop_ids=crop_ids,
    )
