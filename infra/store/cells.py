"""Columns of user tables as one of a few kinds of value, whatever their type in the file.

    text     as written; the empty text is unknown
    id       a whole number from 0; empty and -1 are unknown
    small_id the same, below 2^31
    integer  a whole number
    number   a finite number
    time     ms since the epoch (UTC): a timestamp of any unit and zone, ISO 8601 text, or whole ms;
             empty and -1 are unknown; a day without a time of day is refused

An unknown value is null. A value that does not fit is refused with the file, the data row and the column.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from infra.errors import BadInput
from infra.store.times import TimeRange, format_ms, parse_iso_times

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["text", "id", "small_id", "integer", "number", "time"]

_NULL_WORDS = ("", "null", "none", "nan", "na", "n/a", "<na>", "nat")
_WHOLE = r"\A[+-]?[0-9]{1,19}(\.0*)?\z"
_NUMBER = r"\A[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\z"
_MAX_EXACT = 2**53
_SMALL_IDS = 2**31
_TICKS_PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}
_EXPECTED = {
    "text": "text",
    "id": "a whole number of at least 0",
    "small_id": "a whole number of at least 0 and below 2^31",
    "integer": "a whole number",
    "number": "a number",
    "time": "a time: ISO 8601 with a time of day, such as 2026-01-05T10:00:00Z, or whole ms since 1970",
}
_MAX_SHOWN = 40
_VALUE_REMEDY = "Correct this value, or leave it empty where it is unknown."
IMPLAUSIBLE_REMEDY = (
    "Correct it, leave it empty where the time is unknown, or set CLVR_EARLIEST_TIME and CLVR_LATEST_TIME."
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array of values is from, for the messages. first_row: the data row of its first value."""

    uri: str
    column: str
    first_row: int
    error: type[BadInput]

    def refuse(self, row: int, value: object, reason: str, remedy: str = _VALUE_REMEDY) -> BadInput:
        """Return the error for the value at position `row` of the array."""
        shown = repr(value)
        shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[: _MAX_SHOWN - 1]}…"
        return self.error(
            f"{self.uri}, data row {self.first_row + row}, column {self.column}: {shown} {reason}",
            remedy=remedy,
        )

    def refuse_type(self, data_type: Any, kind: Kind) -> BadInput:
        """Return the error for a column that cannot be of the kind."""
        shown = str(data_type).partition("\n")[0][:80]
        return self.error(
            f"{self.uri}: column {self.column} is {shown}, not {_EXPECTED[kind]}",
            remedy="Write the column again, or leave it out.",
        )


def convert(values: Any, kind: Kind, place: Place, times: TimeRange | None = None) -> Any:
    """Convert an Array of any type to the kind: string, int64 or float64, null where unknown.

    times: refuse other times. The values of a dictionary must have been expanded. Raises `place.error`.
    """
    import pyarrow as pa

    values = _plain(values)
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), _arrow_type(kind))
    if kind == "text":
        return _to_text(values, place)
    if kind == "time":
        return _to_time(values, place, times)
    if kind == "number":
        return _to_number(values, place)
    whole = _to_whole(values, kind, place)
    return whole if kind == "integer" else _without_unknown_ids(whole, kind, place)


def first_failure(values: Any, works: Callable[[Any], object]) -> int:
    """Return the position of the first value that makes `works` raise on an Array that holds it."""
    low, high = 0, len(values)  # works on values[:low], raises on values[:high]
    while high - low > 1:
        middle = (low + high) // 2
        try:
            works(values.slice(low, middle - low))
        except Exception:  # whatever pyarrow raises for it
            high = middle
        else:
            low = middle
    return low


def _arrow_type(kind: Kind) -> "pa.DataType":
    import pyarrow as pa

    return {"text": pa.string(), "number": pa.float64()}.get(kind, pa.int64())


def _plain(values: Any) -> Any:
    """Return values without an extension type, run-length encoding, dictionary or large or view form."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_run_end_encoded(values.type):
        values = pc.run_end_decode(values)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if pa.types.is_large_string(kind) or kind == pa.string_view():
        return values.cast(pa.string())
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_large_binary(kind) or kind == pa.binary_view():
        return values.cast(pa.binary())
    return values


def _to_text(values: Any, place: Place) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        values = _utf8(values, place)
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        # pandas turns whole numbers into floats where some are missing.
        values = _to_whole(values, "text", place).cast(pa.string())
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        values = values.cast(pa.string())
    else:
        raise place.refuse_type(kind, "text")
    return pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)


def _utf8(values: Any, place: Place) -> Any:
    import pyarrow as pa

    raw = values.cast(pa.binary())
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        row = first_failure(raw, lambda part: part.cast(pa.string()))
        raise place.refuse(row, raw[row].as_py(), "is not UTF-8") from None


def _to_whole(values: Any, kind: Kind, place: Place) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(values.type) or pa.types.is_binary(values.type):
        words = _words(values, place)
        _refuse_first(pc.invert(pc.match_substring_regex(words, _WHOLE)), words, kind, place)
        return _digits_to_whole(words, kind, place)
    if pa.types.is_floating(values.type):
        values = values.cast(pa.float64())
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
        is_whole = pc.and_(pc.equal(pc.floor(values), values), pc.less_equal(pc.abs(values), _MAX_EXACT))
        _refuse_first(pc.invert(is_whole), values, kind, place)
        return values.cast(pa.int64())
    if pa.types.is_integer(values.type) or pa.types.is_decimal(values.type):
        return _cast_to_whole(values, values, kind, place)
    raise place.refuse_type(values.type, kind)


def _digits_to_whole(words: Any, kind: Kind, place: Place) -> Any:
    import pyarrow.compute as pc

    digits = pc.replace_substring_regex(words, r"(\A\+)|(\.0*\z)", "")
    return _cast_to_whole(digits, words, kind, place)


def _cast_to_whole(values: Any, written: Any, kind: Kind, place: Place) -> Any:
    """Return numbers or digits as int64; a message shows what is `written`."""
    import pyarrow as pa

    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid:
        row = first_failure(values, lambda part: part.cast(pa.int64()))
        raise place.refuse(row, written[row].as_py(), f"is not {_EXPECTED[kind]}") from None


def _without_unknown_ids(ids: Any, kind: Kind, place: Place) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = pc.if_else(pc.equal(ids, -1), pa.scalar(None, pa.int64()), ids)
    is_outside = pc.less(ids, 0)
    if kind == "small_id":
        is_outside = pc.or_(is_outside, pc.greater_equal(ids, _SMALL_IDS))
    _refuse_first(is_outside, ids, kind, place)
    return ids


def _to_number(values: Any, place: Place) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        words = _words(values, place)
        _refuse_first(pc.invert(pc.match_substring_regex(words, _NUMBER)), words, "number", place)
        values = pc.replace_substring_regex(words, r"\A\+", "").cast(pa.float64())
    elif pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        values = values.cast(pa.float64(), safe=False)
    else:
        raise place.refuse_type(kind, "number")
    values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
    _refuse_first(pc.is_inf(values), values, "number", place)
    return values


def _to_time(values: Any, place: Place, times: TimeRange | None) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_timestamp(kind):
        ms = _timestamps_to_ms(values)
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        words = _words(values, place)
        is_whole = pc.match_substring_regex(words, _WHOLE)
        nothing = pa.scalar(None, pa.string())
        whole = _digits_to_whole(pc.if_else(is_whole, words, nothing), "time", place)
        ms = pc.coalesce(whole, parse_iso_times(words))
        _refuse_first(pc.and_(words.is_valid(), ms.is_null()), words, "time", place)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        ms = _to_whole(values, "time", place)
    else:
        raise place.refuse_type(kind, "time")
    if not pa.types.is_timestamp(kind):
        ms = pc.if_else(pc.equal(ms, -1), pa.scalar(None, pa.int64()), ms)
    row = pc.index(times.mask(ms), False).as_py() if times is not None else -1
    if times is not None and row >= 0:
        value = ms[row].as_py()
        written = format_ms(value) if pa.types.is_timestamp(kind) else values[row].as_py()
        reason = f"({format_ms(value)}) is no plausible time: {times.hint(value)}"
        raise place.refuse(row, written, reason, IMPLAUSIBLE_REMEDY)
    return ms


def _timestamps_to_ms(values: Any) -> Any:
    """Return timestamps as ms, rounded down; what does not fit becomes the outermost number of ms."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ticks = values.cast(pa.int64())
    per_second = _TICKS_PER_SECOND[values.type.unit]
    if per_second == 1:
        most = (2**63 - 1) // 1000
        low, high = pc.less(ticks, -most), pc.greater(ticks, most)
        return pc.multiply(pc.if_else(low, -most, pc.if_else(high, most, ticks)), 1000)
    per_ms = per_second // 1000
    quotient = pc.divide(ticks, per_ms)
    is_below = pc.less(ticks, pc.multiply(quotient, per_ms))  # division cuts toward zero
    return pc.if_else(is_below, pc.subtract(quotient, 1), quotient)


def _words(values: Any, place: Place) -> Any:
    """Return text without outer white space, null where a word says that nothing is known."""
    import pyarrow as pa
    import pyarrow.compute as pc

    words = pc.utf8_trim_whitespace(_utf8(values, place))
    is_nothing = pc.is_in(pc.utf8_lower(words), value_set=pa.array(_NULL_WORDS))
    return pc.if_else(is_nothing, pa.scalar(None, pa.string()), words)


def _refuse_first(is_bad: Any, values: Any, kind: Kind, place: Place) -> None:
    import pyarrow.compute as pc

    row = pc.index(is_bad, True).as_py()
    if row >= 0:
        raise place.refuse(row, values[row].as_py(), f"is not {_EXPECTED[kind]}")
