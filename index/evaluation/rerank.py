"""k-reciprocal re-ranking and query expansion: variants that are reported beside plain L2."""

import numpy as np
from numpy.typing import NDArray

from index.evaluation.cmc import Cmc, LabeledFeatures, Split, cmc_from_ranking
from index.evaluation.metrics import Ranking
from index.exact.k_reciprocal import k_reciprocal
from index.exact.knn import NO_ID, nearest
from index.exact.numba_kernels import rank_order

_GALLERY_CHUNK = 8192


def rank_by_matrix(
    distances: NDArray[np.float32],
    images: LabeledFeatures,
    split: Split,
    *,
    junk: bool = False,
    max_rank: int = 50,
) -> Cmc:
    """Rank by any distance matrix (probes, gallery), with a sort per probe; ties rank as in `cmc`."""
    gallery = split.gallery
    positive_ranks, gallery_sizes = [], []
    for number, probe in enumerate(split.probes):
        is_positive = images.vehicle_ids[gallery] == images.vehicle_ids[probe]
        is_excluded = gallery == probe
        if junk and images.camera_ids is not None:
            is_excluded |= is_positive & (images.camera_ids[gallery] == images.camera_ids[probe])
        columns = np.flatnonzero(~is_excluded)
        order = columns[rank_order(distances[number, columns], columns)]
        positive_ranks.append(np.flatnonzero(is_positive[order]) + 1)
        gallery_sizes.append(len(columns))
    ranking = Ranking(
        positive_ranks=np.concatenate(positive_ranks),
        num_positives=np.array([len(ranks) for ranks in positive_ranks], dtype=np.int64),
        gallery_sizes=np.array(gallery_sizes, dtype=np.int64),
    )
    return cmc_from_ranking(ranking, max_rank)


def rerank(images: LabeledFeatures, split: Split, *, junk: bool = False, max_rank: int = 50) -> Cmc:
    """Rank one split by k-reciprocal distances."""
    rows = np.concatenate([split.probes, split.gallery])
    distances = k_reciprocal(images.features[rows], len(split.probes))
    return rank_by_matrix(distances, images, split, junk=junk, max_rank=max_rank)


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
