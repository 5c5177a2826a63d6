"""A protocol through the index, to measure the CMC that an approximate index loses."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.evaluation.cmc import LabeledFeatures, Split
from index.evaluation.metrics import REPORTED_RANKS, Ranking
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.search import search_generation


@dataclass(frozen=True, slots=True)
class IndexCmcLoss:
    """CMC of one split, exact and through the index; `exact[i]` and `found[i]` are at rank `ranks[i]`."""

    generation: str
    probes: int
    top: int  # requested hits
    ranks: tuple[int, ...]
    exact: tuple[float, ...]
    found: tuple[float, ...]  # through the index
    short: int  # probes with fewer gallery images among their hits than the last rank: they count as misses


def ranks_through_index(
    milvus: Milvus,
    generation: Generation,
    images: LabeledFeatures,
    crop_ids: NDArray[np.int64],
    split: Split,
    *,
    top: int,
    junk: bool = False,
) -> tuple[NDArray[np.int64], int]:
    """Rank of each probe's first positive among its hits (0: none), and the number of short probes.

    Hits outside of the split's gallery, the probe's own image and junk are skipped, as in `cmc`.
    """
    parts = split.one_gallery_each
    part_of = np.repeat(np.arange(len(parts)), [len(part.probes) for part in parts])
    gallery: dict[int, int] = {}
    ranks = np.zeros(len(split.probes), dtype=np.int64)
    num_short = number = 0
    for batch in search_generation(milvus, generation, images.features[split.probes], top):
        for hits in batch:
            if number == 0 or part_of[number] != part_of[number - 1]:
                gallery = {int(crop_ids[row]): int(row) for row in parts[part_of[number]].gallery}
            probe = split.probes[number]
            rows = [row for hit in hits if (row := gallery.get(hit.crop_id)) is not None and row != probe]
            is_positive = images.vehicle_ids[rows] == images.vehicle_ids[probe] if rows else np.empty(0, bool)
            if junk and images.camera_ids is not None and rows:
                is_junk = is_positive & (images.camera_ids[rows] == images.camera_ids[probe])
                is_positive = is_positive[~is_junk]
            positives = np.flatnonzero(is_positive)
            ranks[number] = positives[0] + 1 if len(positives) else 0
            is_short = len(is_positive) < min(REPORTED_RANKS[-1], len(gallery) - 1)
            num_short += is_short and not len(positives)
            number += 1
    return ranks, num_short


def index_loss(
    generation: str, exact: Ranking, ranks: NDArray[np.int64], short: int, top: int
) -> IndexCmcLoss:
    """Compare the ranks of one split's probes, exact and through the index."""
    is_ranked = exact.has_positive
    exact_ranks, index_ranks = exact.first_ranks[is_ranked], ranks[is_ranked]
    return IndexCmcLoss(
        generation=generation,
        probes=int(is_ranked.sum()),
        top=top,
        ranks=REPORTED_RANKS,
        exact=tuple(float((exact_ranks <= k).mean()) for k in REPORTED_RANKS),
        found=tuple(float(((index_ranks > 0) & (index_ranks <= k)).mean()) for k in REPORTED_RANKS),
        short=short,
    )
