"""Golden probes: archived crops whose matches are known, asked before a generation may go live."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.crops import crop_id_of
from index.generations import Generation, ensure_loaded
from index.milvus import Milvus
from index.search import search_generation
from infra.errors import BadLabels

DROP = 0.01
"""How much of its CMC a generation may lose against the live one: one probe in a hundred."""

_TOP = 50
_FETCHED = 500  # vectors a call: 2 MB

GoldenProbes = dict[int, int]
"""crop_id -> vehicle_id."""


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """The share of `probes` that have a crop of their own vehicle at rank 1, up to 10 and up to 50.

    A probe counts if the generation holds it and another golden crop of its vehicle; it never finds itself.
    """

    probes: int
    rank_1: float
    rank_10: float
    rank_50: float


def golden_probes(labels: pa.Table) -> GoldenProbes:
    """Read golden probes from a table with the columns `uri` and `vehicle_id`. Raises BadLabels."""
    missing = {"uri", "vehicle_id"} - set(labels.schema.names)
    if missing:
        raise BadLabels(f"the golden probes lack the columns {', '.join(sorted(missing))}")
    pairs = zip(labels["uri"].to_pylist(), labels["vehicle_id"].to_pylist(), strict=True)
    found = {
        crop_id_of(uri): int(vehicle) for uri, vehicle in pairs if uri is not None and vehicle is not None
    }
    if not any(count > 1 for count in Counter(found.values()).values()):
        raise BadLabels("no two golden probes are of one vehicle, so none has a known match")
    return found


def measure(milvus: Milvus, generation: Generation, golden: GoldenProbes) -> GoldenResult:
    """Search a generation for each golden probe by the embedding that it holds itself: any model will do."""
    ensure_loaded(milvus, generation)
    held = {
        crop_id: vector
        for ids, vectors in _vectors(milvus, generation, golden)
        for crop_id, vector in zip(ids, vectors, strict=True)
    }
    sizes = Counter(golden[crop_id] for crop_id in held)
    probes = [crop_id for crop_id in sorted(held) if sizes[golden[crop_id]] > 1]
    if not probes:
        return GoldenResult(0, 0.0, 0.0, 0.0)
    ranks = []
    answers = search_generation(milvus, generation, np.stack([held[one] for one in probes]), _TOP + 1)
    for probe, hits in zip(probes, (hits for batch in answers for hits in batch), strict=True):
        others = [hit.crop_id for hit in hits if hit.crop_id != probe][:_TOP]
        places = [rank for rank, one in enumerate(others, 1) if golden.get(one) == golden[probe]]
        ranks.append(places[0] if places else _TOP + 1)
    found = np.asarray(ranks)
    shares = [float((found <= rank).mean()) for rank in (1, 10, 50)]
    return GoldenResult(len(probes), *shares)


def worse_than(found: GoldenResult, live: GoldenResult) -> Iterator[str]:
    """Say what was lost against the live generation."""
    if live.probes and not found.probes:
        yield f"none of the {live.probes:,} golden probes of the live generation is in it"
        return
    for name in ("rank_1", "rank_10", "rank_50"):
        now, before = getattr(found, name), getattr(live, name)
        if now < before - DROP:
            yield f"golden probes: {name.replace('_', '-')} is {now:.3f}, on the live generation {before:.3f}"


def _vectors(
    milvus: Milvus, generation: Generation, golden: GoldenProbes
) -> Iterator[tuple[list[int], list[NDArray[np.float32]]]]:
    wanted = sorted(golden)
    for first in range(0, len(wanted), _FETCHED):
        listed = ", ".join(map(str, wanted[first : first + _FETCHED]))
        rows = milvus.call(
            "query",
            generation.name,
            filter=f"crop_id in [{listed}]",
            output_fields=["crop_id", "embedding"],
            consistency_level="Strong",
            timeout=60,
        )
        yield [row["crop_id"] for row in rows], [np.asarray(row["embedding"], np.float32) for row in rows]
