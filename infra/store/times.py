"""Times that users write: parsed to ms since the epoch (UTC), checked for plausibility, and printed."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from infra.errors import BadSetting

if TYPE_CHECKING:
    pass

EARLIEST_VARIABLE = "CLVR_EARLIEST_TIME"
LATEST_VARIABLE = "CLVR_LATEST_TIME"
DEFAULT_EARLIEST = "1990-01-01T00:00:00Z"

_DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ISO_TIME = (
    r"\A(?P<day>\d{4}-\d{2}-\d{2}|\d{8})[Tt ](?P<clock>\d{2}:\d{2}(?::\d{2})?|\d{4}(?:\d{2})?)"
    r"(?:[.,](?P<fraction>\d{1,9}))? ?(?P<zone>[Zz]|UTC|[+-]\d{2}(?::?\d{2})?)?\z"
)
_COMPACT = "%Y%m%dT%H%M%S"


@dataclass(frozen=True, slots=True)
class TimeRange:
    """The plausible capture times, in ms since the epoch (UTC), both ends included.

    latest: None is 24 hours after now, whenever that is asked.
    """

    earliest: int = 631_152_000_000  # 1990-01-01
    latest: int | None = None

    @classmethod
    def of(cls, earliest: str | None, latest: str | None) -> "TimeRange":
        """Return the range between two times in ISO 8601. Raises BadSetting."""
        first = _setting_ms(earliest or DEFAULT_EARLIEST, EARLIEST_VARIABLE)
        last = _setting_ms(latest, LATEST_VARIABLE) if latest else None
        if last is not None and last < first:
            raise BadSetting(
                f"the latest plausible time {latest} is before the earliest",
                remedy=f"Correct {EARLIEST_VARIABLE} or {LATEST_VARIABLE}.",
            )
        return cls(first, last)

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> "TimeRange":
        """Return the range of CLVR_EARLIEST_TIME and CLVR_LATEST_TIME. Raises BadSetting."""
        env = os.environ if environment is None else environment
        return cls.of(env.get(EARLIEST_VARIABLE), env.get(LATEST_VARIABLE))

    @property
    def last(self) -> int:
        """The latest plausible time now, in ms."""
        return round(time.time() * 1000) + _DAY_MS if self.latest is None else self.latest

    def holds(self, ms: int) -> bool:
        """Whether a time in ms is plausible."""
        return self.earliest <= ms <= self.last

    def mask(self, times: Any) -> Any:
        """Return a bool Array: which of the int64 times (ms) are plausible; null where the time is null."""
        import pyarrow.compute as pc

        return pc.and_(pc.greater_equal(times, self.earliest), pc.less_equal(times, self.last))

    def hint(self, ms: int) -> str:
        """Return what may be wrong with an implausible time."""
        for factor, unit in ((1000, "seconds"), (1 / 1000, "microseconds"), (1 / 1_000_000, "nanoseconds")):
            if self.holds(int(ms * factor)):
                return f"it would be plausible in {unit}, and a whole number counts milliseconds"
        return f"plausible are {format_ms(self.earliest)} to {format_ms(self.last)}"


def format_ms(ms: int) -> str:
    """Return a time as '2026-01-05 10:00:00' (UTC); one that no calendar has as '… ms since 1970'."""
    try:
        return (_EPOCH + timedelta(milliseconds=ms)).strftime("%Y-%m-%d %H:%M:%S")
    except OverflowError:
        return f"{ms} ms since 1970"


def parse_iso_times(texts: Any) -> Any:
    """Parse a string Array of ISO 8601 times to ms since the epoch (int64 Array); null where it is none.

    Basic or extended form, with or without seconds, fractions (cut to ms) and a zone; without a zone it is
    UTC. A day without a time of day is none, nor is a day or a time of day that does not exist.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    groups = pc.extract_regex(texts, _ISO_TIME)
    day, clock, fraction, zone = (
        pc.struct_field(groups, name) for name in ("day", "clock", "fraction", "zone")
    )
    digits = pc.utf8_rpad(pc.replace_substring(clock, ":", ""), 6, "0")
    compact = pc.binary_join_element_wise(pc.replace_substring(day, "-", ""), digits, "T")
    seconds = pc.strptime(compact, format=_COMPACT, unit="s", error_is_null=True)
    # strptime reads 30 February as 2 March, so only a time that prints as it was written is valid.
    seconds = pc.if_else(pc.equal(pc.strftime(seconds, format=_COMPACT), compact), seconds, None)
    ms = pc.utf8_slice_codeunits(pc.utf8_rpad(fraction, 3, "0"), 0, 3).cast(pa.int64())
    local = pc.add(pc.multiply(seconds.cast(pa.int64()), 1000), ms)
    return pc.subtract(local, _zone_ms(zone))


def _zone_ms(zones: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    # extract_regex gives the empty string for a group that did not take part.
    digits = pc.utf8_rpad(pc.replace_substring_regex(zones, r"[^0-9]", ""), 4, "0").cast(pa.int64())
    hours, minutes = pc.divide(digits, 100), pc.subtract(digits, pc.multiply(pc.divide(digits, 100), 100))
    size = pc.multiply(pc.add(pc.multiply(hours, 60), minutes), 60_000)
    exists = pc.and_(pc.less_equal(hours, 15), pc.less(minutes, 60))
    size = pc.if_else(exists, size, pa.scalar(None, pa.int64()))
    return pc.if_else(pc.starts_with(zones, "-"), pc.negate(size), size)


def _setting_ms(text: str, variable: str) -> int:
    import pyarrow as pa

    # A day alone is its midnight here, where the exact time does not matter.
    full = f"{text}T00:00:00Z" if len(text) == len("2026-01-05") else text
    ms = parse_iso_times(pa.array([full]))[0].as_py()
    if ms is None:
        raise BadSetting(f"{text!r} is no time", remedy=f"Write {variable} as 2026-01-05T10:00:00Z.")
    return int(ms)
