"""Pages of matches: strips of crops with their times and cameras, as self-contained HTML without script."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from index.schema import UNKNOWN_TIME
from index.search.retrieval import Match
from jobs.pages.html import render
from jobs.runtime.format import capture_time

MAX_LANES = 12
WIDTH, LANE_HEIGHT, LEFT = 640.0, 18.0, 120.0
MAP_SIDE = 240.0
MAX_TICKS = 4
_HOUR, _DAY = 3_600_000, 86_400_000
_STEPS = (60_000, 300_000, 900_000, *(hours * _HOUR for hours in (1, 3, 6, 12, 24, 48, 168, 720, 8760)))


@dataclass(frozen=True, slots=True)
class PageMatch:
    """A match with its image, the name of its vehicle model, and whether it is within the threshold.

    attributes: its predicted color and body type, as text.
    """

    match: Match
    jpeg: bytes
    model: str
    within: bool
    attributes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ProbeStrip:
    """One probe and its matches.

    verdict: `found`, `not found`, `ranked` (not calibrated), `nothing` (no crop passes the filters) or
    `failed`.
    """

    name: str
    verdict: str
    note: str = ""
    images: Sequence[bytes] = ()
    facts: Sequence[str] = ()
    matches: Sequence[PageMatch] = ()


@dataclass(frozen=True, slots=True)
class SearchPage:
    """The content of a page of matches.

    counts: probes by verdict. not_shown: number of probes without a strip. kind: what made it. purpose: who
    asked, and why.
    """

    title: str
    summary: str
    strips: Sequence[ProbeStrip]
    facts: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    positions: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    not_shown: int = 0
    command: str = ""
    kind: str = "search"
    purpose: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dot:
    """A mark of a drawing."""

    x: float
    y: float
    radius: float
    label: str
    strong: bool = False
    name: str = ""  # to write at the mark


@dataclass(frozen=True, slots=True)
class Drawing:
    """Marks, and the lanes and ticks of a timeline; sizes in SVG units."""

    width: float
    height: float
    dots: Sequence[Dot]
    lanes: Sequence[tuple[str, float]] = ()
    ticks: Sequence[tuple[float, str]] = ()


def build_search_page(page: SearchPage) -> str:
    """Render the page. Raises UnreadableImage for image bytes that are not JPEG."""
    return render(
        "search_page.html.j2",
        styles=("page.css.j2", "search_page.css.j2"),
        page=page,
        timelines=[timeline([shown.match for shown in strip.matches]) for strip in page.strips],
        maps=[camera_map([shown.match for shown in strip.matches], page.positions) for strip in page.strips],
        unknown_time=UNKNOWN_TIME,
    )


def timeline(matches: Sequence[Match]) -> Drawing | None:
    """Draw one lane per camera and time from left to right; None if no match has a time."""
    timed = [match for match in matches if match.hit.captured_at != UNKNOWN_TIME]
    if not timed:
        return None
    first = min(match.hit.captured_at for match in timed)
    last = max(match.hit.captured_at for match in timed)
    busiest = Counter(match.hit.camera_id or "unknown" for match in timed).most_common(MAX_LANES)
    lanes = {name: 14 + LANE_HEIGHT * row for row, name in enumerate(sorted(name for name, _ in busiest))}

    def x(time: int) -> float:
        return round(LEFT + (WIDTH - LEFT - 16) * ((time - first) / max(1, last - first)) + 6, 1)

    dots = [
        Dot(
            x=x(match.hit.captured_at),
            y=lanes[match.hit.camera_id or "unknown"],
            radius=5.0,
            label=f"rank {match.rank}, {match.hit.camera_id}, {capture_time(match.hit.captured_at)}",
            strong=match.rank <= 3,
        )
        for match in reversed(timed)
        if (match.hit.camera_id or "unknown") in lanes
    ]
    height = 14 + LANE_HEIGHT * len(lanes) + 16
    ticks = [(x(time), text) for time, text in _ticks(first, last)]
    return Drawing(WIDTH, height, dots, list(lanes.items()), ticks)


def _ticks(first: int, last: int) -> list[tuple[int, str]]:
    """Return whole days, hours or minutes between two times in ms, with their texts: a handful."""
    step = next((step for step in _STEPS if (last - first) / step <= MAX_TICKS), None)
    if step is None:
        step = _STEPS[-1] * math.ceil((last - first) / (MAX_TICKS * _STEPS[-1]))
    times = range(-(-first // step) * step, last + 1, step)
    # A day is named once: by its date at midnight, or at the first tick.
    texts = [
        capture_time(time)[:10] if place == 0 or time % _DAY == 0 else capture_time(time)[11:16]
        for place, time in enumerate(times)
    ]
    return list(zip(times, texts, strict=True)) or [(first, capture_time(first))]


def camera_map(matches: Sequence[Match], positions: Mapping[str, tuple[float, float]]) -> Drawing | None:
    """Draw every camera at its position, sized by its number of matches; None without positions."""
    if not positions or not matches:
        return None
    latitudes, longitudes = zip(*positions.values(), strict=True)
    longitude_scale = math.cos(math.radians(sum(latitudes) / len(latitudes)))
    span = max(max(latitudes) - min(latitudes), (max(longitudes) - min(longitudes)) * longitude_scale, 1e-9)
    scale = (MAP_SIDE - 50) / span
    counts = Counter(match.hit.camera_id for match in matches)
    dots = [
        Dot(
            x=round(25 + (lon - min(longitudes)) * longitude_scale * scale, 1),
            y=round(25 + (max(latitudes) - lat) * scale, 1),
            radius=round(3 + 4 * math.sqrt(counts[name]), 1) if counts[name] else 2.5,
            label=f"{name}: {counts[name]} matches" if counts[name] else name,
            strong=bool(counts[name]),
            name=name if counts[name] else "",
        )
        for name, (lat, lon) in sorted(positions.items(), key=lambda item: counts[item[0]])
    ]
    return Drawing(MAP_SIDE, round(50 + (max(latitudes) - min(latitudes)) * scale, 1), dots)
