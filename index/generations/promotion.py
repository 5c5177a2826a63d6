"""The gate that a generation must pass, the one move of the alias that makes it live, and the way back."""

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


def promote(milvus: Milvus, store: Store, name: str, *, force: str = "") -> Generation:
    """Move the alias to a generation that passed its gate; searches see the old one or the new one whole.

    `force`, the reason in words, passes over a gate that failed or never was, and is recorded. Raises
    GateFailed, also if rows came or went unrecorded, or another model went live, since the gate; BadInput;
    Locked if the alias is moved by somebody else right now.
    """
    generation = collection.get_generation(milvus, name)
    with acquire(store, alias_lock(generation.alias), f"a promotion of {name}") as lock:
        current = collection.live_generation(milvus, generation.alias)
        if current is not None and current.name == name:
            return generation
        entry = records.read(store, name)
        if entry is not None and entry.state == "loading":
            raise BadInput(
                f"{name} is being loaded, or its load was cut off", remedy="Wait for it, or load again."
            )
        collection.ensure_loaded(milvus, generation)
        if not force:
            _require_gate(milvus, store, generation, current)
        lock.require()
        _point_alias(milvus, store, generation, current, kind="promote", force=force)
    return generation


def rollback(milvus: Milvus, store: Store, alias: str, *, force: str = "") -> Generation:
    """Move the alias back to the generation that was live before; a second rollback undoes the first.

    Raises BadInput if there is none; GateFailed, unless forced with a reason, if it does not hold the rows
    that the ledger says; Locked if the alias is moved by somebody else right now.
    """
    with acquire(store, alias_lock(alias), f"a rollback of {alias}") as lock:
        current = collection.live_generation(milvus, alias)
        before = records.previous(milvus, store, alias)
        if current is None or before is None:
            raise BadInput(
                f"alias {alias} has no previous generation to return to",
                remedy="`clvr generations` lists what there is; `clvr promote` makes one of them live.",
            )
        collection.ensure_loaded(milvus, before)
        changed = _unexplained_row_change(milvus, before, records.read(store, before.name))
        if changed and not force:
            raise GateFailed(
                f"{before.name} is not what it was: {changed}",
                remedy="Force with a reason, or load and promote a new one.",
            )
        lock.require()
        _point_alias(milvus, store, before, current, kind="rollback", force=force)
    return before


def _point_alias(
    milvus: Milvus, store: Store, to: Generation, current: Generation | None, *, kind: str, force: str
) -> None:
    entry = records.read(store, to.name)
    move: dict[str, Any] = {
        "at": utc_now(),
        "kind": kind,
        "replaced": current.name if current else None,
        "force": force,
    }
    # Written before the move: if we are killed between the two, the way back is still known, and an entry
    # whose generation did not go live after all harms nobody.
    records.update(
        store,
        to.name,
        replaced=move["replaced"],
        promotions=((*entry.promotions, move) if entry else (move,)),
    )
    try:
        milvus.call("alter_alias" if current else "create_alias", to.name, to.alias)
    except IndexRefused:
        if current is not None:
            raise
        # An alias whose collection was dropped by hand points nowhere, and yet it exists.
        milvus.call("alter_alias", to.name, to.alias)


def _require_gate(milvus: Milvus, store: Store, generation: Generation, current: Generation | None) -> None:
    entry = records.read(store, generation.name)
    gate = entry.gate if entry else None
    if gate is None:
        raise GateFailed(
            f"{generation.name} has not been through the gate", remedy="Check it, or force with a reason."
        )
    failures = list(gate["failures"])
    if changed := _unexplained_row_change(milvus, generation, entry):
        failures.append(changed)
    if current and not gate["new_model"] and current.fingerprint != generation.fingerprint:
        failures.append(f"{current.name} of model {current.fingerprint} went live since the gate")
    if failures:
        raise GateFailed(
            f"{generation.name} did not pass: {'; '.join(failures)}",
            remedy="Repair and load again, or force with a reason, which is recorded.",
        )


def _unexplained_row_change(
    milvus: Milvus, generation: Generation, entry: records.GenerationRecord | None
) -> str:
    """Say what came or went without a word in the ledger, '' if nothing did."""
    rows = collection.row_count(milvus, generation)
    if entry is None or rows == entry.rows:
        return ""
    return f"count(*) is {rows:,} now, by the ledger it is {entry.rows:,}"


KEEP = 3


@dataclass(frozen=True, slots=True)
class Retirement:
    """What was dropped and what was kept, oldest first."""

    dropped: tuple[str, ...]
    kept: tuple[str, ...]


def retire(milvus: Milvus, store: Store, alias: str, *, keep: int = KEEP) -> Retirement:
    """Drop all but the newest `keep` generations of an alias; the live and the previous one stay as well.

    A generation that is being loaded counts as none. Raises BadSetting, Locked.
    """
    if keep < 1:
        raise BadSetting(f"{keep} generations cannot be kept", remedy="Keep at least one.")
    doing = f"retiring generations of {alias}"
    with acquire(store, ROWS, doing), acquire(store, alias_lock(alias), doing):
        entries = {entry.name: entry.state for entry in records.list_records(store, alias)}
        found = [
            one.name
            for one in collection.list_generations(milvus, alias)
            if entries.get(one.name) != "loading"
        ]
        current = collection.live_generation(milvus, alias)
        before = records.previous(milvus, store, alias)
        safe = {one.name for one in (current, before) if one is not None} | set(found[-keep:])
        dropped = [name for name in found if name not in safe]
        for name in dropped:
            records.drop(milvus, store, name)
    return Retirement(tuple(dropped), tuple(name for name in found if name in safe))
