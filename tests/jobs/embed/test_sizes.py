"""Parts reach the actors in blocks: few of them, however many parts, and small ones at the end."""

import pytest

from jobs.embed.sizes import MAX_BLOCK_PARTS, blocks_of


@pytest.mark.parametrize(
    ("parts", "actors"), [(1, 1), (3, 8), (24, 2), (2441, 16), (244_141, 6), (244_141, 992)]
)
def test_blocks_have_each_part_once_and_end_with_single_ones(parts: int, actors: int) -> None:
    blocks = blocks_of(range(7, 7 + parts), actors)
    assert [part for block in blocks for part in block] == list(range(7, 7 + parts))
    sizes = list(map(len, blocks))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] <= MAX_BLOCK_PARTS
    assert sizes[-min(len(sizes), actors) :] == [1] * min(len(sizes), actors)  # actors end together
    assert len(blocks) <= parts / MAX_BLOCK_PARTS + 25 * actors
