"""Second looks at a ranking: k-reciprocal re-ranking and query expansion, beside L2 and never instead."""

import numpy as np
from numpy.typing import NDArray

from index.evaluation.cmc import Cmc, LabeledFeatures, Ranking, Split, cmc_from_ranking
from index.exact.k_reciprocal import k_reciprocal
from index.exact.knn import nearest


def rank_by_matrix(
    distances: NDArray[np.float32],
    pictures: LabeledFeatures,
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
    return cmc_from_ranking(Ranking(columns[0], precision, penalty, columns[1], columns[2]), max_rank)


def rerank(pictures: LabeledFeatures, split: Split, *, junk: bool = False, max_rank: int = 50) -> Cmc:
    """One split, ranked by k-reciprocal distances."""
    rows = np.concatenate([split.probes, split.gallery])
    distances = k_reciprocal(pictures.features[rows], len(split.probes))
    return rank_by_matrix(distances, pictures, split, junk=junk, max_rank=max_rank)


def with_probe_expansion(pictures: LabeledFeatures, split: Split, *, neighbours: int = 5) -> LabeledFeatures:
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
    return LabeledFeatures(features, pictures.vehicle_ids[split.probes], cameras, crops)
