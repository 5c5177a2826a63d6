"""Search a generation: probes in, ranked hits out, by L2 distance."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.filters import Filters
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.index_types import MAX_TOP, search_params
from index.schema import MAX_BYTES, scalar_names
from infra.errors import BadInput, BadSetting

_REPLY_BYTES = 64 * 1024 * 1024
_HIT_BYTES = sum(MAX_BYTES.values()) + 64


@dataclass(frozen=True, slots=True)
class Hit:
    """One crop at a rank from 1; `distance` is L2, not its square; `captured_at` in ms, UTC.

    An attribute that the model does not predict is the empty text, with confidence 0.
    """

    rank: int
    crop_id: int
    distance: float
    uri: str
    camera_id: str
    track_id: str
    captured_at: int
    model_id: int
    model_confidence: float
    color: str = ""
    color_confidence: float = 0.0
    body_type: str = ""
    body_type_confidence: float = 0.0


def search_generation(
    milvus: Milvus,
    generation: Generation,
    features: NDArray[np.float32],
    top: int,
    filters: Filters | None = None,
) -> Iterator[list[list[Hit]]]:
    """Yield, in batches of probes, the nearest crops of each probe, nearest first, at most `top`.

    generation: loaded, live or not. features: float32 (q, d), made by its model and
    its transform.
    Raises BadInput for other features, BadSetting for `top` or a filter out of range, IndexUnreachable,
    IndexRefused.
    """
    if not 1 <= top <= MAX_TOP:
        raise BadSetting(f"top {top} is not between 1 and {MAX_TOP:,}")
    check_features(features, generation.dimension)
    filters = filters or Filters()
    columns = scalar_names(generation.schema_version)
    filters.require_columns(columns, generation.name)
    fields = [name for name in columns if name != "crop_id"]
    expression = filters.expression()
    params = {"metric_type": "L2", "params": search_params(generation.index, top)}
    size = max(1, min(milvus.capabilities.probes_per_call, _REPLY_BYTES // (top * _HIT_BYTES)))
    for start in range(0, len(features), size):
        results = milvus.call(
            "search",
            generation.name,
            data=list(np.ascontiguousarray(features[start : start + size], np.float32)),
            anns_field="embedding",
            limit=top,
            filter=expression,
            search_params=params,
            output_fields=fields,
            timeout=120,
        )
        yield [[_hit(rank, row, fields) for rank, row in enumerate(rows, start=1)] for rows in results]


def check_features(features: NDArray[np.float32], dimension: int) -> None:
    """Raise BadInput unless these are finite features (q, dimension): Milvus accepts NaN silently."""
    if features.ndim != 2 or features.shape[1] != dimension:
        raise BadInput(f"probes have the shape {features.shape}, not (q, {dimension})")
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if bad.size:
        raise BadInput(f"probe {bad[0]} holds a number that is not finite ({bad.size:,} such probes)")


def _hit(rank: int, row: Any, fields: Sequence[str]) -> Hit:
    entity = row["entity"]
    # Milvus returns the square, which rounding may leave slightly below zero.
    distance = math.sqrt(max(float(row["distance"]), 0.0))
    return Hit(rank=rank, crop_id=int(row.id), distance=distance, **{name: entity[name] for name in fields})
