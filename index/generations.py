"""Generations: one Milvus collection each, of runs of one fingerprint; an alias names the live one."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from index import generation_ledger
from index.milvus import Milvus
from index.schemas import EMBEDDING_DIM, MAX_NAME_BYTES, MAX_URI_BYTES, SHARD_VERSION
from infra.errors import BadInput, BadSetting, FingerprintMismatch, IndexRefused, SchemaMismatch
from infra.store import Store

DROP_SECONDS = 180.0
"""How long a drop may take: for a minute after a crash, 2.3.5 waits for the sessions of its dead self."""

GRAPH_ROWS = 5_000_000
"""Up to how many rows 'auto' takes HNSW: 4.3 KB a row are 22 GB then, and a quarter of it with IVF_SQ8."""

LITE_GRAPH_ROWS = 20_000
"""The same in a local file: beyond it a graph takes minutes to build, and IVF_FLAT finds as much as fast."""

_FACTS = "clvr.generation"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_LOAD_FIRST = "Build one with `clvr load`, then make it live with `clvr promote`."


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """The vector index of a generation: a type that the server's version is allowed, and its parameters."""

    type: str
    params: dict[str, int]


@dataclass(frozen=True, slots=True)
class Generation:
    """What a collection says of itself. Its state and its gate are in the ledger: see generation_ledger."""

    name: str
    alias: str
    fingerprint: str
    schema_version: int
    run_ids: tuple[str, ...]
    index: IndexSpec
    created: str


def index_spec(milvus: Milvus, index_type: str, rows: int) -> IndexSpec:
    """Choose the index for some rows; 'auto' is HNSW until another one suits the place better.

    Raises IndexRefused for a type not allowed here.
    """
    kind = _automatic(milvus, rows) if index_type == "auto" else index_type.upper()
    allowed = milvus.capabilities.index_types
    if kind not in allowed:
        raise IndexRefused(
            f"index type {kind} is not used on Milvus {milvus.capabilities.version}",
            remedy=f"Choose one of {', '.join(sorted(allowed))}.",
        )
    params: dict[str, int] = {}
    if kind == "HNSW":
        params = {"M": 16, "efConstruction": 200}
    elif kind.startswith("IVF") or kind == "SCANN":
        # About the square root of the rows, as a power of two.
        params = {"nlist": min(65536, max(16, 2 ** round(max(rows, 1).bit_length() / 2)))}
    if kind == "IVF_PQ":
        params |= {"m": 64, "nbits": 8}
    return IndexSpec(kind, params)


def _automatic(milvus: Milvus, rows: int) -> str:
    if milvus.capabilities.lite:
        return "HNSW" if rows < LITE_GRAPH_ROWS else "IVF_FLAT"
    return "HNSW" if rows <= GRAPH_ROWS else "IVF_SQ8"


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
        or generation_ledger.read(store, name) is not None
    ):
        now += timedelta(seconds=1)
    created = now.isoformat(timespec="seconds")
    return Generation(name, alias, fingerprint, SHARD_VERSION, tuple(run_ids), index, created)


def create_collection(milvus: Milvus, generation: Generation) -> None:
    """Create the empty collection of a generation: the shards' columns exactly, `crop_id` as primary key."""
    from pymilvus import CollectionSchema, DataType, FieldSchema

    fields = [
        FieldSchema("crop_id", DataType.INT64, is_primary=True),
        FieldSchema("embedding", DataType.FLOAT_VECTOR, dim=EMBEDDING_DIM),
        FieldSchema("uri", DataType.VARCHAR, max_length=MAX_URI_BYTES),
        FieldSchema("camera_id", DataType.VARCHAR, max_length=MAX_NAME_BYTES),
        FieldSchema("track_id", DataType.VARCHAR, max_length=MAX_NAME_BYTES),
        FieldSchema("captured_at", DataType.INT64),
        FieldSchema("model_id", DataType.INT32),
        FieldSchema("model_confidence", DataType.FLOAT),
    ]
    facts = json.dumps(
        {
            "alias": generation.alias,
            "fingerprint": generation.fingerprint,
            "schema_version": generation.schema_version,
            "run_ids": generation.run_ids,
            "index": {"type": generation.index.type, "params": generation.index.params},
            "created": generation.created,
        }
    )
    # Milvus Lite drops the description; servers of all versions keep it, but not all keep foreign properties.
    lite = milvus.capabilities.lite
    schema = CollectionSchema(
        fields, description="" if lite else facts, auto_id=False, enable_dynamic_field=False
    )
    properties = {_FACTS: facts} if lite else {}
    milvus.call("create_collection", generation.name, schema=schema, properties=properties)


def create_index(milvus: Milvus, generation: Generation) -> None:
    """Start building the vector index, metric L2. A server returns at once, Milvus Lite when it is built."""
    from pymilvus import MilvusClient

    spec = generation.index
    # pymilvus spreads the parameters out, and Milvus Lite reads only those that lie together in `params`.
    params: dict[str, Any] = {"params": spec.params} if milvus.capabilities.lite else dict(spec.params)
    wanted = MilvusClient.prepare_index_params()
    wanted.add_index("embedding", index_type=spec.type, metric_type="L2", params=params)
    milvus.call("create_index", generation.name, wanted, sync=False, timeout=3600)


def list_generations(milvus: Milvus, alias: str | None = None) -> list[Generation]:
    """Return the generations on the server, oldest first; collections of other programs are left out."""
    found = [_described(milvus, name) for name in milvus.call("list_collections")]
    ours = [one for one in found if one is not None and alias in (None, one.alias)]
    return sorted(ours, key=lambda one: (one.created, one.name))


def find(milvus: Milvus, name: str) -> Generation:
    """Return the generation of this name. Raises BadInput if there is none, or if it is an alias."""
    found = _described(milvus, name) if milvus.call("has_collection", name) else None
    if found is None or found.name != name:
        raise BadInput(f"{name} is no generation at {milvus.uri}", remedy="`clvr status` lists them.")
    return found


def live(milvus: Milvus, alias: str) -> Generation | None:
    """Return the generation that the alias points to. Raises SchemaMismatch if it points to anything else."""
    if not milvus.call("has_collection", alias):
        return None
    target = _described(milvus, alias)
    if target is None or target.name == alias:
        raise SchemaMismatch(
            f"{alias} at {milvus.uri} is a collection of another program, or names one",
            remedy="Choose another alias.",
        )
    return target


def searchable(milvus: Milvus, alias: str, fingerprint: str) -> Generation:
    """Return the live generation, loaded, if it holds embeddings of this model.

    Raises BadInput if nothing is live, FingerprintMismatch with both fingerprints.
    """
    target = live(milvus, alias)
    if target is None:
        waiting = [one.name for one in list_generations(milvus, alias)]
        raise BadInput(
            f"alias {alias} at {milvus.uri} points to nothing"
            + (f"; {waiting[-1]} waits for promotion" if waiting else ", and nothing is indexed"),
            remedy=f"Run `clvr promote {waiting[-1]}`." if waiting else _LOAD_FIRST,
        )
    if target.fingerprint != fingerprint:
        raise FingerprintMismatch(
            f"{target.name} holds embeddings of model {target.fingerprint}, the probes are of {fingerprint}",
            remedy="Embed the probes with the live generation's model, or promote one of the probes' model.",
        )
    ensure_loaded(milvus, target)
    return target


def ensure_loaded(milvus: Milvus, generation: Generation) -> None:
    """Load a generation for searching if it is not: after a restart Milvus Lite has none loaded."""
    state = milvus.call("get_load_state", generation.name)["state"]
    if state.name != "Loaded":
        milvus.call("load_collection", generation.name, timeout=600)


def count(milvus: Milvus, generation: Generation) -> int:
    """Return count(*) of a loaded generation, with everything written before."""
    answer = milvus.call(
        "query",
        generation.name,
        filter="",
        output_fields=["count(*)"],
        consistency_level="Strong",
        timeout=60,
    )
    return int(answer[0]["count(*)"])


def previous(milvus: Milvus, store: Store, alias: str) -> Generation | None:
    """Return the generation that was live before the live one, if it is still on the server."""
    current = live(milvus, alias)
    entry = generation_ledger.read(store, current.name) if current else None
    if entry is None or entry.replaced is None or not milvus.call("has_collection", entry.replaced):
        return None
    return find(milvus, entry.replaced)


def drop(milvus: Milvus, store: Store, name: str, *, force: bool = False) -> None:
    """Drop a generation; the ledger remembers it. The live and the previous one only if forced.

    Raises BadInput if it is no generation, or one of those two.
    """
    doomed = find(milvus, name)
    # Asked of the collection itself: an alias of any name makes it live. Before 2.5.5 no server minds.
    aliases = list(milvus.call("list_aliases", name)["aliases"])
    before = previous(milvus, store, doomed.alias)
    if not force and (aliases or (before is not None and before.name == name)):
        role = f"live as {', '.join(aliases)}" if aliases else f"what a rollback of {doomed.alias} returns to"
        raise BadInput(f"{name} is {role}", remedy="Promote another one first, or force it.")
    for alias in aliases:
        milvus.call("drop_alias", alias)
    milvus.call("drop_collection", name, timeout=DROP_SECONDS)
    generation_ledger.update(store, name, state="dropped")


def _described(milvus: Milvus, name: str) -> Generation | None:
    said: dict[str, Any] = milvus.call("describe_collection", name)
    try:
        facts = json.loads(said.get("properties", {}).get(_FACTS) or said.get("description") or "")
        return Generation(
            name=said["collection_name"],
            alias=facts["alias"],
            fingerprint=facts["fingerprint"],
            schema_version=facts["schema_version"],
            run_ids=tuple(facts["run_ids"]),
            index=IndexSpec(facts["index"]["type"], facts["index"]["params"]),
            created=facts["created"],
        )
    except (ValueError, KeyError, TypeError):
        return None
