"""What is known of a case and of a search, as results: for the page, the command line and exports.

A crop is text, `crop:ID`, because JavaScript rounds integers of that size. Times are ISO 8601, UTC;
`captured_at` is in ms since the epoch, -1 if it is unknown.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["confirmed", "rejected", "unsure"]
VERDICTS: tuple[Verdict, ...] = ("confirmed", "rejected", "unsure")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSummary:
    """A case in a list: its facts, and how much it holds."""

    id: int
    number: str
    title: str
    state: str
    created_at: str
    created_by: str
    probes: int = 0
    confirmed: int = 0
    rejected: int = 0
    unsure: int = 0
    notes: int = 0
    searches: int = 0
    watched: bool = False
    watch_hits: int = 0
    """New crops of the watched vehicle that nobody judged yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeEntry:
    """A probe of a case: `crop:ID`, or `upload:SHA256` with its box."""

    spec: str
    at: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgementEntry:
    """What was said of a crop, and the facts of the crop and of its search at that time."""

    crop: str
    verdict: Verdict
    note: str
    at: str
    by: str
    uri: str
    camera_id: str
    track_id: str
    captured_at: int
    search_id: str
    rank: int | None
    distance: float | None
    likelihood: float | None
    generation: str
    fingerprint: str

    @property
    def crop_id(self) -> int:
        """The number of the crop."""
        return int(self.crop.removeprefix("crop:"))


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteEntry:
    """A note of a case."""

    at: str
    by: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchEntry:
    """The audit record of a search: who, when, why, with what, in what, and how much it showed."""

    id: str
    at: str
    by: str
    action: str
    case_number: str
    reason: str
    probes: list[str]
    parameters: dict[str, Any]
    generation: str
    fingerprint: str
    transform: str
    state: str
    verdict: str
    threshold: float | None
    answers: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownEntry:
    """One crop that a search showed."""

    search_id: str
    rank: int
    crop: str
    distance: float
    likelihood: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchHitEntry:
    """A new crop within the threshold of a watched vehicle."""

    crop: str
    run_id: str
    at: str
    uri: str
    camera_id: str
    track_id: str
    captured_at: int
    distance: float
    likelihood: float | None
    judged: bool
    case_id: int
    case_number: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseDocument:
    """A case with all that it holds, newest last. `judgements` are the latest ones, one a crop."""

    case: CaseSummary
    probes: list[ProbeEntry] = field(default_factory=list)
    judgements: list[JudgementEntry] = field(default_factory=list)
    notes: list[NoteEntry] = field(default_factory=list)
    searches: list[SearchEntry] = field(default_factory=list)
    watch_hits: list[WatchHitEntry] = field(default_factory=list)

    def judged(self, verdict: Verdict) -> list[JudgementEntry]:
        """Return the judgements of one verdict."""
        return [entry for entry in self.judgements if entry.verdict == verdict]
