"""Camera, time and track, read from the keys of crops."""

import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.schema import MAX_NAME_BYTES, UNKNOWN_TIME
from infra.errors import BadSetting

_FIELDS = {
    "date": r"\d{4}-\d{2}-\d{2}|\d{8}",
    "camera_id": r"[^/]+",
    "captured_at": r"\d{13}|\d{10}|\d{8}T\d{6}(?:\d{3})?",
    "track_id": r"[^/]+",
}
_ANYTHING = r"[^/]*"
_COMPACT_TIME = "%Y%m%dT%H%M%S"
_COMPACT_CHARS = 15


@dataclass(frozen=True, slots=True)
class KeyFields:
    """What one key says. Fields that the pattern does not name are "" and UNKNOWN_TIME (ms, UTC)."""

    camera_id: str
    captured_at: int
    track_id: str


class KeyPattern:
    """How keys are written, for example 'dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg'.

    Fields: {date} (2026-11-22 or 20261122; checked for its form, not kept), {camera_id}, {track_id},
    {captured_at} (13 digits: ms since the epoch; 10 digits: s; or yyyymmddThhmmss[fff]; always UTC), and {*}
    for anything. No field reaches over a '/'. Raises BadSetting for a pattern that cannot be used.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._names: set[str] = set()
        # RE2 wants at least one named group, hence the outer one.
        self._regex = rf"\A(?P<key>{''.join(map(self._piece, re.split(r'({[^{}]*})', text)))})\z"

    def __repr__(self) -> str:
        return f"KeyPattern({self.text!r})"

    def match(self, key: str) -> KeyFields | None:
        """Read one key, relative to the archive's root. None if it is not written like the pattern."""
        columns = self.extract(pa.array([key], pa.string()))
        if not columns["matched"][0].as_py():
            return None
        return KeyFields(*(columns[name][0].as_py() for name in ("camera_id", "captured_at", "track_id")))

    def extract(self, keys: Any) -> dict[str, Any]:
        """Read a string Array (n,) of keys into Arrays (n,) without nulls.

        camera_id and track_id (string), captured_at (int64 ms, UTC), matched (bool). A key whose time does
        not exist, or whose names are longer than MAX_NAME_BYTES, does not match; its fields are unknown.
        """
        found = pc.extract_regex(keys, pattern=self._regex)
        usable = found.is_valid()
        columns: dict[str, Any] = {}
        for name in ("camera_id", "track_id"):
            if name in self._names:
                columns[name] = pc.struct_field(found, name)
                fits = pc.less_equal(pc.binary_length(columns[name]), MAX_NAME_BYTES)
                usable = pc.and_(usable, pc.fill_null(fits, False))
            else:
                columns[name] = pa.repeat("", len(keys))
        if "captured_at" in self._names:
            columns["captured_at"] = epoch_ms(pc.struct_field(found, "captured_at"))
            usable = pc.and_(usable, columns["captured_at"].is_valid())
        else:
            columns["captured_at"] = pa.repeat(pa.scalar(UNKNOWN_TIME, pa.int64()), len(keys))
        unknown = {"camera_id": "", "captured_at": UNKNOWN_TIME, "track_id": ""}
        return {name: pc.if_else(usable, columns[name], unknown[name]) for name in unknown} | {
            "matched": usable
        }

    def _piece(self, piece: str) -> str:
        if piece == "{*}":
            return _ANYTHING
        if not re.fullmatch(r"{[^{}]*}", piece):
            if "{" in piece or "}" in piece:
                raise self._refused("has a brace without its other half")
            return re.escape(piece)
        name = piece[1:-1]
        if name not in _FIELDS:
            raise self._refused(f"has no usable field '{piece}'")
        if name in self._names:
            raise self._refused(f"names '{piece}' twice")
        self._names.add(name)
        return f"(?P<{name}>{_FIELDS[name]})"

    def _refused(self, why: str) -> BadSetting:
        fields = ", ".join(f"{{{name}}}" for name in _FIELDS)
        return BadSetting(f"key pattern '{self.text}' {why}", remedy=f"The fields are {fields} and {{*}}.")


def epoch_ms(text: Any) -> Any:
    """Turn the forms of {captured_at} (string Array) into ms since the epoch, UTC (int64 Array).

    Null stays null, and a date or time of day that does not exist becomes null.
    """
    nothing = pa.scalar(None, pa.string())
    digits = pc.if_else(pc.match_substring_regex(text, r"\A\d+\z"), text, nothing)
    plain = digits.cast(pa.int64())
    plain = pc.if_else(pc.equal(pc.binary_length(text), 10), pc.multiply(plain, 1000), plain)

    stamp = pc.utf8_slice_codeunits(text, 0, _COMPACT_CHARS)
    moment = pc.strptime(stamp, format=_COMPACT_TIME, unit="s", error_is_null=True)
    # strptime turns 30 February into 2 March: only what prints as it was read is a time.
    moment = pc.if_else(pc.equal(pc.strftime(moment, format=_COMPACT_TIME), stamp), moment, None)
    fraction = pc.utf8_slice_codeunits(text, _COMPACT_CHARS, _COMPACT_CHARS + 3)
    whole = pc.if_else(plain.is_null(), pc.if_else(pc.equal(fraction, ""), "0", fraction), nothing)
    compact = pc.add(pc.multiply(moment.cast(pa.int64()), 1000), whole.cast(pa.int64()))
    return pc.coalesce(plain, compact)
