"""`clvr case`: list and show cases, and export one."""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from index.archive.reader import read_uri
from index.documents import user_name
from index.outputs import record_output, withdraw_erased
from index.search.travel_time import CameraMap
from infra.errors import BadInput
from infra.settings import Settings
from infra.store import open_store
from jobs.cases.audit import AuditTrail, Outcome, Purpose
from jobs.cases.casebook import Casebook, open_casebook
from jobs.cases.documents import CaseDocument, CaseSummary
from jobs.cases.evidence import Evidence, ReadCrop, collect_evidence
from jobs.cases.export import ExportResult, build_export, write_export
from jobs.cases.signing import key_id, read_signing_key
from jobs.runtime.format import capture_time, text_table


@dataclass(frozen=True, slots=True)
class CaseListResult:
    """All cases, the newest first."""

    cases: Sequence[CaseSummary]

    def to_text(self) -> str:
        """Return a table."""
        if not self.cases:
            return "there is no case; the page makes cases: clvr serve"
        titles = [
            "case",
            "state",
            "made (UTC)",
            "by",
            "confirmed",
            "rejected",
            "searches",
            "watched",
            "title",
        ]
        rows = [
            [
                case.number,
                case.state,
                case.created_at[:16].replace("T", " "),
                case.created_by,
                str(case.confirmed),
                str(case.rejected),
                str(case.searches),
                "yes" if case.watched else "",
                case.title,
            ]
            for case in self.cases
        ]
        return text_table(titles, rows, right={"confirmed", "rejected", "searches"})

    def to_json(self) -> list[dict[str, Any]]:
        """Return the cases as JSON values."""
        return [asdict(case) for case in self.cases]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case with all that it holds."""

    document: CaseDocument

    def to_text(self) -> str:
        """Return the case as lines."""
        document, case = self.document, self.document.case
        lines = [
            f"case {case.number} ({case.state}){f': {case.title}' if case.title else ''}",
            f"  made       {case.created_at[:19]} UTC by {case.created_by}",
            *(f"  probe      {probe.spec}" for probe in document.probes),
        ]
        for entry in sorted(document.judgements, key=lambda one: (one.verdict, one.captured_at)):
            likelihood = "" if entry.likelihood is None else f" {entry.likelihood:.0%}"
            lines.append(
                f"  {entry.verdict:<10} {entry.crop}  camera {entry.camera_id or '-'}  "
                f"{capture_time(entry.captured_at) or '-'}{likelihood}  by {entry.by}"
            )
        lines += [f"  note       {note.at[:16]} {note.by}: {note.text}" for note in document.notes]
        lines += [
            f"  {search.action:<10} {search.at[:19]} {search.by}: {search.state}, {search.answers} shown"
            for search in document.searches
        ]
        lines += [
            f"  watch hit  {hit.crop}  {hit.at[:16]}  {hit.distance:.3f}" for hit in document.watch_hits
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the case as JSON values."""
        return asdict(self.document)


def list_cases(settings: Settings) -> CaseListResult:
    """Return all cases. Raises CaseDatabaseError."""
    return CaseListResult(open_casebook(settings).cases() if settings.has_cases() else [])


def show_case(number: str, settings: Settings) -> CaseResult:
    """Return one case. Raises BadInput if there is none."""
    book = _require(settings)
    return CaseResult(book.read(book.case_id(number)))


def export_case(
    number: str, path: Path, settings: Settings, cameras: CameraMap | None = None
) -> ExportResult:
    """Write the export of a case; it is audited. Raises BadInput, BadSetting, CaseDatabaseError."""
    key = read_signing_key(settings.signing_key)
    book, store = _require(settings), open_store(settings.runs)
    evidence, data = audited_export(book, book.case_id(number), user_name(), key, _read_crop, cameras)
    crops = [entry.crop_id for entry in evidence.document.judgements]
    record_output(store, "export", str(path.resolve()), crops)
    write_export(path, data)
    withdraw_erased(store, path, crops)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = len(archive.namelist())
    return ExportResult(
        path=str(path),
        case_number=number,
        files=files,
        bytes=len(data),
        key=key_id(key.public_key()) if key else None,
    )


def audited_export(
    book: Casebook,
    case_id: int,
    user: str,
    key: Ed25519PrivateKey | None,
    read_crop: ReadCrop,
    cameras: CameraMap | None,
) -> tuple[Evidence, bytes]:
    """Collect and build an export, between the beginning and the end of its audit record."""
    trail = AuditTrail(book)
    number = book.read(case_id).case.number
    search_id = trail.begin("export", Purpose(user=user, case_number=number), [], {})
    try:
        evidence = collect_evidence(book, case_id, user, read_crop, cameras)
        data = build_export(evidence, key)
    except Exception as error:
        trail.fail(search_id, str(error))
        raise
    shown = [
        (entry.crop_id, entry.distance or 0.0, entry.likelihood) for entry in evidence.document.judgements
    ]
    trail.finish(
        search_id,
        Outcome(
            generation=", ".join(evidence.generations)[:200],
            fingerprint=", ".join(evidence.models)[:100],
            transform="",
            verdict="exported",
            shown=shown,
        ),
    )
    return evidence, data


def _read_crop(crop_id: int, uri: str) -> bytes:
    if not uri:
        raise BadInput(f"crop {crop_id} was not judged, so its place is not known here")
    return read_uri(uri)


def _require(settings: Settings) -> Casebook:
    if not settings.has_cases():
        raise BadInput(
            f"there is no database of cases at {settings.case_database()}",
            remedy="The page makes cases: clvr serve. Or set CLVR_CASES.",
        )
    return open_casebook(settings)
