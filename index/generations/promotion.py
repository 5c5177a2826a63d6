"""Promotion, rollback and retirement: moves of the alias, and drops of old generations."""

from dataclasses import dataclass
from typing import Any

from index.documents import utc_now
from index.generations import records
from index.lock import ROWS, acquire, alias_lock
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from infra.errors import BadInput, BadSetting, GateFailed, IndexRefused
from infra.store import Store

KEEP = 3


@dataclass(frozen=True, slots=True)
class Retirement:
    """The generations that were dropped and kept, oldest first."""

    dropped: tuple[str, ...]
    kept: tuple[str, ...]


def promote(milvus: Milvus, store: Store, name: str, *, force: str = "") -> Generation:
    """Move the alias to a generation that passed its gate; each search sees one generation, old or new.

    force: a reason to promote despite a failed or missing gate; it is recorded. Raises GateFailed, also if
    rows changed unrecorded or another model went live since the gate; BadInput for a generation that does
    not exist or is being loaded; Locked if another operation moves the alias.
    """
    generation = collection.get_generation(milvus, name)
    with acquire(store, alias_lock(generation.alias), f"a promotion of {name}") as lock:
        current = collection.live_generation(milvus, generation.alias)
        if current is not None and current.name == name:
            return generation
        record = records.read(store, name)
        if record is not None and record.state == "loading":
            raise BadInput(
                f"{name} is being loaded, or its load was interrupted",
                remedy="Wait for the load, or repeat it: `clvr load`.",
            )
        collection.ensure_loaded(milvus, generation)
        if not force:
            _require_gate(milvus, store, generation, current)
        lock.require()
        _point_alias(milvus, store, generation, current, kind="promote", force=force)
    return generation


def rollback(milvus: Milvus, store: Store, alias: str, *, force: str = "") -> Generation:
    """Move the alias back to the generation that was live before; a second rollback undoes the first.

    force: a reason to return to a generation whose rows changed unrecorded; it is recorded.
    Raises BadInput if there is no previous generation; GateFailed if its rows changed unrecorded, unless
    forced; Locked if another operation moves the alias.
    """
    with acquire(store, alias_lock(alias), f"a rollback of {alias}") as lock:
        current = collection.live_generation(milvus, alias)
        before = records.previous(milvus, store, alias)
        if current is None or before is None:
            raise BadInput(
                f"alias {alias} has no previous generation to return to",
                remedy="`clvr generations` lists all generations; `clvr promote` makes one live.",
            )
        collection.ensure_loaded(milvus, before)
        row_change = _unexplained_row_change(milvus, before, records.read(store, before.name))
        if row_change and not force:
            raise GateFailed(
                f"{before.name} has changed: {row_change}",
                remedy="Force with a reason (--force), or load and promote a new one.",
            )
        lock.require()
        _point_alias(milvus, store, before, current, kind="rollback", force=force)
    return before


def retire(milvus: Milvus, store: Store, alias: str, *, keep: int = KEEP) -> Retirement:
    """Drop all but the newest `keep` generations of an alias; the live and the previous one stay as well.

    Generations that are being loaded are left alone. Raises BadSetting, Locked.
    """
    if keep < 1:
        raise BadSetting(f"{keep} generations cannot be kept", remedy="Keep at least one.")
    purpose = f"retiring generations of {alias}"
    with acquire(store, ROWS, purpose), acquire(store, alias_lock(alias), purpose):
        states = {record.name: record.state for record in records.list_records(store, alias)}
        names = [
            generation.name
            for generation in collection.list_generations(milvus, alias)
            if states.get(generation.name) != "loading"
        ]
        current = collection.live_generation(milvus, alias)
        before = records.previous(milvus, store, alias)
        protected = {generation.name for generation in (current, before) if generation is not None}
        kept = protected | set(names[-keep:])
        dropped = [name for name in names if name not in kept]
        for name in dropped:
            records.drop(milvus, store, name)
    return Retirement(tuple(dropped), tuple(name for name in names if name in kept))


def _point_alias(
    milvus: Milvus, store: Store, target: Generation, current: Generation | None, *, kind: str, force: str
) -> None:
    record = records.read(store, target.name)
    previous = current.name if current else None
    move: dict[str, Any] = {"at": utc_now(), "kind": kind, "replaced": previous, "force": force}
    # Recorded before the move: if the process is killed between the two, a rollback is still possible, and
    # the record of a generation that did not go live does no harm.
    records.update(
        store,
        target.name,
        previous=previous,
        promotions=((*record.promotions, move) if record else (move,)),
    )
    try:
        milvus.call("alter_alias" if current else "create_alias", target.name, target.alias)
    except IndexRefused:
        if current is not None:
            raise
        # An alias whose collection was dropped by hand still exists, although it points to nothing.
        milvus.call("alter_alias", target.name, target.alias)


def _require_gate(milvus: Milvus, store: Store, generation: Generation, current: Generation | None) -> None:
    record = records.read(store, generation.name)
    gate = record.gate if record else None
    if gate is None:
        raise GateFailed(
            f"{generation.name} has not been through the gate", remedy="Promote it by `clvr promote`."
        )
    failures = list(gate["failures"])
    if row_change := _unexplained_row_change(milvus, generation, record):
        failures.append(row_change)
    if current and not gate["new_model"] and current.fingerprint != generation.fingerprint:
        failures.append(f"{current.name} of model {current.fingerprint} went live since the gate")
    if failures:
        raise GateFailed(
            f"{generation.name} did not pass: {'; '.join(failures)}",
            remedy="Repair and load again, or force with a reason (--force), which is recorded.",
        )


def _unexplained_row_change(
    milvus: Milvus, generation: Generation, record: records.GenerationRecord | None
) -> str:
    """Describe a row count that differs from the record; '' if it does not."""
    rows = collection.row_count(milvus, generation)
    if record is None or rows == record.rows:
        return ""
    return f"count(*) is {rows:,} now, by its record it is {record.rows:,}"
