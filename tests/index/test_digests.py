"""The digest of a column depends on its values and on nothing else."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index.digests import column_digest

COLUMNS = [
    pa.array([1, 2, 3, 4], pa.int64()),
    pa.array([1, None, 3, 4], pa.int32()),
    pa.array([0.5, float("nan"), -0.0, 1e30], pa.float32()),
    pa.array(["", "ä", "bc", "d"], pa.string()),
    pa.array(["", None, "bc", "d"], pa.string()),
    pa.array([b"ab", b"cd", b"ef", b"gh"], pa.binary(2)),
    pa.array([[1.0, 2.0], [], [3.0], [4.0]], pa.list_(pa.float32())),
    pa.array([[1.0, None], None, [3.0], []], pa.list_(pa.float32())),
]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: str(column.type))
def test_slices_offsets_and_chunks_do_not_matter(column: Any) -> None:
    whole = column_digest([column])
    for cut in range(len(column) + 1):
        assert column_digest([column[:cut], column[cut:]]) == whole
    longer = pa.concat_arrays([column[2:], column, column])
    assert column_digest([longer[2:6]]) == whole
    assert column_digest([longer]) != whole


def test_each_difference_matters() -> None:
    digests = {column_digest([column]) for column in COLUMNS}
    digests |= {column_digest([column[:3]]) for column in COLUMNS}
    digests |= {
        column_digest([column])
        for column in (
            pa.array([1, 2, 3, 4], pa.int32()),
            pa.array([1, 0, 3, 4], pa.int32()),
            pa.array([0.5, float("nan"), 0.0, 1e30], pa.float32()),
            pa.array(["ä", "", "bc", "d"], pa.string()),
            pa.array(["", "", "bc", "d"], pa.string()),
            pa.array([b"ab", b"cd", b"ef", b"hg"], pa.binary(2)),
            pa.array([[1.0], [2.0], [3.0], [4.0]], pa.list_(pa.float32())),
            pa.array([[1.0, 2.0], [], [4.0], [3.0]], pa.list_(pa.float32())),
        )
    }
    assert len(digests) == 3 * len(COLUMNS)


def test_what_lies_under_a_null_does_not_matter() -> None:
    mask = np.array([False, True])
    assert column_digest([pa.array([1, 2], mask=mask)]) == column_digest([pa.array([1, 9], mask=mask)])


def test_an_unknown_type_is_an_error() -> None:
    with pytest.raises(TypeError, match="bool"):
        column_digest([pa.array([True])])
