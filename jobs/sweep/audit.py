"""The audit log of sweeps: one object an entry, created once, never replaced.

    audit/<UTC time>-<random>.json

A sweep names its entry and does nothing until the entry stands.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from index.documents import JsonDocument, utc_now
from infra.errors import AccountingError, BadInput
from infra.store import Store


@dataclass(frozen=True, slots=True)
class AuditRecord(JsonDocument):
    """Who asked what, why and when, and what was asked with. `who` is what the caller's system calls them."""

    NOUN = "audit entry"

    who: str
    case: str
    action: str
    generation: str
    fingerprint: str
    request: Mapping[str, Any]
    when: str = field(default_factory=utc_now)

    def __post_init__(self) -> None:
        if not self.case.strip():
            raise BadInput("a sweep needs a reason", remedy="give --case, such as a case number")
        if not self.who.strip():
            raise BadInput("nobody says who asks", remedy="give --who")


def append(store: Store, entry: AuditRecord) -> str:
    """Write an entry and return its key. Raises StoreError, and then nothing may run on it."""
    moment = datetime.fromisoformat(entry.when).strftime("%Y%m%dT%H%M%S%fZ")
    key = f"audit/{moment}-{secrets.token_hex(4)}.json"
    store.create(key, entry.to_json())
    return key


def require(store: Store, key: str) -> None:
    """Raise AccountingError unless the entry stands."""
    if not key.startswith("audit/") or store.head(key) is None:
        raise AccountingError(f"no audit entry {store.uri_of(key)}", remedy="start the sweep by clvr sweep")


def entries(store: Store) -> list[tuple[str, AuditRecord]]:
    """All entries with their keys, oldest first. Raises SchemaMismatch for one that is none."""
    keys = sorted(info.key for info in store.list("audit"))
    return [(key, AuditRecord.read(store, key)) for key in keys]
