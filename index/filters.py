"""Typed search filters and their Milvus expression, in which no value can become syntax."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from infra.errors import BadSetting

_MAX_ID = 2**63 - 1

Track = str | tuple[str, str]
"""A track_id on any camera, or (camera_id, track_id): many trackers number their tracks per camera."""


WITHOUT_ATTRIBUTE = (
    "Search without this filter, or embed the archive with a checkpoint that was trained on labels with it."
)
"""The remedy where the archive's model does not predict the attribute of a filter."""


@dataclass(frozen=True, slots=True)
class AttributeFilter:
    """Criteria of one attribute: its column, values to search, values to leave out, lowest confidence."""

    name: str
    values: tuple[str, ...]
    not_values: tuple[str, ...]
    min_confidence: float | None

    @property
    def excluded(self) -> tuple[str, ...]:
        """The values to leave out, without the unknown one."""
        return tuple(value for value in self.not_values if value)


@dataclass(frozen=True, slots=True)
class Filters:
    """Criteria of the crops to search; a crop must match all of them.

    Times are ms since the epoch, UTC, from inclusive, to exclusive; either one excludes crops of unknown
    time. A lowest confidence is that of the value that the network predicts, whichever that is. In the
    `not_…` fields an empty string, "unknown", excludes nothing: the unknown camera of a probe must not
    exclude all crops of unknown camera.
    """

    cameras: tuple[str, ...] = ()
    not_cameras: tuple[str, ...] = ()
    captured_from: int | None = None
    captured_to: int | None = None
    model_ids: tuple[int, ...] = ()
    not_model_ids: tuple[int, ...] = ()
    min_model_confidence: float | None = None
    colors: tuple[str, ...] = ()
    not_colors: tuple[str, ...] = ()
    min_color_confidence: float | None = None
    body_types: tuple[str, ...] = ()
    not_body_types: tuple[str, ...] = ()
    min_body_type_confidence: float | None = None
    tracks: tuple[Track, ...] = ()
    not_tracks: tuple[Track, ...] = ()
    crop_ids: tuple[int, ...] = ()
    not_crop_ids: tuple[int, ...] = ()

    def expression(self) -> str:
        """Return the Milvus expression, '' for no filter. Raises BadSetting for an invalid value."""
        parts: list[str] = [
            _any_of("camera_id", self.cameras),
            _none_of("camera_id", [name for name in self.not_cameras if name]),
            *self._times(),
            _any_of("model_id", self.model_ids),
            _none_of("model_id", self.not_model_ids),
            " or ".join(_track(track) for track in self.tracks),
            *(f"not ({_track(track)})" for track in self.not_tracks if track and track[-1]),
            _any_of("crop_id", self.crop_ids),
            _none_of("crop_id", self.not_crop_ids),
        ]
        for attribute in self.attributes:
            parts.append(_any_of(attribute.name, attribute.values))
            parts.append(_none_of(attribute.name, attribute.excluded))
        for name, confidence in self.confidences:
            if not 0 <= confidence <= 1:
                raise BadSetting(f"a {name.replace('_', ' ')} of {confidence} is not between 0 and 1")
            parts.append(f"{name} >= {confidence:.9f}")
        return " and ".join(f"({part})" for part in parts if part)

    @property
    def confidences(self) -> list[tuple[str, float]]:
        """The columns of confidences with a lowest value, and that value."""
        columns = (
            ("model_confidence", self.min_model_confidence),
            ("color_confidence", self.min_color_confidence),
            ("body_type_confidence", self.min_body_type_confidence),
        )
        return [(name, value) for name, value in columns if value is not None]

    @property
    def attributes(self) -> list[AttributeFilter]:
        """The criteria of attributes, of those that have any."""
        criteria = (
            AttributeFilter("color", self.colors, self.not_colors, self.min_color_confidence),
            AttributeFilter("body_type", self.body_types, self.not_body_types, self.min_body_type_confidence),
        )
        return [each for each in criteria if each.values or each.excluded or each.min_confidence is not None]

    def require_columns(self, names: Collection[str], where: str) -> None:
        """Raise BadSetting for a criterion of an attribute whose column `where` does not have."""
        for attribute in self.attributes:
            if attribute.name not in names:
                raise BadSetting(
                    f"{where} has no column {attribute.name}: its model predicts none",
                    remedy=WITHOUT_ATTRIBUTE,
                )

    def _times(self) -> Iterable[str]:
        start, end = self.captured_from, self.captured_to
        if start is not None and end is not None and start >= end:
            raise BadSetting(f"the time window from {start} to {end} is empty")
        if start is not None or end is not None:
            yield f"captured_at >= {_integer('captured_from', start or 0)}"
        if end is not None:
            yield f"captured_at < {_integer('captured_to', end)}"


def quoted(text: str) -> str:
    """Return a Milvus string literal for any text.

    Milvus Lite knows only the five escapes below, and no other character needs one. Raises BadSetting for
    text that is not valid Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadSetting(f"{text!r} is not valid Unicode") from error
    for character, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(character, escape)
    return f'"{text}"'


def _integer(name: str, value: int) -> str:
    # The server cannot parse -2**63, and the only negative value of a column is -1, for unknown.
    if isinstance(value, bool) or not -1 <= int(value) <= _MAX_ID:
        raise BadSetting(f"{name} {value} is not a whole number from -1 to 2**63 - 1")
    return str(int(value))


def _literal(field: str, value: str | int) -> str:
    return quoted(value) if isinstance(value, str) else _integer(field, value)


def _any_of(field: str, values: Iterable[str | int]) -> str:
    literals = [_literal(field, value) for value in values]
    return f"{field} in [{', '.join(literals)}]" if literals else ""


def _none_of(field: str, values: Iterable[str | int]) -> str:
    expression = _any_of(field, values)
    return f"not ({expression})" if expression else ""


def _track(track: Track) -> str:
    if isinstance(track, str):
        return f"track_id == {quoted(track)}"
    camera, name = track
    return f"camera_id == {quoted(camera)} and track_id == {quoted(name)}"
