"""Dropping old generations, and never the live one or the one that a rollback returns to."""

from dataclasses import dataclass

from index import generation_ledger, generations
from index.lock import ROWS, alias_lock, held
from index.milvus import Milvus
from infra.errors import BadSetting
from infra.store import Store

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
    with held(store, ROWS, doing), held(store, alias_lock(alias), doing):
        entries = {entry.name: entry.state for entry in generation_ledger.entries(store, alias)}
        found = [
            one.name
            for one in generations.list_generations(milvus, alias)
            if entries.get(one.name) != "loading"
        ]
        current = generations.live(milvus, alias)
        before = generations.previous(milvus, store, alias)
        safe = {one.name for one in (current, before) if one is not None} | set(found[-keep:])
        dropped = [name for name in found if name not in safe]
        for name in dropped:
            generations.drop(milvus, store, name)
    return Retirement(tuple(dropped), tuple(name for name in found if name in safe))
