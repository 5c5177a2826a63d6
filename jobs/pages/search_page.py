"""Pages of answers: strips of real crops, when and where they were taken. Self-contained HTML, no script."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from index.schema import UNKNOWN_TIME
from index.search.retrieval import Match
from jobs.pages.html import render
from jobs.runtime.format import capture_time

LANES = 12
WIDTH, LANE_HEIGHT, LEFT = 640.0, 18.0, 120.0
MAP_SIDE = 240.0


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """One answer with its picture; `model` is the name of the predicted vehicle model."""

    answer: Match
    jpeg: bytes
    model: str
    strong: bool


@dataclass(frozen=True, slots=True)
class ProbeStrip:
    """One probe and its answers.

    verdict: `found`, `not found`, `ranked` (nothing tells), `nothing` (no crop passes the filters) or
    `failed`.
    """

    name: str
    verdict: str
    note: str = ""
    pictures: Sequence[bytes] = ()
    facts: Sequence[str] = ()
    answers: Sequence[ShownAnswer] = ()


@dataclass(frozen=True, slots=True)
class AnswerPage:
    """Everything a page of answers says. `counts`: probes by verdict; `left_out`: probes without a strip."""

    title: str
    lead: str
    strips: Sequence[ProbeStrip]
    facts: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    positions: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    left_out: int = 0
    command: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    """A mark in a drawing."""

    x: float
    y: float
    radius: float
    label: str
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Drawing:
    """Marks, and lines of text at their left or beside them; sizes in SVG units."""

    width: float
    height: float
    dots: Sequence[Dot]
    lanes: Sequence[tuple[str, float]] = ()
    start: str = ""
    end: str = ""


def build_answer_page(page: AnswerPage) -> str:
    """The page as HTML text. Raises UnreadablePicture for picture bytes that are not JPEG."""
    return render(
        "search_page.html.j2",
        styles=("page.css.j2", "search_page.css.j2"),
        page=page,
        timelines=[timeline([shown.answer for shown in strip.answers]) for strip in page.strips],
        maps=[camera_map([shown.answer for shown in strip.answers], page.positions) for strip in page.strips],
        unknown_time=UNKNOWN_TIME,
    )


def timeline(answers: Sequence[Match]) -> Drawing | None:
    """One lane a camera, time from left to right; None where no answer has a time."""
    timed = [each for each in answers if each.hit.captured_at != UNKNOWN_TIME]
    if not timed:
        return None
    first = min(each.hit.captured_at for each in timed)
    last = max(each.hit.captured_at for each in timed)
    busiest = Counter(each.hit.camera_id or "unknown" for each in timed).most_common(LANES)
    lanes = {name: 14 + LANE_HEIGHT * row for row, name in enumerate(sorted(name for name, _ in busiest))}
    dots = [
        Dot(
            x=round(
                LEFT + (WIDTH - LEFT - 16) * ((each.hit.captured_at - first) / max(1, last - first)) + 6, 1
            ),
            y=lanes[each.hit.camera_id or "unknown"],
            radius=5.0,
            label=f"rank {each.rank}, {each.hit.camera_id}, {capture_time(each.hit.captured_at)}",
            strong=each.rank <= 3,
        )
        for each in reversed(timed)
        if (each.hit.camera_id or "unknown") in lanes
    ]
    height = 14 + LANE_HEIGHT * len(lanes) + 16
    return Drawing(WIDTH, height, dots, list(lanes.items()), capture_time(first), capture_time(last))


def camera_map(answers: Sequence[Match], positions: Mapping[str, tuple[float, float]]) -> Drawing | None:
    """Every camera at its place, the answers' cameras as large as they have answers; None without places."""
    if not positions or not answers:
        return None
    latitudes, longitudes = zip(*positions.values(), strict=True)
    middle = math.cos(math.radians(sum(latitudes) / len(latitudes)))
    span = max(max(latitudes) - min(latitudes), (max(longitudes) - min(longitudes)) * middle, 1e-9)
    scale = (MAP_SIDE - 50) / span
    counts = Counter(each.hit.camera_id for each in answers)
    dots = [
        Dot(
            x=round(25 + (lon - min(longitudes)) * middle * scale, 1),
            y=round(25 + (max(latitudes) - lat) * scale, 1),
            radius=round(3 + 4 * math.sqrt(counts[name]), 1) if counts[name] else 2.5,
            label=f"{name}: {counts[name]} answers" if counts[name] else name,
            strong=bool(counts[name]),
        )
        for name, (lat, lon) in sorted(positions.items(), key=lambda item: counts[item[0]])
    ]
    return Drawing(MAP_SIDE, round(50 + (max(latitudes) - min(latitudes)) * scale, 1), dots)
