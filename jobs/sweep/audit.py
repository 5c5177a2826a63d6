"""The audit log of sweeps: one object per record, created once and never replaced.

    audit/<UTC time>-<random>.json

A sweep writes its record before it searches.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from infra.errors import AccountingError, BadInput, SchemaMismatch
from infra.store import Store


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """The user (`who`), reason (`case`), request and time of a sweep; the fields are the JSON of a record."""

    who: str
    case: str
    action: str
    generation: str
    fingerprint: str
    request: Mapping[str, Any]
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    def __post_init__(self) -> None:
        if not self.case.strip():
            raise BadInput("a sweep needs a reason", remedy="give --case-number")
        if not self.who.strip():
            raise BadInput("a sweep needs a user", remedy="give --user")


@dataclass(frozen=True, slots=True)
class AuditLog:
    """All records with their keys, oldest first."""

    records: tuple[tuple[str, AuditRecord], ...]

    @classmethod
    def read(cls, store: Store) -> Self:
        """Read the log below a folder of runs. Raises SchemaMismatch for an object that is not a record."""
        records = []
        for info in sorted(store.list("audit"), key=lambda info: info.key):
            try:
                records.append((info.key, AuditRecord(**json.loads(store.get(info.key)))))
            except (ValueError, TypeError) as error:
                raise SchemaMismatch(f"{store.uri_of(info.key)} is not an audit record: {error}") from error
        return cls(tuple(records))

    def to_text(self) -> str:
        """Return one line per record."""
        lines = [
            f"{record.when[:19]}  {record.who}  {record.case}  {record.action}  "
            f"{record.request.get('probes', '')}  {record.generation}"
            for _, record in self.records
        ]
        return "\n".join(lines) or "no sweep is recorded"

    def to_json(self) -> list[dict[str, Any]]:
        """Return the records with their keys."""
        return [{"key": key, **asdict(record)} for key, record in self.records]


def append_record(store: Store, record: AuditRecord) -> str:
    """Write a record and return its key. Raises StoreError; then the sweep must not start."""
    time = datetime.fromisoformat(record.when).strftime("%Y%m%dT%H%M%S%fZ")
    key = f"audit/{time}-{secrets.token_hex(4)}.json"
    store.create(key, (json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n").encode())
    return key


def require_record(store: Store, key: str) -> None:
    """Raise AccountingError if there is no record of this key."""
    if not key.startswith("audit/") or store.head(key) is None:
        raise AccountingError(
            f"there is no audit record {store.uri_of(key)}", remedy="start the sweep by clvr sweep"
        )
