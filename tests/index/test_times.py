"""Rows are not selected by times that cannot be."""

import pyarrow as pa
import pytest

from index.schema import UNKNOWN_TIME
from index.times import is_plausible_time, require_plausible_times
from infra.errors import BadInput
from infra.store import TimeRange

RANGE = TimeRange.of("1990-01-01", "2027-01-01")
GOOD = 1_767_607_200_000


def test_unknown_times_are_plausible_and_others_only_in_the_range() -> None:
    times = pa.array([GOOD, UNKNOWN_TIME, None, 0, GOOD // 1000, GOOD * 1000, 2**63 - 1, -(2**63)])
    assert is_plausible_time(times, RANGE).to_pylist() == [True] * 3 + [False] * 5


@pytest.mark.parametrize("wrong", [GOOD // 1000, GOOD * 1000, 2**62])
def test_a_selection_by_time_over_implausible_rows_is_refused_with_the_first(wrong: int) -> None:
    rows = pa.table({"uri": ["s3://a/1.jpg", "s3://a/2.jpg"], "captured_at": [UNKNOWN_TIME, GOOD]})
    require_plausible_times(rows, RANGE, "retain")
    rows = pa.concat_tables([rows, pa.table({"uri": ["s3://a/3.jpg"], "captured_at": [wrong]})])
    with pytest.raises(BadInput, match=rf"retain selects by time.* s3://a/3\.jpg with {wrong} ms"):
        require_plausible_times(rows, RANGE, "retain")
