"""Second looks at a ranking: k-reciprocal re-ranking and query expansion, beside L2 and never instead."""

import numpy as np
from numpy.typing import NDArray

from index.cmc import Cmc, Labelled, Ranking, Split, summarise
from index.exact import nearest
from infra.errors import BadSetting

MOST_PICTURES = 10_000  # probes and gallery together: three float32 matrices of that square are 1.2 GB


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
    if total > MOST_PICTURES:
        raise BadSetting(
            f"re-ranking {total:,} pictures needs all their pairs in memory",
            remedy=f"re-rank at most {MOST_PICTURES:,}: give a smaller list, or leave re-ranking out",
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


def rank_by_matrix(
    distances: NDArray[np.float32],
    pictures: Labelled,
    split: Split,
    *,
    junk: bool = False,
    max_rank: int = 50,
) -> Cmc:
    """The figures of any distance matrix (probes, gallery): a plain stable sort, a probe at a time."""
    probes, gallery = split.probes, split.gallery
    columns = [np.zeros(len(probes), dtype=np.int64) for _ in range(3)]
    precision, penalty = np.zeros(len(probes)), np.zeros(len(probes))
    for number, probe in enumerate(probes):
        same = pictures.vehicle_ids[gallery] == pictures.vehicle_ids[probe]
        out = gallery == probe
        if junk and pictures.camera_ids is not None:
            out |= same & (pictures.camera_ids[gallery] == pictures.camera_ids[probe])
        order = np.argsort(distances[number], kind="stable")
        order = order[~out[order]]
        hits = np.flatnonzero(same[order]) + 1
        columns[2][number] = len(order)
        if len(hits):
            columns[0][number], columns[1][number] = hits[0], len(hits)
            precision[number] = np.mean(np.arange(1, len(hits) + 1) / hits)
            penalty[number] = len(hits) / hits[-1]
    return summarise(Ranking(columns[0], precision, penalty, columns[1], columns[2]), max_rank)


def rerank(pictures: Labelled, split: Split, *, junk: bool = False, max_rank: int = 50) -> Cmc:
    """One split, ranked by k-reciprocal distances."""
    rows = np.concatenate([split.probes, split.gallery])
    distances = k_reciprocal(pictures.features[rows], len(split.probes))
    return rank_by_matrix(distances, pictures, split, junk=junk, max_rank=max_rank)


def expanded(pictures: Labelled, split: Split, *, neighbours: int = 5) -> Labelled:
    """Average query expansion: probes become the mean of themselves and their nearest gallery pictures.

    Source: Chum et al., "Total Recall", ICCV 2007, section 4. The probe's own picture is never among them.
    Returns pictures in which the probes' rows alone have changed: rank them as probes, not as gallery.
    """
    blocks = (
        (rows, pictures.features[rows])
        for rows in np.array_split(split.gallery, -(-len(split.gallery) // 8192))
    )
    many = min(neighbours, len(split.gallery) - 1)
    features = pictures.features[split.probes].copy()
    if many > 0:
        found, _ = nearest(features, blocks, many, forbidden=split.probes)
        for number, rows in enumerate(found):
            rows = rows[rows >= 0]
            features[number] = np.concatenate([features[number : number + 1], pictures.features[rows]]).mean(
                axis=0
            )
    cameras = None if pictures.camera_ids is None else pictures.camera_ids[split.probes]
    crops = split.probes if pictures.crop_ids is None else pictures.crop_ids[split.probes]
    return Labelled(features, pictures.vehicle_ids[split.probes], cameras, crops)
