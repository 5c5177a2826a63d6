"""The audit of searches: a record is on disk before a search begins, and says afterwards what was shown."""

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Self

from sqlalchemy import select
from typing_extensions import TypedDict

from index.documents import utc_now
from infra.errors import BadInput
from infra.settings import Settings
from jobs.cases.casebook import Casebook, open_casebook, search_entry
from jobs.cases.documents import SearchEntry, ShownEntry
from jobs.cases.tables import MAX_NAME, Search, Shown
from jobs.runtime.json_fields import FieldsOf

MAX_REASON = 1000

MAX_AUDITED = 100_000
"""Records that `clvr audit` lists, at most: the latest ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """Who searches, and why: a case number, and a reason in words."""

    user: str
    case_number: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        for name, value, limit in (
            ("case number", self.case_number, MAX_NAME),
            ("reason", self.reason, MAX_REASON),
        ):
            if len(value) > limit or not value.isprintable():
                raise BadInput(f"the {name} must be one line of at most {limit} characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a search was done in, and what it showed: (crop_id, distance, likelihood) by rank."""

    generation: str
    fingerprint: str
    transform: str
    verdict: str = ""
    threshold: float | None = None
    shown: Sequence[tuple[int, float, float | None]] = field(default_factory=tuple)


class AuditTrail:
    """The audit records of a casebook. Every method raises CaseDatabaseError."""

    def __init__(self, casebook: Casebook) -> None:
        self._casebook = casebook
        self._database = casebook.database

    def begin(self, action: str, purpose: Purpose, probes: Sequence[str], parameters: dict[str, Any]) -> str:
        """Write a record and return its id. If that fails, the search must not start."""
        search_id = secrets.token_hex(16)
        with self._database.write() as session:
            session.add(
                Search(
                    id=search_id,
                    at=utc_now(),
                    by=purpose.user,
                    action=action,
                    case_number=purpose.case_number.strip(),
                    reason=purpose.reason.strip(),
                    probes=list(probes),
                    parameters=parameters,
                    generation="",
                    fingerprint="",
                    transform="",
                    state="begun",
                    verdict="",
                    threshold=None,
                    answers=0,
                    error="",
                )
            )
        return search_id

    def finish(self, search_id: str, outcome: Outcome) -> None:
        """Record what is about to be shown. If that fails, it must not be shown."""
        with self._database.write() as session:
            row = session.get_one(Search, search_id)
            row.state, row.verdict, row.threshold = "done", outcome.verdict, outcome.threshold
            row.generation, row.fingerprint = outcome.generation, outcome.fingerprint
            row.transform, row.answers = outcome.transform, len(outcome.shown)
            session.add_all(
                Shown(
                    search_id=search_id,
                    rank=rank,
                    crop_id=crop_id,
                    distance=distance,
                    likelihood=likelihood,
                )
                for rank, (crop_id, distance, likelihood) in enumerate(outcome.shown, start=1)
            )

    def fail(self, search_id: str, error: str) -> None:
        """Record that a search showed nothing, and why."""
        with self._database.write() as session:
            row = session.get_one(Search, search_id)
            row.state, row.error = "failed", error[:2000]

    def searches(
        self, *, user: str | None = None, case_number: str | None = None, limit: int = 500
    ) -> list[SearchEntry]:
        """Return the records, the newest first."""
        query = select(Search).order_by(Search.at.desc(), Search.id).limit(limit)
        if user is not None:
            query = query.where(Search.by == user)
        if case_number is not None:
            query = query.where(Search.case_number == case_number)
        with self._database.read() as session:
            return [search_entry(row) for row in session.scalars(query)]

    def shown(self, search_id: str) -> list[ShownEntry]:
        """Return what a search showed, without what was erased since."""
        with self._database.read() as session:
            rows = session.scalars(
                select(Shown).where(Shown.search_id == search_id).order_by(Shown.rank)
            ).all()
            erased = self._casebook.tombstones.current().erased_ids(row.crop_id for row in rows)
            return [
                ShownEntry(
                    search_id=row.search_id,
                    rank=row.rank,
                    crop=f"crop:{row.crop_id}",
                    distance=row.distance,
                    likelihood=row.likelihood,
                )
                for row in rows
                if row.crop_id not in erased
            ]

    def shown_entry(self, search_id: str, crop_id: int) -> ShownEntry | None:
        """Return how a search showed a crop; None if it did not."""
        return next((entry for entry in self.shown(search_id) if entry.crop == f"crop:{crop_id}"), None)


class AuditedSearch(TypedDict):
    """A search, or an export of a case, with the names that the audit of sweeps has."""

    who: str
    case: str
    when: str


@dataclass(frozen=True, slots=True)
class SearchAudit:
    """The audit records of searches and exports, oldest first."""

    searches: Sequence[SearchEntry]

    @classmethod
    def read(cls, settings: Settings) -> Self:
        """Read the records; none where there is no database. Raises CaseDatabaseError."""
        if not settings.has_cases():
            return cls([])
        return cls(AuditTrail(open_casebook(settings)).searches(limit=MAX_AUDITED)[::-1])

    def to_text(self) -> str:
        """Return one line per record."""
        lines = [
            f"{entry.at[:19]}  {entry.by}  {entry.case_number or '-'}  {entry.action}  "
            f"{', '.join(entry.probes)}  {entry.state}, {entry.answers} shown  {entry.generation}"
            for entry in self.searches
        ]
        return "\n".join(lines) or "no search is recorded"

    def to_json(self) -> list[Annotated[dict[str, Any], FieldsOf(SearchEntry, AuditedSearch)]]:
        """Return the records as JSON values, with the names of the audit of sweeps."""
        return [
            {"who": entry.by, "case": entry.case_number, "when": entry.at, **asdict(entry)}
            for entry in self.searches
        ]
