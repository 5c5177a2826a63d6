"""Searching the live generation: probes in, ranked hits out, by plain L2 distance."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.filters import Filters
from index.milvus.client import Milvus
from index.milvus.collection import Generation, require_live
from index.milvus.index_types import MAX_TOP, search_params
from index.schema import EMBEDDING_DIM, MAX_BYTES, SCALAR_NAMES
from infra.errors import BadInput, BadSetting

_FIELDS = [name for name in SCALAR_NAMES if name != "crop_id"]
_REPLY_BYTES = 64 * 1024 * 1024
_HIT_BYTES = sum(MAX_BYTES.values()) + 64


@dataclass(frozen=True, slots=True)
class Hit:
    """One crop at a rank, which counts from 1; `distance` is L2, not its square; times in ms, UTC."""

    rank: int
    crop_id: int
    distance: float
    uri: str
    camera_id: str
    track_id: str
    captured_at: int
    model_id: int
    model_confidence: float


def search(
    milvus: Milvus,
    alias: str,
    features: NDArray[np.float32],
    *,
    fingerprint: str,
    top: int = 20,
    filters: Filters | None = None,
) -> list[list[Hit]]:
    """Return for each probe its nearest crops in the live generation, nearest first, at most `top`.

    features: float32 (q, 1024), made by the model of `fingerprint`. The alias is resolved once, so all
    probes are answered by one generation even if the alias moves meanwhile.
    Raises BadInput for probes that are no such features and if nothing is live, FingerprintMismatch,
    BadSetting for `top` or a filter out of range, IndexUnreachable, IndexRefused.
    """
    checked_probes(features)
    generation = require_live(milvus, alias, fingerprint)
    return [hits for batch in search_generation(milvus, generation, features, top, filters) for hits in batch]


def search_generation(
    milvus: Milvus,
    generation: Generation,
    features: NDArray[np.float32],
    top: int,
    filters: Filters | None = None,
) -> Iterator[list[list[Hit]]]:
    """Yield the hits of a loaded generation, live or not, in batches of probes."""
    if not 1 <= top <= MAX_TOP:
        raise BadSetting(f"top {top} is not between 1 and {MAX_TOP:,}")
    checked_probes(features)
    expression = (filters or Filters()).expression()
    effort = {"metric_type": "L2", "params": search_params(generation.index, top)}
    size = max(1, min(milvus.capabilities.probes_per_call, _REPLY_BYTES // (top * _HIT_BYTES)))
    for start in range(0, len(features), size):
        answers = milvus.call(
            "search",
            generation.name,
            data=list(np.ascontiguousarray(features[start : start + size], np.float32)),
            anns_field="embedding",
            limit=top,
            filter=expression,
            search_params=effort,
            output_fields=_FIELDS,
            timeout=120,
        )
        yield [[_hit(rank, found) for rank, found in enumerate(answer, start=1)] for answer in answers]


def checked_probes(features: NDArray[np.float32]) -> None:
    """Raise BadInput unless these are finite features (q, 1024): Milvus searches with NaN without a word."""
    if features.ndim != 2 or features.shape[1] != EMBEDDING_DIM:
        raise BadInput(f"probes have the shape {features.shape}, not (q, {EMBEDDING_DIM})")
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if bad.size:
        raise BadInput(f"probe {bad[0]} holds a number that is not finite ({bad.size:,} such probes)")


def _hit(rank: int, found: Any) -> Hit:
    entity = found["entity"]
    # Milvus answers with the square, and rounding can leave it a little below zero.
    distance = math.sqrt(max(float(found["distance"]), 0.0))
    return Hit(
        rank=rank, crop_id=int(found.id), distance=distance, **{name: entity[name] for name in _FIELDS}
    )
