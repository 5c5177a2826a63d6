"""The tables of the database of cases. `migrations` makes them; a test compares both.

Times are text, UTC, ISO 8601, as in all records. A row that names a crop goes with it when it is erased.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

MAX_NAME = 200
"""Characters of a case number, a title and the name of a user."""

_CASE = "cases.id"


class Base(DeclarativeBase):
    """The tables. Constraints have names, so that a migration can change them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012 (read by SQLAlchemy)


class Case(Base):
    """A named case. `number` is what people call it, such as 26-117; state: open or closed."""

    __tablename__ = "cases"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(String(MAX_NAME), unique=True)
    title: Mapped[str] = mapped_column(String(MAX_NAME))
    state: Mapped[str] = mapped_column(String(10))
    created_at: Mapped[str] = mapped_column(String(40))
    created_by: Mapped[str] = mapped_column(String(MAX_NAME))


class Upload(Base):
    """An image that a user sent, by the SHA-256 of its bytes; height and width as it is shown, upright."""

    __tablename__ = "uploads"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    size: Mapped[int]
    width: Mapped[int]
    height: Mapped[int]
    created_at: Mapped[str] = mapped_column(String(40))
    used_at: Mapped[str] = mapped_column(String(40), index=True)
    created_by: Mapped[str] = mapped_column(String(MAX_NAME))


class CaseProbe(Base):
    """A probe of a case: `crop:ID`, or `upload:SHA256` with the box that was drawn on it."""

    __tablename__ = "probes"
    __table_args__ = (UniqueConstraint("case_id", "spec"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[int] = mapped_column(ForeignKey(_CASE))
    spec: Mapped[str] = mapped_column(String(200))
    crop_id: Mapped[int | None] = mapped_column(BigInteger, index=True)
    sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    at: Mapped[str] = mapped_column(String(40))
    by: Mapped[str] = mapped_column(String(MAX_NAME))


class Search(Base):
    """The audit record of a search, or of another use of the archive that shows crops.

    state: `begun` before it, then `done` or `failed` with the error. `answers` counts what was shown; the
    crops themselves are in `shown`.
    """

    __tablename__ = "searches"
    __table_args__ = (Index("ix_searches_case_number", "case_number"), Index("ix_searches_at", "at"))

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    at: Mapped[str] = mapped_column(String(40))
    by: Mapped[str] = mapped_column(String(MAX_NAME))
    action: Mapped[str] = mapped_column(String(20))
    case_number: Mapped[str] = mapped_column(String(MAX_NAME))
    reason: Mapped[str] = mapped_column(String(1000))
    probes: Mapped[list[str]]
    parameters: Mapped[dict[str, Any]]
    generation: Mapped[str] = mapped_column(String(MAX_NAME))
    fingerprint: Mapped[str] = mapped_column(String(100))
    transform: Mapped[str] = mapped_column(String(100))
    state: Mapped[str] = mapped_column(String(10))
    verdict: Mapped[str] = mapped_column(String(20))
    threshold: Mapped[float | None]
    answers: Mapped[int]
    error: Mapped[str] = mapped_column(Text)


class Shown(Base):
    """One crop that a search showed."""

    __tablename__ = "shown"

    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id"), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    crop_id: Mapped[int] = mapped_column(BigInteger, index=True)
    distance: Mapped[float]
    likelihood: Mapped[float | None]


class Judgement(Base):
    """What a user said of a crop: confirmed, rejected or unsure. The latest one of a crop counts.

    The facts of the crop and of the search that showed it are those of that time.
    """

    __tablename__ = "judgements"
    __table_args__ = (Index("ix_judgements_case_id", "case_id", "crop_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[int] = mapped_column(ForeignKey(_CASE))
    crop_id: Mapped[int] = mapped_column(BigInteger, index=True)
    verdict: Mapped[str] = mapped_column(String(10))
    note: Mapped[str] = mapped_column(Text)
    at: Mapped[str] = mapped_column(String(40))
    by: Mapped[str] = mapped_column(String(MAX_NAME))
    uri: Mapped[str] = mapped_column(Text)
    camera_id: Mapped[str] = mapped_column(String(200))
    track_id: Mapped[str] = mapped_column(String(200))
    captured_at: Mapped[int] = mapped_column(BigInteger)
    search_id: Mapped[str] = mapped_column(String(32))
    rank: Mapped[int | None]
    distance: Mapped[float | None]
    likelihood: Mapped[float | None]
    generation: Mapped[str] = mapped_column(String(MAX_NAME))
    fingerprint: Mapped[str] = mapped_column(String(100))


class Note(Base):
    """A note of a case. Notes are added, never changed."""

    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[int] = mapped_column(ForeignKey(_CASE), index=True)
    at: Mapped[str] = mapped_column(String(40))
    by: Mapped[str] = mapped_column(String(MAX_NAME))
    text: Mapped[str] = mapped_column(Text)


class Watch(Base):
    """The confirmed vehicle of a case is searched in the new crops of every reindex run."""

    __tablename__ = "watches"

    case_id: Mapped[int] = mapped_column(ForeignKey(_CASE), primary_key=True)
    at: Mapped[str] = mapped_column(String(40))
    by: Mapped[str] = mapped_column(String(MAX_NAME))


class WatchHit(Base):
    """A new crop within the threshold of a watched vehicle."""

    __tablename__ = "watch_hits"

    case_id: Mapped[int] = mapped_column(ForeignKey(_CASE), primary_key=True)
    crop_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    run_id: Mapped[str] = mapped_column(String(MAX_NAME))
    at: Mapped[str] = mapped_column(String(40))
    uri: Mapped[str] = mapped_column(Text)
    camera_id: Mapped[str] = mapped_column(String(200))
    track_id: Mapped[str] = mapped_column(String(200))
    captured_at: Mapped[int] = mapped_column(BigInteger)
    distance: Mapped[float]
    likelihood: Mapped[float | None]


OF_CROPS = (CaseProbe, Shown, Judgement, WatchHit)
"""The tables whose rows name a crop."""
