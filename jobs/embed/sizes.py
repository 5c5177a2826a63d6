"""Sizes of the rows, parts and shards of a run, and the speed that a plan measures."""

import math
from dataclasses import dataclass

ROW_BYTES = 4400  # 1024 float32 and the scalar columns, before compression
PARTS_PER_ACTOR = 16
PART_ROWS = (64, 4096)
SHARD_ROWS = 122_880


@dataclass(frozen=True, slots=True)
class ThroughputSample:
    """A short measurement on this cluster, with all actors at the same time."""

    crops: int
    failed: int
    actors: int
    crops_per_second: float
    startup_seconds: float


def rows_per_part(rows: int, actors: int) -> int:
    """Return a size of parts that is small enough for actors to finish together, within PART_ROWS."""
    smallest, largest = PART_ROWS
    return min(max(math.ceil(rows / (actors * PARTS_PER_ACTOR)), smallest), largest)
