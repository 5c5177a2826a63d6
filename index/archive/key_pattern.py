"""Read camera, capture time and track from the keys of crops."""

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.schema import MAX_NAME_BYTES, UNKNOWN, UNKNOWN_TIME
from infra.errors import BadSetting
from infra.store import TimeRange

_FIELDS = {
    "date": r"\d{4}-\d{2}-\d{2}|\d{8}",
    "camera_id": r"[^/]+",
    "captured_at": r"\d{13}|\d{10}|\d{8}T\d{6}(?:\d{3})?",
    "track_id": r"[^/]+",
}
_ANYTHING = r"[^/]*"
_COMPACT_TIME = "%Y%m%dT%H%M%S"
_COMPACT_CHARS = 15


class KeyPattern:
    """The form of an archive's keys, such as 'dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg'.

    Fields: {date} (2026-11-22 or 20261122; only its form is checked), {camera_id}, {track_id},
    {captured_at} (13 digits: ms since the epoch; 10 digits: s; or yyyymmddThhmmss[fff]; always UTC), and {*}
    for any text. No field contains a '/'. times: the plausible values of {captured_at}; None: those of the
    environment. Raises BadSetting for an invalid pattern.
    """

    def __init__(self, text: str, times: TimeRange | None = None) -> None:
        self.text = text
        self._times = times or TimeRange.from_env()
        self._names: set[str] = set()
        # RE2 requires at least one named group, hence the outer one.
        self._regex = rf"\A(?P<key>{''.join(map(self._piece, re.split(r'({[^{}]*})', text)))})\z"

    def __repr__(self) -> str:
        return f"KeyPattern({self.text!r})"

    def extract(self, keys: Any) -> dict[str, Any]:
        """Read a string Array (n,) of keys into Arrays (n,) without nulls.

        camera_id and track_id (string), captured_at (int64 ms, UTC), matched (bool). A key does not match if
        its time does not exist or its names are longer than MAX_NAME_BYTES; its fields are then unknown. A
        key with an implausible time does not match either, and only its time is unknown: the camera's clock
        was wrong.
        """
        groups = pc.extract_regex(keys, pattern=self._regex)
        matched = groups.is_valid()
        columns: dict[str, Any] = {}
        for name in ("camera_id", "track_id"):
            if name in self._names:
                columns[name] = pc.struct_field(groups, name)
                fits = pc.less_equal(pc.binary_length(columns[name]), MAX_NAME_BYTES)
                matched = pc.and_(matched, pc.fill_null(fits, False))
            else:
                columns[name] = pa.repeat(UNKNOWN[name], len(keys))
        is_plausible = pa.repeat(True, len(keys))
        if "captured_at" in self._names:
            times = parse_captured_at(pc.struct_field(groups, "captured_at"))
            matched = pc.and_(matched, times.is_valid())
            is_plausible = pc.fill_null(self._times.mask(times), False)
            columns["captured_at"] = pc.if_else(is_plausible, times, UNKNOWN_TIME)
        else:
            columns["captured_at"] = pa.repeat(pa.scalar(UNKNOWN_TIME, pa.int64()), len(keys))
        columns = {name: pc.if_else(matched, column, UNKNOWN[name]) for name, column in columns.items()}
        return columns | {"matched": pc.and_(matched, is_plausible)}

    def _piece(self, piece: str) -> str:
        if piece == "{*}":
            return _ANYTHING
        if not re.fullmatch(r"{[^{}]*}", piece):
            if "{" in piece or "}" in piece:
                raise self._invalid("has an unpaired brace")
            return re.escape(piece)
        name = piece[1:-1]
        if name not in _FIELDS:
            raise self._invalid(f"has no usable field '{piece}'")
        if name in self._names:
            raise self._invalid(f"names '{piece}' twice")
        self._names.add(name)
        return f"(?P<{name}>{_FIELDS[name]})"

    def _invalid(self, reason: str) -> BadSetting:
        fields = ", ".join(f"{{{name}}}" for name in _FIELDS)
        return BadSetting(f"key pattern '{self.text}' {reason}", remedy=f"The fields are {fields} and {{*}}.")


def parse_captured_at(texts: Any) -> Any:
    """Convert the forms of {captured_at} (string Array) to ms since the epoch, UTC (int64 Array).

    Null stays null; a date or time of day that does not exist becomes null.
    """
    null = pa.scalar(None, pa.string())
    digits = pc.if_else(pc.match_substring_regex(texts, r"\A\d+\z"), texts, null)
    numeric = digits.cast(pa.int64())
    numeric = pc.if_else(pc.equal(pc.binary_length(texts), 10), pc.multiply(numeric, 1000), numeric)

    seconds_text = pc.utf8_slice_codeunits(texts, 0, _COMPACT_CHARS)
    seconds = pc.strptime(seconds_text, format=_COMPACT_TIME, unit="s", error_is_null=True)
    # strptime reads 30 February as 2 March, so only a time that prints as it was written is valid.
    is_real = pc.equal(pc.strftime(seconds, format=_COMPACT_TIME), seconds_text)
    seconds = pc.if_else(is_real, seconds, None)
    fraction = pc.utf8_slice_codeunits(texts, _COMPACT_CHARS, _COMPACT_CHARS + 3)
    ms = pc.if_else(numeric.is_null(), pc.if_else(pc.equal(fraction, ""), "0", fraction), null)
    compact = pc.add(pc.multiply(seconds.cast(pa.int64()), 1000), ms.cast(pa.int64()))
    return pc.coalesce(numeric, compact)
