"""The audit log of sweeps: one object per record, created once and never replaced.

    audit/<UTC time>-<random>.json

A sweep writes its record before it searches.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import Field
from typing_extensions import TypedDict

from index.documents import JsonDocument, UtcTime, utc_now
from infra.errors import AccountingError, BadInput, ObjectMissing
from infra.store import Store


@dataclass(frozen=True, slots=True)
class AuditRecord(JsonDocument):
    """The user, reason, request and time of a sweep."""

    NOUN = "audit record"

    user: Annotated[str, Field(alias="who")]
    case_number: Annotated[str, Field(alias="case")]
    action: str
    generation: str
    fingerprint: str
    request: Mapping[str, Any]
    when: str = field(default_factory=utc_now)

    def __post_init__(self) -> None:
        if not self.case_number.strip():
            raise BadInput("a sweep needs a reason", remedy="give --case-number")
        if not self.user.strip():
            raise BadInput("a sweep needs a user", remedy="give --user")


class AuditEntry(TypedDict):
    """One sweep: who ran it, in which case, when, and what was asked of which generation."""

    key: str
    who: str
    case: str
    action: str
    generation: str
    fingerprint: str
    request: Mapping[str, Any]
    when: UtcTime


@dataclass(frozen=True, slots=True)
class AuditLog:
    """All records with their keys, oldest first."""

    records: tuple[tuple[str, AuditRecord], ...]

    @classmethod
    def read(cls, store: Store) -> Self:
        """Read the log below a folder of runs. Raises SchemaMismatch for an object that is not a record."""
        keys = sorted(info.key for info in store.list("audit"))
        return cls(tuple((key, AuditRecord.read(store, key)) for key in keys))

    def to_text(self) -> str:
        """Return one line per record."""
        lines = [
            f"{record.when[:19]}  {record.user}  {record.case_number}  {record.action}  "
            f"{record.request.get('probes', '')}  {record.generation}"
            for _, record in self.records
        ]
        return "\n".join(lines) or "no sweep is recorded"

    def to_json(self) -> list[AuditEntry]:
        """Return the records with their keys."""
        return [
            {
                "key": key,
                "who": record.user,
                "case": record.case_number,
                "action": record.action,
                "generation": record.generation,
                "fingerprint": record.fingerprint,
                "request": record.request,
                "when": record.when,
            }
            for key, record in self.records
        ]


def append_record(store: Store, record: AuditRecord) -> str:
    """Write a record and return its key. Raises StoreError; then the sweep must not start."""
    time = datetime.fromisoformat(record.when).strftime("%Y%m%dT%H%M%S%fZ")
    key = f"audit/{time}-{secrets.token_hex(4)}.json"
    store.create(key, record.to_json())
    return key


def require_record(store: Store, key: str) -> None:
    """Raise AccountingError if there is no record of this key, or if it was altered."""
    missing = AccountingError(
        f"there is no audit record {store.uri_of(key)}", remedy="start the sweep by clvr sweep"
    )
    if not key.startswith("audit/"):
        raise missing
    try:
        AuditRecord.read(store, key)
    except ObjectMissing:
        raise missing from None
