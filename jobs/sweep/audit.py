"""The audit log of sweeps: one object an entry, created once, never replaced.

    audit/<UTC time>-<random>.json

A sweep names its entry and does nothing until the entry stands.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from infra.errors import AccountingError, BadInput, SchemaMismatch
from infra.store import Store


@dataclass(frozen=True, slots=True)
class Entry:
    """Who asked what, why and when, and what was asked with. `who` is what the caller's system calls them."""

    who: str
    case: str
    action: str
    generation: str
    fingerprint: str
    request: Mapping[str, Any]
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    def __post_init__(self) -> None:
        if not self.case.strip():
            raise BadInput("a sweep needs a reason", remedy="give --case, such as a case number")
        if not self.who.strip():
            raise BadInput("nobody says who asks", remedy="give --who")


def append(store: Store, entry: Entry) -> str:
    """Write an entry and return its key. Raises StoreError, and then nothing may run on it."""
    moment = datetime.fromisoformat(entry.when).strftime("%Y%m%dT%H%M%S%fZ")
    key = f"audit/{moment}-{secrets.token_hex(4)}.json"
    store.create(key, (json.dumps(asdict(entry), indent=1, ensure_ascii=False) + "\n").encode())
    return key


def require(store: Store, key: str) -> None:
    """Raise AccountingError unless the entry stands."""
    if not key.startswith("audit/") or store.head(key) is None:
        raise AccountingError(f"no audit entry {store.uri_of(key)}", remedy="start the sweep by clvr sweep")


def entries(store: Store) -> list[tuple[str, Entry]]:
    """All entries with their keys, oldest first. Raises SchemaMismatch for one that is none."""
    found = []
    for info in sorted(store.list("audit"), key=lambda info: info.key):
        try:
            found.append((info.key, Entry(**json.loads(store.get(info.key)))))
        except (ValueError, TypeError) as error:
            raise SchemaMismatch(f"{store.uri_of(info.key)} is no audit entry: {error}") from error
    return found
