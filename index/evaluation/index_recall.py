"""The same protocol through the index, so that what the index loses in CMC is a number."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.evaluation.cmc import LabeledFeatures, Ranking, Split
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.search import search_generation

RANKS = (1, 5, 10, 20)


@dataclass(frozen=True, slots=True)
class IndexCmcLoss:
    """CMC of one split, exact and through the index; `exact[i]` and `found[i]` are of rank `ranks[i]`."""

    generation: str
    probes: int
    top: int  # hits that were asked for
    ranks: tuple[int, ...]
    exact: tuple[float, ...]
    found: tuple[float, ...]
    short: int  # probes whose hits held fewer than the last rank of gallery pictures: counted as misses there


def ranks_through_index(
    milvus: Milvus,
    generation: Generation,
    pictures: LabeledFeatures,
    crop_ids: NDArray[np.int64],
    split: Split,
    *,
    top: int,
    junk: bool = False,
) -> tuple[NDArray[np.int64], int]:
    """Rank of each probe's first true match among the hits (0: not there), and how many hits fell short.

    Hits that are not in the split's gallery, the probe's own picture and junk are passed over, as in `cmc`.
    """
    gallery = {int(crop_ids[row]): int(row) for row in split.gallery}
    ranks = np.zeros(len(split.probes), dtype=np.int64)
    short = done = 0
    for batch in search_generation(milvus, generation, pictures.features[split.probes], top):
        for hits in batch:
            probe = split.probes[done]
            kept = [row for hit in hits if (row := gallery.get(hit.crop_id)) is not None and row != probe]
            same = pictures.vehicle_ids[kept] == pictures.vehicle_ids[probe] if kept else np.empty(0, bool)
            if junk and pictures.camera_ids is not None and kept:
                counts = ~same | (pictures.camera_ids[kept] != pictures.camera_ids[probe])
                same = same[counts]
            found = np.flatnonzero(same)
            ranks[done] = found[0] + 1 if len(found) else 0
            short += len(same) < min(RANKS[-1], len(gallery) - 1) and not len(found)
            done += 1
    return ranks, short


def index_loss(
    generation: str, exact: Ranking, ranks: NDArray[np.int64], short: int, top: int
) -> IndexCmcLoss:
    """Compare the ranks of one split's probes, exact and through the index."""
    counted = exact.matches > 0
    return IndexCmcLoss(
        generation=generation,
        probes=int(counted.sum()),
        top=top,
        ranks=RANKS,
        exact=tuple(float((exact.ranks[counted] <= k).mean()) for k in RANKS),
        found=tuple(float(((ranks[counted] > 0) & (ranks[counted] <= k)).mean()) for k in RANKS),
        short=short,
    )
