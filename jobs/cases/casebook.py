"""What users do with cases: each method is one transaction. Erased crops are in no result.

A purge removes their rows (`erasure`); until then every read leaves them out.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from index.documents import utc_now
from index.runs.tombstones import TombstoneWatch
from infra.errors import BadInput
from infra.settings import Settings
from infra.store import open_store
from jobs.cases.database import CaseDatabase
from jobs.cases.documents import (
    VERDICTS,
    CaseDocument,
    CaseSummary,
    JudgementEntry,
    NoteEntry,
    ProbeEntry,
    SearchEntry,
    Verdict,
    WatchHitEntry,
)
from jobs.cases.tables import MAX_NAME, Case, CaseProbe, Judgement, Note, Search, Upload, Watch, WatchHit

MAX_NOTE = 20_000
UPLOAD = "upload:"
CROP = "crop:"
_UPLOAD_SPEC = re.compile(r"upload:([0-9a-f]{64})(?:@[0-9.,]{7,60})?")
_CROP_SPEC = re.compile(r"crop:(\d{1,19})")


@dataclass(frozen=True, slots=True, kw_only=True)
class CropFacts:
    """The facts of a crop that a judgement keeps."""

    crop_id: int
    uri: str
    camera_id: str
    track_id: str
    captured_at: int
    generation: str
    fingerprint: str
    search_id: str = ""
    rank: int | None = None
    distance: float | None = None
    likelihood: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFacts:
    """An upload without its bytes."""

    sha256: str
    size: int
    width: int
    height: int
    created_at: str


class Casebook:
    """The cases of a database. tombstones: of the folder of runs. Safe to share between threads.

    Every method raises CaseDatabaseError.
    """

    def __init__(self, database: CaseDatabase, tombstones: TombstoneWatch) -> None:
        self.database = database
        self.tombstones = tombstones

    # ---- cases --------------------------------------------------------------------------------------

    def create(self, number: str, title: str, user: str) -> CaseSummary:
        """Create a case. Raises BadInput for a number that is taken, or that is no line of text."""
        number, title = _line("the case number", number), _line("the title", title, empty=True)
        try:
            with self.database.write() as session:
                if session.scalar(select(Case.id).where(Case.number == number)) is not None:
                    raise _taken(number)
                case = Case(number=number, title=title, state="open", created_at=utc_now(), created_by=user)
                session.add(case)
                session.flush()
                return self._summaries(session, [case])[0]
        except IntegrityError as error:  # another process was faster
            raise _taken(number) from error

    def cases(self) -> list[CaseSummary]:
        """Return all cases, the newest first."""
        with self.database.read() as session:
            return self._summaries(session, session.scalars(select(Case).order_by(Case.id.desc())).all())

    def case_id(self, number: str) -> int:
        """Return the id of a case. Raises BadInput, with similar numbers, if there is none."""
        with self.database.read() as session:
            found = session.scalar(select(Case.id).where(Case.number == number))
            if found is None:
                known = session.scalars(select(Case.number).order_by(Case.id.desc()).limit(10)).all()
                raise BadInput(
                    f"there is no case {number[:60]!r}",
                    remedy=f"Cases: {', '.join(known)}." if known else "The page makes cases: clvr serve.",
                )
            return found

    def read(self, case_id: int) -> CaseDocument:
        """Return a case with all that it holds. Raises BadInput if there is none."""
        with self.database.read() as session:
            case = _case(session, case_id)
            return CaseDocument(
                case=self._summaries(session, [case])[0],
                probes=self._probes(session, case_id),
                judgements=self._latest(session, case_id),
                notes=[
                    NoteEntry(at=note.at, by=note.by, text=note.text)
                    for note in session.scalars(select(Note).where(Note.case_id == case_id).order_by(Note.id))
                ],
                searches=self._searches(session, case_number=case.number, limit=1000)[::-1],
                watch_hits=self._watch_hits(session, case_id),
            )

    def set_state(self, case_id: int, state: str, title: str | None = None) -> None:
        """Open or close a case, or rename it. Raises BadInput."""
        if state not in ("open", "closed"):
            raise BadInput(f"a case is open or closed, not {state[:20]!r}")
        with self.database.write() as session:
            case = _case(session, case_id)
            case.state = state
            if title is not None:
                case.title = _line("the title", title, empty=True)

    # ---- what a case holds --------------------------------------------------------------------------

    def add_probe(self, case_id: int, spec: str, user: str) -> None:
        """Add a probe; one that the case has already stays. Raises BadInput."""
        upload, crop = _UPLOAD_SPEC.fullmatch(spec), _CROP_SPEC.fullmatch(spec)
        if not upload and not crop:
            raise BadInput(f"{spec[:60]!r} is no probe of a case", remedy="Give crop:ID or upload:SHA256.")
        with self.database.write() as session:
            _open_case(session, case_id)
            if upload and session.get(Upload, upload[1]) is None:
                raise BadInput("that image is not there any more", remedy="Choose the file again.")
            known = select(CaseProbe.id).where(CaseProbe.case_id == case_id, CaseProbe.spec == spec)
            if session.scalar(known) is None:
                session.add(
                    CaseProbe(
                        case_id=case_id,
                        spec=spec,
                        crop_id=int(crop[1]) if crop else None,
                        sha256=upload[1] if upload else None,
                        at=utc_now(),
                        by=user,
                    )
                )

    def remove_probe(self, case_id: int, spec: str) -> None:
        """Take a probe out of a case."""
        with self.database.write() as session:
            _open_case(session, case_id)
            session.execute(delete(CaseProbe).where(CaseProbe.case_id == case_id, CaseProbe.spec == spec))

    def judge(self, case_id: int, verdict: str, note: str, user: str, crop: CropFacts) -> JudgementEntry:
        """Record a judgement. The ones before stay, and the latest one counts. Raises BadInput."""
        if verdict not in VERDICTS:
            raise BadInput(f"{verdict[:20]!r} is no judgement", remedy=f"Say {', '.join(VERDICTS)}.")
        with self.database.write() as session:
            _open_case(session, case_id)
            row = Judgement(
                case_id=case_id,
                crop_id=crop.crop_id,
                verdict=verdict,
                note=_text(note),
                at=utc_now(),
                by=user,
                uri=crop.uri,
                camera_id=crop.camera_id,
                track_id=crop.track_id,
                captured_at=crop.captured_at,
                search_id=crop.search_id,
                rank=crop.rank,
                distance=crop.distance,
                likelihood=crop.likelihood,
                generation=crop.generation,
                fingerprint=crop.fingerprint,
            )
            session.add(row)
            session.flush()
            return _judgement(row)

    def history(self, case_id: int) -> list[JudgementEntry]:
        """Return every judgement of a case, also those that later ones replaced, oldest first."""
        with self.database.read() as session:
            rows = session.scalars(
                select(Judgement).where(Judgement.case_id == case_id).order_by(Judgement.id)
            ).all()
            return [_judgement(row) for row in self._kept(rows)]

    def add_note(self, case_id: int, text: str, user: str) -> NoteEntry:
        """Add a note. Raises BadInput for an empty or an overlong one."""
        if not text.strip():
            raise BadInput("the note is empty")
        with self.database.write() as session:
            _open_case(session, case_id)
            note = Note(case_id=case_id, at=utc_now(), by=user, text=_text(text))
            session.add(note)
            return NoteEntry(at=note.at, by=note.by, text=note.text)

    def watch(self, case_id: int, user: str, *, on: bool) -> None:
        """Watch the confirmed vehicle of a case, or stop. Raises BadInput without a confirmed crop."""
        with self.database.write() as session:
            _open_case(session, case_id)
            watch = session.get(Watch, case_id)
            if on and watch is None:
                if not any(entry.verdict == "confirmed" for entry in self._latest(session, case_id)):
                    raise BadInput(
                        "only a confirmed vehicle can be watched", remedy="Confirm a match of it first."
                    )
                session.add(Watch(case_id=case_id, at=utc_now(), by=user))
            elif not on and watch is not None:
                session.delete(watch)

    def watched(self) -> list[CaseDocument]:
        """Return the open cases whose vehicle is watched."""
        with self.database.read() as session:
            ids = session.scalars(
                select(Watch.case_id).join(Case).where(Case.state == "open").order_by(Watch.case_id)
            ).all()
        return [self.read(case_id) for case_id in ids]

    def add_watch_hits(self, hits: Iterable[WatchHitEntry]) -> int:
        """Record new crops of watched vehicles; those that are known stay. Returns how many were new."""
        count = 0
        with self.database.write() as session:
            for hit in hits:
                key = {"case_id": hit.case_id, "crop_id": int(hit.crop.removeprefix(CROP))}
                if session.get(WatchHit, key) is None:
                    names = ("run_id", "at", "uri", "camera_id", "track_id", "captured_at", "distance")
                    fields = {name: getattr(hit, name) for name in (*names, "likelihood")}
                    session.add(WatchHit(**key, **fields))
                    count += 1
        return count

    def watch_hits(self, limit: int = 500) -> list[WatchHitEntry]:
        """Return the new crops of all watched vehicles, the newest first."""
        with self.database.read() as session:
            return self._watch_hits(session, None)[::-1][:limit]

    # ---- uploads ------------------------------------------------------------------------------------

    def add_upload(self, data: bytes, width: int, height: int, user: str) -> UploadFacts:
        """Keep an image under the SHA-256 of its bytes. Raises BadInput for an erased one."""
        if self.tombstones.current().is_erased_content(data):
            raise BadInput("this image was erased", remedy="Search by another image.")
        digest = hashlib.sha256(data).hexdigest()
        with self.database.write() as session:
            upload = session.get(Upload, digest)
            if upload is None:
                upload = Upload(
                    sha256=digest,
                    data=data,
                    size=len(data),
                    width=width,
                    height=height,
                    created_at=utc_now(),
                    used_at=utc_now(),
                    created_by=user,
                )
                session.add(upload)
            upload.used_at = utc_now()
            return _upload(upload)

    def upload(self, sha256: str) -> tuple[UploadFacts, bytes]:
        """Return an image that was sent. Raises BadInput if it is not there, or was erased since."""
        with self.database.read() as session:
            upload = session.get(Upload, sha256)
            if upload is None or self.tombstones.current().is_erased_content(upload.data):
                raise BadInput("the image of this link is not kept any more", remedy="Choose the file again.")
            return _upload(upload), upload.data

    def use_uploads(self, sha256s: Sequence[str]) -> None:
        """Note that uploads are used now, so that they expire later."""
        if sha256s:
            with self.database.write() as session:
                session.execute(update(Upload).where(Upload.sha256.in_(sha256s)).values(used_at=utc_now()))

    def expire_uploads(self, days: int, max_bytes: int) -> int:
        """Delete uploads that no case holds: unused for some days, then the oldest above a total size."""
        oldest = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds")
        with self.database.write() as session:
            held = select(CaseProbe.sha256).where(CaseProbe.sha256.is_not(None))
            rows = session.execute(
                select(Upload.sha256, Upload.size, Upload.used_at)
                .where(Upload.sha256.not_in(held))
                .order_by(Upload.used_at.desc())
            ).all()
            total, doomed = 0, []
            for sha256, size, used_at in rows:
                total += size
                if used_at < oldest or total > max_bytes:
                    doomed.append(sha256)
            for sha256 in doomed:
                session.execute(delete(Upload).where(Upload.sha256 == sha256))
            return len(doomed)

    # ---- reading ------------------------------------------------------------------------------------

    def _kept(self, rows: Sequence[Any]) -> list[Any]:
        """Return the rows whose crop was not erased."""
        ids = [row.crop_id for row in rows if row.crop_id is not None]
        erased = self.tombstones.current().erased_ids(ids) if ids else set()
        return [row for row in rows if row.crop_id not in erased]

    def _latest(self, session: Session, case_id: int) -> list[JudgementEntry]:
        newest = (
            select(func.max(Judgement.id)).where(Judgement.case_id == case_id).group_by(Judgement.crop_id)
        )
        rows = session.scalars(select(Judgement).where(Judgement.id.in_(newest)).order_by(Judgement.id)).all()
        return [_judgement(row) for row in self._kept(rows)]

    def _probes(self, session: Session, case_id: int) -> list[ProbeEntry]:
        rows = session.scalars(
            select(CaseProbe).where(CaseProbe.case_id == case_id).order_by(CaseProbe.id)
        ).all()
        return [ProbeEntry(spec=row.spec, at=row.at, by=row.by) for row in self._kept(rows)]

    def _watch_hits(self, session: Session, case_id: int | None) -> list[WatchHitEntry]:
        query = select(WatchHit, Case.number).join(Case).order_by(WatchHit.at, WatchHit.distance)
        if case_id is not None:
            query = query.where(WatchHit.case_id == case_id)
        pairs = session.execute(query).all()
        numbers = {row.case_id: number for row, number in pairs}
        judged = {
            (case, crop)
            for case, crop in session.execute(
                select(Judgement.case_id, Judgement.crop_id).where(Judgement.case_id.in_(numbers))
            )
        }
        return [
            WatchHitEntry(
                crop=f"{CROP}{row.crop_id}",
                run_id=row.run_id,
                at=row.at,
                uri=row.uri,
                camera_id=row.camera_id,
                track_id=row.track_id,
                captured_at=row.captured_at,
                distance=row.distance,
                likelihood=row.likelihood,
                judged=(row.case_id, row.crop_id) in judged,
                case_id=row.case_id,
                case_number=numbers[row.case_id],
            )
            for row in self._kept([row for row, _ in pairs])
        ]

    def _searches(
        self, session: Session, *, case_number: str | None = None, limit: int = 200
    ) -> list[SearchEntry]:
        query = select(Search).order_by(Search.at.desc(), Search.id).limit(limit)
        if case_number is not None:
            query = query.where(Search.case_number == case_number)
        return [search_entry(row) for row in session.scalars(query)]

    def _summaries(self, session: Session, cases: Sequence[Case]) -> list[CaseSummary]:
        return [self._summary(session, case) for case in cases]

    def _summary(self, session: Session, case: Case) -> CaseSummary:
        verdicts = [entry.verdict for entry in self._latest(session, case.id)]

        def count(table: Any, condition: Any) -> int:
            return session.scalar(select(func.count()).select_from(table).where(condition)) or 0

        return CaseSummary(
            id=case.id,
            number=case.number,
            title=case.title,
            state=case.state,
            created_at=case.created_at,
            created_by=case.created_by,
            probes=len(self._probes(session, case.id)),
            confirmed=verdicts.count("confirmed"),
            rejected=verdicts.count("rejected"),
            unsure=verdicts.count("unsure"),
            notes=count(Note, Note.case_id == case.id),
            searches=count(Search, Search.case_number == case.number),
            watched=session.get(Watch, case.id) is not None,
            watch_hits=sum(not hit.judged for hit in self._watch_hits(session, case.id)),
        )


def open_casebook(settings: Settings) -> Casebook:
    """Open the cases of the settings; their database is created if need be. Raises CaseDatabaseError."""
    return Casebook(CaseDatabase(settings.case_database()), TombstoneWatch([open_store(settings.runs)]))


def probe_crop(spec: str) -> int | None:
    """Return the crop_id of `crop:ID`, None for another probe."""
    found = _CROP_SPEC.fullmatch(spec)
    return int(found[1]) if found else None


def verdict_of(text: str) -> Verdict:
    """Return a verdict. Raises BadInput."""
    for verdict in VERDICTS:
        if verdict == text:
            return verdict
    raise BadInput(f"{text[:20]!r} is no judgement")


def search_entry(row: Search) -> SearchEntry:
    """Return a search as a result."""
    return SearchEntry(**{name: getattr(row, name) for name in SearchEntry.__slots__})


def _judgement(row: Judgement) -> JudgementEntry:
    fields = {
        name: getattr(row, name) for name in JudgementEntry.__slots__ if name not in ("crop", "verdict")
    }
    return JudgementEntry(crop=f"{CROP}{row.crop_id}", verdict=verdict_of(row.verdict), **fields)


def _upload(row: Upload) -> UploadFacts:
    return UploadFacts(**{name: getattr(row, name) for name in UploadFacts.__slots__})


def _case(session: Session, case_id: int) -> Case:
    case = session.get(Case, case_id)
    if case is None:
        raise BadInput("there is no such case", remedy="Open it from the list of cases.")
    return case


def _open_case(session: Session, case_id: int) -> Case:
    case = _case(session, case_id)
    if case.state != "open":
        raise BadInput(f"case {case.number} is closed", remedy="Open it again first.")
    return case


def _taken(number: str) -> BadInput:
    return BadInput(f"there is a case {number} already", remedy="Choose it, or give another number.")


def _line(what: str, text: str, *, empty: bool = False) -> str:
    text = text.strip()
    if not (text or empty) or len(text) > MAX_NAME or not text.isprintable():
        raise BadInput(f"{what} must be one line of 1 to {MAX_NAME} characters")
    return text


def _text(text: str) -> str:
    if len(text) > MAX_NOTE:
        raise BadInput(f"the note is longer than {MAX_NOTE:,} characters")
    return "".join(character for character in text if character.isprintable() or character in "\n\t").strip()
