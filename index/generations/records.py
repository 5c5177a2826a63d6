"""The mutable part of a generation, `generations/<name>.json`: its state, its gate and its promotions.

Kept beside the runs and not in Milvus, so that it outlives the collection and tells of an interrupted load.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from index.documents import JsonDocument, utc_now
from index.milvus.client import Milvus
from index.milvus.collection import DROP_SECONDS, Generation, get_generation, live_generation
from index.milvus.index_types import IndexSpec
from index.schema import SHARD_VERSION
from infra.errors import BadInput, BadSetting, ObjectChanged, ObjectMissing
from infra.store import Store

State = Literal["loading", "ready", "dropped"]
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class GenerationRecord(JsonDocument):
    """One generation's state.

    `rows` is what count(*) must be. `run_ids` are the runs that it holds now, `pending` those of an increment
    that was begun and not finished. `changes` lists what came to it or was erased from it since it was built.
    `gate` holds the numbers of the last gate. `replaced` names what was live when this one was promoted last;
    `promotions` lists every move of the alias to this one.
    """

    NOUN = "ledger entry of a generation"

    name: str
    alias: str
    fingerprint: str
    run_ids: tuple[str, ...]
    rows: int
    target: str
    state: State
    updated: str
    gate: dict[str, Any] | None = None
    replaced: str | None = None
    promotions: tuple[dict[str, Any], ...] = ()
    changes: tuple[dict[str, Any], ...] = ()
    pending: tuple[str, ...] = ()


def create(store: Store, entry: GenerationRecord) -> None:
    """Write the first entry of a generation. Raises ObjectExists if somebody took the name."""
    store.create(_key(entry.name), entry.to_json())


def read(store: Store, name: str) -> GenerationRecord | None:
    """Return a generation's entry, or None. Raises SchemaMismatch if it cannot be read as one."""
    try:
        return GenerationRecord.read(store, _key(name))
    except ObjectMissing:
        return None


def update(store: Store, name: str, **changes: Any) -> GenerationRecord | None:
    """Change fields of an entry, atomically against other writers; None if there is no entry."""
    for _ in range(_ATTEMPTS):
        try:
            found = store.fetch(_key(name))
            changed = replace(
                GenerationRecord.from_json(found.data, store.uri_of(_key(name))),
                **{"updated": utc_now(), **changes},
            )
            store.replace(_key(name), changed.to_json(), etag=found.etag)
            return changed
        except ObjectMissing:
            return None
        except ObjectChanged:
            continue
    raise ObjectChanged(f"{store.uri_of(_key(name))} changes all the time", remedy="Try again later.")


def list_records(store: Store, alias: str | None = None) -> Iterator[GenerationRecord]:
    """Yield the entries of an alias, or of all, in no order."""
    for found in store.list("generations"):
        if not found.key.endswith(".json") or found.key.count("/") != 1:
            continue  # a shard that waits for its import
        entry = GenerationRecord.read(store, found.key)
        if alias in (None, entry.alias):
            yield entry


def _key(name: str) -> str:
    return f"generations/{name}.json"


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def new_generation(
    milvus: Milvus, store: Store, *, alias: str, fingerprint: str, run_ids: Sequence[str], index: IndexSpec
) -> Generation:
    """Name a generation that does not exist yet: `<alias>_<fingerprint, 8>_<UTC time>`. Creates nothing."""
    if not _NAME.fullmatch(alias):
        raise BadSetting(
            f"{alias!r} cannot be an alias", remedy="Use letters, digits and underscores, at most 128."
        )
    short = re.sub(r"[^A-Za-z0-9]", "", fingerprint)[:8]
    now = datetime.now(UTC)
    # A name of the ledger stays taken after its collection is dropped: the entry tells what became of it.
    while (
        milvus.call("has_collection", name := f"{alias}_{short}_{now:%Y%m%dT%H%M%S}")
        or read(store, name) is not None
    ):
        now += timedelta(seconds=1)
    created = now.isoformat(timespec="seconds")
    return Generation(name, alias, fingerprint, SHARD_VERSION, tuple(run_ids), index, created)


def previous(milvus: Milvus, store: Store, alias: str) -> Generation | None:
    """Return the generation that was live before the live one, if it is still on the server."""
    current = live_generation(milvus, alias)
    entry = read(store, current.name) if current else None
    if entry is None or entry.replaced is None or not milvus.call("has_collection", entry.replaced):
        return None
    return get_generation(milvus, entry.replaced)


def drop(milvus: Milvus, store: Store, name: str, *, force: bool = False) -> None:
    """Drop a generation; the ledger remembers it. The live and the previous one only if forced.

    Raises BadInput if it is no generation, or one of those two.
    """
    doomed = get_generation(milvus, name)
    # Asked of the collection itself: an alias of any name makes it live. Before 2.5.5 no server minds.
    aliases = list(milvus.call("list_aliases", name)["aliases"])
    before = previous(milvus, store, doomed.alias)
    if not force and (aliases or (before is not None and before.name == name)):
        role = f"live as {', '.join(aliases)}" if aliases else f"what a rollback of {doomed.alias} returns to"
        raise BadInput(f"{name} is {role}", remedy="Promote another one first, or force it.")
    for alias in aliases:
        milvus.call("drop_alias", alias)
    milvus.call("drop_collection", name, timeout=DROP_SECONDS)
    update(store, name, state="dropped")
