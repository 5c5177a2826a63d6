"""Generation records, `generations/<name>.json`: the state, gate and promotions of each generation.

They are stored with the runs and not in Milvus, because they outlive a collection and show interrupted loads.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import Field

from index.documents import JsonDocument, require_keys_inside, utc_now
from index.milvus.client import Milvus
from index.milvus.collection import DROP_TIMEOUT_SECONDS, Generation, get_generation, live_generation
from index.milvus.index_types import IndexSpec
from index.runs.merged import read_merges
from index.schema import EMBEDDING_DIM
from infra.errors import BadInput, BadSetting, CorruptObject, ObjectChanged, ObjectMissing
from infra.store import Store

State = Literal["loading", "ready", "dropping", "dropped"]
Unit = Literal["crop", "track"]
COPY = "copy"
"""Kind of the first change of a generation that is a copy of another one: `of` names it."""

_ATTEMPTS = 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@dataclass(frozen=True, slots=True)
class GenerationRecord(JsonDocument):
    """The state of one generation.

    `rows` is the expected count(*). `run_ids` are the runs that it holds, `pending` those of an increment
    that was started and not finished, and `pending_rows` is the count(*) that it leads to, None if that is to
    be counted again. `changes` lists the increments and erasures since it was built. `gate` has the results
    of the last gate. `previous` names the generation that was live before the last promotion of this one;
    `promotions` lists every move of the alias to this one. `transform` is the id of the transform of its
    vectors, which holds digits of the transform's digest; "" for none. `unit`: what a row is. `units` names
    the folder of a generation of tracks, see `index.generations.units`, and `crops` counts the crops on its
    rows; "" and None for a generation of crops.
    """

    NOUN = "generation record"

    name: str
    alias: str
    fingerprint: str
    run_ids: tuple[str, ...]
    rows: int
    target: str
    state: State
    updated: str
    gate: dict[str, Any] | None = None
    previous: Annotated[str | None, Field(alias="replaced")] = None
    promotions: tuple[dict[str, Any], ...] = ()
    changes: tuple[dict[str, Any], ...] = ()
    pending: tuple[str, ...] = ()
    pending_rows: int | None = None
    transform: str = ""
    unit: Unit = "crop"
    units: str = ""
    crops: int | None = None

    def check(self, where: str) -> None:
        """Raise CorruptObject for a name of a generation, a run or a folder that leaves its place."""
        others = filter(None, [self.previous, self.transform, self.units])
        require_keys_inside((self.name, *self.run_ids, *self.pending, *others), where)


def create(store: Store, record: GenerationRecord) -> None:
    """Write the first record of a generation. Raises ObjectExists if the name is taken."""
    store.create(_key(record.name), record.to_json())


def read(store: Store, name: str) -> GenerationRecord | None:
    """Return the record of a generation, or None. Raises CorruptObject if it was altered or is of another."""
    try:
        record = _merged(store, GenerationRecord.read(store, _key(name)))
    except ObjectMissing:
        return None
    if record.name != name:
        raise CorruptObject(
            f"{store.uri_of(_key(name))} is the record of {record.name}", remedy="Restore it from a copy."
        )
    return record


def update(store: Store, name: str, **changes: Any) -> GenerationRecord | None:
    """Change fields of a record, atomically; return the new record, or None if there is no record."""
    key = _key(name)
    for _ in range(_ATTEMPTS):
        try:
            body = store.fetch(key)
            stored = GenerationRecord.from_json(body.data, store.uri_of(key))
            record = replace(_merged(store, stored), **{"updated": utc_now(), **changes})
            store.replace(key, record.to_json(), etag=body.etag)
            return record
        except ObjectMissing:
            return None
        except ObjectChanged:
            continue
    raise ObjectChanged(f"{store.uri_of(key)} is changed by others all the time", remedy="Try again later.")


def list_records(store: Store, alias: str | None = None) -> Iterator[GenerationRecord]:
    """Yield the records of an alias, or of all, in no particular order."""
    merges = read_merges(store)
    for info in store.list("generations"):
        if not info.key.endswith(".json") or info.key.count("/") != 1:
            continue
        record = GenerationRecord.read(store, info.key)
        if alias in (None, record.alias):
            yield replace(record, run_ids=merges.apply(record.run_ids))


def new_generation(
    milvus: Milvus,
    store: Store,
    *,
    alias: str,
    fingerprint: str,
    run_ids: Sequence[str],
    index: IndexSpec,
    schema_version: int = 1,
    transform: str = "",
    dimension: int = EMBEDDING_DIM,
) -> Generation:
    """Name a generation that does not exist yet: `<alias>_<fingerprint, 8>_<UTC time>`. Creates nothing."""
    if not _NAME.fullmatch(alias):
        raise BadSetting(
            f"{alias!r} cannot be an alias", remedy="Use letters, digits and underscores, at most 128."
        )
    short = re.sub(r"[^A-Za-z0-9]", "", fingerprint)[:8]
    now = datetime.now(UTC)
    # The name of a dropped generation stays taken, because its record stays.
    while (
        milvus.call("has_collection", name := f"{alias}_{short}_{now:%Y%m%dT%H%M%S}")
        or read(store, name) is not None
    ):
        now += timedelta(seconds=1)
    return Generation(
        name=name,
        alias=alias,
        fingerprint=fingerprint,
        schema_version=schema_version,
        run_ids=tuple(run_ids),
        index=index,
        created=now.isoformat(timespec="seconds"),
        folder=store.uri,
        transform=transform,
        dimension=dimension,
    )


def current_name(store: Store, name: str) -> str:
    """Return the name of a generation today: a purge replaces it by a copy in a local file."""
    record = read(store, name)
    if record is None or record.state == "ready":
        return name
    for other in list_records(store, record.alias):
        origin = other.changes[0] if other.changes else {}
        if origin.get("kind") == COPY and origin.get("of") == name and other.state != "loading":
            return current_name(store, other.name)
    return name


def previous(milvus: Milvus, store: Store, alias: str) -> Generation | None:
    """Return the generation that was live before the live one, if its collection still exists."""
    current = live_generation(milvus, alias)
    record = read(store, current.name) if current else None
    if record is None or record.previous is None or not milvus.call("has_collection", record.previous):
        return None
    return get_generation(milvus, record.previous)


def without_collection(milvus: Milvus, store: Store, alias: str) -> list[GenerationRecord]:
    """Return the records of generations whose collection is gone, in the order of their names.

    A drop that was cut off before it changed the record leaves one, and so does a drop by other programs.
    """
    kept = [record for record in list_records(store, alias) if record.state in ("ready", "dropping")]
    gone = [record for record in kept if not milvus.call("has_collection", record.name)]
    return sorted(gone, key=lambda record: record.name)


def drop(milvus: Milvus, store: Store, name: str, *, force: bool = False) -> None:
    """Drop a generation; its record stays. The live and the previous one only with `force`.

    From its start on the record is `dropping`, and a drop that is cut off is completed by `finish_drops`.
    Raises BadInput if there is no such generation, or if it is the live or the previous one.
    """
    generation = get_generation(milvus, name)
    # Asked of the collection itself, because any alias makes it live. Servers before 2.5.5 drop it anyway.
    aliases = list(milvus.call("list_aliases", name)["aliases"])
    before = previous(milvus, store, generation.alias)
    if not force and (aliases or (before is not None and before.name == name)):
        role = (
            f"live as {', '.join(aliases)}"
            if aliases
            else f"the generation to which a rollback of {generation.alias} returns"
        )
        raise BadInput(f"{name} is {role}", remedy="Promote another generation first: `clvr promote`.")
    for alias in aliases:
        milvus.call("drop_alias", alias)
    update(store, name, state="dropping")
    milvus.call("drop_collection", name, timeout=DROP_TIMEOUT_SECONDS)
    update(store, name, state="dropped")


def finish_drops(milvus: Milvus, store: Store, alias: str | None = None) -> list[str]:
    """Drop the generations of an alias, or of all, whose drop was cut off; return their names.

    The caller holds the lock on rows. One whose collection is gone keeps its record: see
    `without_collection`.
    """
    dropping = [record.name for record in list_records(store, alias) if record.state == "dropping"]
    names = [name for name in sorted(dropping) if milvus.call("has_collection", name)]
    for name in names:
        drop(milvus, store, name, force=True)
    return names


def _merged(store: Store, record: GenerationRecord) -> GenerationRecord:
    """Return a record that names the runs in which the rows of its runs are now."""
    return replace(record, run_ids=read_merges(store).apply(record.run_ids))


def _key(name: str) -> str:
    return f"generations/{name}.json"
