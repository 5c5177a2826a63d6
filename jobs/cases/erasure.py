"""Erased crops leave the database of cases: their rows are deleted, and texts that name them are redacted."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from index.generations.receipt import Place
from index.generations.traces import erased_tokens, redact
from index.runs.tombstones import ErasedCrops
from infra.errors import ClvrError
from infra.settings import Settings
from jobs.cases.database import CaseDatabase, open_cases
from jobs.cases.tables import OF_CROPS, Base, CaseProbe, Judgement, Note, Search, Upload

_IDS_PER_DELETE = 500
_TEXTS: tuple[tuple[type[Base], tuple[str, ...]], ...] = (
    (Search, ("probes", "parameters", "reason", "error")),
    (Note, ("text",)),
    (Judgement, ("note",)),
)


def purge_cases(settings: Settings, erased: ErasedCrops) -> list[Place]:
    """Remove erased crops from the database of cases, if there is one. May be repeated."""
    return list(_places(settings, erased, purge=True))


def find_in_cases(settings: Settings, erased: ErasedCrops) -> list[Place]:
    """Count what the database of cases holds of erased crops, and change nothing."""
    return list(_places(settings, erased, purge=False))


def _places(settings: Settings, erased: ErasedCrops, *, purge: bool) -> Iterator[Place]:
    try:
        database = open_cases(settings)
        if database is None:
            return
        try:
            found = (_purge if purge else count_erased)(database, erased)
            yield Place("cases", database.name, found, found if purge else 0)
        finally:
            database.close()
    except ClvrError as error:
        yield Place("cases", "the database of cases", 0, 0, f"not looked at: {error.message}")


def count_erased(database: CaseDatabase, erased: ErasedCrops) -> int:
    """Return the number of rows and texts that name an erased crop, and of uploads with its bytes."""
    with database.read() as session:
        rows = sum(
            session.scalar(select(func.count()).select_from(table).where(table.crop_id.in_(chunk))) or 0
            for table in OF_CROPS
            for chunk in _chunks(_erased_ids(session, table, erased))
        )
        texts = sum(count for _, _, _, count in _redactions(session, erased))
        return rows + texts + len(_erased_uploads(session, erased))


def _purge(database: CaseDatabase, erased: ErasedCrops) -> int:
    found = 0
    with database.write() as session:
        for table in OF_CROPS:
            for chunk in _chunks(_erased_ids(session, table, erased)):
                found += len(
                    session.execute(
                        delete(table).where(table.crop_id.in_(chunk)).returning(table.crop_id)
                    ).all()
                )
        for row, name, value, count in _redactions(session, erased):
            setattr(row, name, value)
            found += count
        for sha256 in _erased_uploads(session, erased):
            session.execute(delete(CaseProbe).where(CaseProbe.sha256 == sha256))
            session.execute(delete(Upload).where(Upload.sha256 == sha256))
            found += 1
    if found:
        database.shrink()
    return found


def _erased_ids(session: Session, table: Any, erased: ErasedCrops) -> list[int]:
    ids = session.scalars(select(table.crop_id).where(table.crop_id.is_not(None)).distinct()).all()
    return sorted(erased.erased_ids(ids))


def _chunks(ids: list[int]) -> Iterator[list[int]]:
    for first in range(0, len(ids), _IDS_PER_DELETE):
        yield ids[first : first + _IDS_PER_DELETE]


def _redactions(session: Session, erased: ErasedCrops) -> Iterator[tuple[Base, str, Any, int]]:
    """Yield the texts that name an erased crop: the row, its column, the text without it, and how often."""
    for table, names in _TEXTS:
        for row in session.scalars(select(table)):
            for name in names:
                value = getattr(row, name)
                if value and erased_tokens(str(value), erased):
                    changed, count = redact(value, erased)
                    if count:
                        yield row, name, changed, count


def _erased_uploads(session: Session, erased: ErasedCrops) -> list[str]:
    if not erased.knows_content:
        return []
    return [
        sha256
        for sha256 in session.scalars(select(Upload.sha256)).all()
        if erased.is_erased_content(session.scalar(select(Upload.data).where(Upload.sha256 == sha256)) or b"")
    ]
