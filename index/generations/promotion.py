"""Promotion, rollback and retirement: moves of the alias, and drops of old generations."""

from dataclasses import dataclass
from typing import Any

from index.documents import utc_now
from index.generations import records
from index.generations.units import remove_unreferenced
from index.lock import ROWS, acquire, alias_lock
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from infra.errors import BadInput, BadSetting, GateFailed, IndexRefused, Locked
from infra.store import Store

KEEP = 3


@dataclass(frozen=True, slots=True)
class Retirement:
    """The generations that were dropped and kept, oldest first.

    `corrected`: generations whose collection was gone already, and whose record now says so.
    """

    dropped: tuple[str, ...]
    kept: tuple[str, ...]
    corrected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rollback:
    """The live generation after a rollback.

    moved: False if it was live already, because the rollback was completed earlier. `replaced` names the
    generation that was live before the move, and `at` is the time of the move; None and '' if no rollback
    made it live.
    """

    generation: Generation
    moved: bool
    replaced: str | None
    at: str


def promote(
    milvus: Milvus, store: Store, name: str, *, force: str = "", replacing: str | None = None
) -> Generation:
    """Move the alias to a generation that passed its gate; each search sees one generation, old or new.

    force: a reason to promote despite a failed or missing gate; it is recorded. replacing: name of the
    generation that was live when the caller decided; the alias does not move if another one is live now.
    Raises GateFailed, also if rows changed unrecorded or another model went live since the gate; BadInput
    for a generation that does not exist or is being loaded; Locked if another operation moves the alias, or
    has moved it away from `replacing`.
    """
    generation = collection.get_generation(milvus, name)
    with acquire(store, alias_lock(generation.alias), f"a promotion of {name}") as lock:
        current = collection.live_generation(milvus, generation.alias)
        if current is not None and current.name == name:
            return generation
        if replacing is not None:
            _require_unmoved(generation.alias, replacing, _name(current))
        _require_usable(records.read(store, name))
        collection.ensure_loaded(milvus, generation)
        if not force:
            _require_gate(milvus, store, generation, current)
        lock.require()
        _point_alias(milvus, store, generation, current, kind="promote", force=force)
    return generation


def rollback(
    milvus: Milvus, store: Store, alias: str, name: str | None = None, *, force: str = ""
) -> Rollback:
    """Move the alias back to the generation `name`, by default to the one that was live before.

    A repeated rollback moves nothing: with a name, if that generation is live; without, if the last completed
    move of the alias was a rollback. force: a reason to return to a generation whose rows changed unrecorded;
    it is recorded.
    Raises BadInput for a generation that was never live, and without a name if there is no previous one;
    GateFailed if its rows changed unrecorded, unless forced; Locked if another operation moves the alias, or
    moved it between the start of this call and its lock.
    """
    seen = collection.live_generation(milvus, alias)
    with acquire(store, alias_lock(alias), f"a rollback of {alias}") as lock:
        current = collection.live_generation(milvus, alias)
        if name is None:
            _require_unmoved(alias, _name(seen), _name(current))
        if current is not None and (done := _completed_rollback(store, current, name)):
            return done
        target = (
            _previous(milvus, store, alias, current)
            if name is None
            else _formerly_live(milvus, store, alias, current, name)
        )
        _require_usable(records.read(store, target.name))
        collection.ensure_loaded(milvus, target)
        row_change = _unexplained_row_change(milvus, target, records.read(store, target.name))
        if row_change and not force:
            raise GateFailed(
                f"{target.name} has changed: {row_change}",
                remedy="Force with a reason (--force), or load and promote a new one.",
            )
        lock.require()
        at = _point_alias(milvus, store, target, current, kind="rollback", force=force)
    return Rollback(target, moved=True, replaced=current.name if current else None, at=at)


def retire(milvus: Milvus, store: Store, alias: str, *, keep: int = KEEP) -> Retirement:
    """Drop all but the newest `keep` generations of an alias; the live and the previous one stay as well.

    Generations that are being loaded are left alone, and drops that were cut off are completed. Records of
    generations whose collection is gone are corrected, unless the server has no generation of the alias at
    all: it may be the wrong server.
    Raises BadSetting, Locked.
    """
    if keep < 1:
        raise BadSetting(f"{keep} generations cannot be kept", remedy="Keep at least one.")
    purpose = f"retiring generations of {alias}"
    with acquire(store, ROWS, purpose), acquire(store, alias_lock(alias), purpose):
        finished = records.finish_drops(milvus, store, alias)
        states = {record.name: record.state for record in records.list_records(store, alias)}
        generations = collection.list_generations(milvus, alias)
        corrected = records.without_collection(milvus, store, alias) if generations else []
        for record in corrected:
            records.update(store, record.name, state="dropped")
        names = [generation.name for generation in generations if states.get(generation.name) != "loading"]
        current = collection.live_generation(milvus, alias)
        before = records.previous(milvus, store, alias)
        protected = {generation.name for generation in (current, before) if generation is not None}
        kept = protected | set(names[-keep:])
        dropped = [name for name in names if name not in kept]
        for name in dropped:
            records.drop(milvus, store, name)
        remove_unreferenced(store)
    return Retirement(
        dropped=(*finished, *dropped),
        kept=tuple(name for name in names if name in kept),
        corrected=tuple(record.name for record in corrected),
    )


def _require_usable(record: records.GenerationRecord | None) -> None:
    """Raise BadInput for a generation that is being loaded or dropped."""
    if record is not None and record.state == "loading":
        raise BadInput(
            f"{record.name} is being loaded, or its load was interrupted",
            remedy="Wait for the load, or repeat it: `clvr load`.",
        )
    if record is not None and record.state == "dropping":
        raise BadInput(
            f"{record.name} is being dropped, or its drop was interrupted",
            remedy="Load its runs again: `clvr load`.",
        )


def _require_unmoved(alias: str, seen: str | None, current: str | None) -> None:
    """Raise Locked if the alias moved from the generation that the caller saw."""
    if seen != current:
        raise Locked(
            f"another process moved {alias} from {seen or 'nothing'} to {current or 'nothing'} meanwhile",
            remedy="Look at `clvr generations`, and name the generation that must be live.",
        )


def _name(generation: Generation | None) -> str | None:
    return generation.name if generation else None


def _completed_rollback(store: Store, current: Generation, name: str | None) -> Rollback | None:
    """Return the rollback that made the live generation live, if a repeated one need not move the alias."""
    if name not in (None, current.name):
        return None
    record = records.read(store, current.name)
    last = record.promotions[-1] if record and record.promotions else {}
    if last.get("kind") == "rollback":
        return Rollback(current, moved=False, replaced=last.get("replaced"), at=str(last.get("at", "")))
    return Rollback(current, moved=False, replaced=None, at="") if name else None


def _previous(milvus: Milvus, store: Store, alias: str, current: Generation | None) -> Generation:
    before = records.previous(milvus, store, alias)
    if current is None or before is None:
        raise BadInput(
            f"alias {alias} has no previous generation to return to",
            remedy="`clvr generations` lists all generations; `clvr promote` makes one live.",
        )
    return before


def _formerly_live(
    milvus: Milvus, store: Store, alias: str, current: Generation | None, name: str
) -> Generation:
    """Return a generation that some move of the alias replaced; a recorded move to it may not have ended."""
    generation = collection.get_generation(milvus, name)
    if generation.alias != alias:
        raise BadInput(f"{name} is of alias {generation.alias}", remedy="Give that alias: --alias.")
    replaced = {
        former
        for record in records.list_records(store, alias)
        for former in (record.previous, *(move.get("replaced") for move in record.promotions))
    }
    if name not in replaced:
        raise BadInput(f"{name} was never live as {alias}", remedy=f"Make it live: `clvr promote {name}`.")
    return generation


def _point_alias(
    milvus: Milvus, store: Store, target: Generation, current: Generation | None, *, kind: str, force: str
) -> str:
    """Record the move and make it; return its time."""
    record = records.read(store, target.name)
    previous = current.name if current else None
    at = utc_now()
    move: dict[str, Any] = {"at": at, "kind": kind, "replaced": previous, "force": force}
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
    return at


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
