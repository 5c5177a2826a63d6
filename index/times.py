"""Capture times that can be trusted: checked before rows are selected, or erased, by their time."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.schema import UNKNOWN_TIME
from infra.errors import BadInput
from infra.store import TimeRange, format_ms


def is_plausible_time(captured_at: Any, times: TimeRange) -> Any:
    """Return a bool Array (n,): whether capture times (int64 ms) are unknown or within the range."""
    is_unknown = pc.or_(captured_at.is_null(), pc.equal(captured_at, UNKNOWN_TIME))
    return pc.fill_null(pc.or_kleene(is_unknown, times.mask(captured_at)), True)


def require_plausible_times(rows: pa.Table, times: TimeRange, purpose: str) -> None:
    """Raise BadInput, with the first crop, if a known capture time of the rows is not plausible.

    rows: columns `uri` and `captured_at` (int64 ms). purpose: what is refused, such as 'retain'.
    """
    is_wrong = pc.invert(is_plausible_time(rows["captured_at"], times))
    count = pc.sum(is_wrong, min_count=0).as_py()
    if not count:
        return
    row = pc.index(is_wrong, True).as_py()
    captured_at = rows["captured_at"][row].as_py()
    raise BadInput(
        f"{purpose} selects by time, and {count:,} crops have none that is plausible, such as "
        f"{rows['uri'][row]} with {captured_at} ms ({format_ms(captured_at)})",
        remedy="Embed these crops again with correct times, or set CLVR_EARLIEST_TIME and CLVR_LATEST_TIME.",
    )
