"""Sizes of the rows, parts and shards of a run, and the speed that a plan measures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

ROW_BYTES = 4400  # 1024 float32 and the scalar columns, before compression
PARTS_PER_ACTOR = 16
PART_ROWS = (64, 4096)
SHARD_ROWS = 122_880
BLOCKS_AHEAD = 2
MAX_BLOCK_PARTS = 64


@dataclass(frozen=True, slots=True)
class ThroughputSample:
    """A short measurement on this cluster, with all actors at the same time. decoders: processes an actor."""

    crops: int
    failed: int
    actors: int
    crops_per_second: float
    startup_seconds: float
    decoders: int = 1


def blocks_of(parts: Sequence[int], actors: int) -> list[list[int]]:
    """Cut parts into blocks, in order: what an actor takes at a time, large ones first.

    A block is a share of the parts that are left, down to single parts, so that actors end together; at most
    MAX_BLOCK_PARTS, which an actor that dies may have to look through again. The number of blocks grows with
    the actors, and with parts / MAX_BLOCK_PARTS: the driver of Ray Data keeps several KB for each.
    """
    blocks: list[list[int]] = []
    first = 0
    while first < len(parts):
        left = len(parts) - first
        size = min(max(1, left // (BLOCKS_AHEAD * actors)), MAX_BLOCK_PARTS)
        blocks.append(list(parts[first : first + size]))
        first += size
    return blocks


def rows_per_part(rows: int, actors: int) -> int:
    """Return a size of parts that is small enough for actors to finish together, within PART_ROWS."""
    smallest, largest = PART_ROWS
    return min(max(math.ceil(rows / (actors * PARTS_PER_ACTOR)), smallest), largest)
