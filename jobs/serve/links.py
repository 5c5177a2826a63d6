"""What the page links to elsewhere, by settings: the video of a sighting, and tiles of a map."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from string import Formatter
from urllib.parse import quote, urlsplit

from index.schema import UNKNOWN_TIME
from infra.errors import BadSetting

_VIDEO_FIELDS = {"camera_id", "track_id", "iso", "seconds", "milliseconds"}
_TILE_FIELDS = {"x", "y", "z"}
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?")


def _fields_of(template: str) -> set[str] | None:
    """Return the names of the fields of a template; None if it is none."""
    try:
        return {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class VideoLink:
    """The link to the video of a sighting, by the template of a setting. Raises BadSetting."""

    template: str | None

    def __post_init__(self) -> None:
        if self.template is None:
            return
        fields = _fields_of(self.template)
        is_web = urlsplit(self.template).scheme in ("http", "https")
        if not is_web or fields is None or fields - _VIDEO_FIELDS:
            raise BadSetting(
                f"video_url {self.template[:80]!r} is no template of a link",
                remedy="Write https://…/{camera_id}?t={iso}, or {seconds}, {milliseconds}, {track_id}.",
            )

    def of(self, camera_id: str, track_id: str, captured_at: int) -> str | None:
        """Return the link; None without a template, a camera or a time."""
        if self.template is None or not camera_id or captured_at == UNKNOWN_TIME:
            return None
        try:
            moment = datetime.fromtimestamp(captured_at / 1000, UTC)
        except (OverflowError, ValueError, OSError):
            return None
        return self.template.format(
            camera_id=quote(camera_id, safe=""),
            track_id=quote(track_id, safe=""),
            iso=quote(moment.strftime("%Y-%m-%dT%H:%M:%SZ"), safe=":"),
            seconds=captured_at // 1000,
            milliseconds=captured_at,
        )


@dataclass(frozen=True, slots=True)
class MapTiles:
    """The images under the map, by the template of a setting; none without it. Raises BadSetting."""

    template: str | None

    def __post_init__(self) -> None:
        if self.template is not None and not (self.origin and _fields_of(self.template) == _TILE_FIELDS):
            raise BadSetting(
                f"map_tiles {self.template[:80]!r} is no template of tiles",
                remedy="Write https://…/{z}/{x}/{y}.png.",
            )

    @property
    def origin(self) -> str:
        """The server that the browser may load images from, "" for none."""
        found = _ORIGIN.match(self.template or "")
        return found[0] if found and (self.template or "")[found.end() :].startswith("/") else ""
