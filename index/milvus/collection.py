"""Generations: one Milvus collection each, of runs of one fingerprint; an alias names the live one."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.milvus.client import Milvus
from index.milvus.index_types import IndexSpec
from index.runs.shards import vectors_of
from index.schema import EMBEDDING_DIM, MAX_BYTES, SHARD_SCHEMA
from infra.errors import BadInput, FingerprintMismatch, SchemaMismatch

DROP_SECONDS = 180.0
"""How long a drop may take: for a minute after a crash, 2.3.5 waits for the sessions of its dead self."""

_FACTS = "clvr.generation"
_LOAD_REMEDY = "Build one with `clvr load`, then make it live with `clvr promote`."


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


def create_collection(milvus: Milvus, generation: Generation) -> None:
    """Create the empty collection of a generation: the shards' columns exactly, `crop_id` as primary key."""
    from pymilvus import CollectionSchema, DataType, FieldSchema

    fields = [
        FieldSchema("embedding", DataType.FLOAT_VECTOR, dim=EMBEDDING_DIM)
        if column.name == "embedding"
        else _field(column)
        for column in SHARD_SCHEMA
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
    found = [_read_description(milvus, name) for name in milvus.call("list_collections")]
    ours = [one for one in found if one is not None and alias in (None, one.alias)]
    return sorted(ours, key=lambda one: (one.created, one.name))


def get_generation(milvus: Milvus, name: str) -> Generation:
    """Return the generation of this name. Raises BadInput if there is none, or if it is an alias."""
    found = _read_description(milvus, name) if milvus.call("has_collection", name) else None
    if found is None or found.name != name:
        raise BadInput(f"{name} is no generation at {milvus.uri}", remedy="`clvr status` lists them.")
    return found


def live_generation(milvus: Milvus, alias: str) -> Generation | None:
    """Return the generation that the alias points to. Raises SchemaMismatch if it points to anything else."""
    if not milvus.call("has_collection", alias):
        return None
    target = _read_description(milvus, alias)
    if target is None or target.name == alias:
        raise SchemaMismatch(
            f"{alias} at {milvus.uri} is a collection of another program, or names one",
            remedy="Choose another alias.",
        )
    return target


def require_live(milvus: Milvus, alias: str, fingerprint: str) -> Generation:
    """Return the live generation, loaded, if it holds embeddings of this model.

    Raises BadInput if nothing is live, FingerprintMismatch with both fingerprints.
    """
    target = live_generation(milvus, alias)
    if target is None:
        waiting = [one.name for one in list_generations(milvus, alias)]
        raise BadInput(
            f"alias {alias} at {milvus.uri} points to nothing"
            + (f"; {waiting[-1]} waits for promotion" if waiting else ", and nothing is indexed"),
            remedy=f"Run `clvr promote {waiting[-1]}`." if waiting else _LOAD_REMEDY,
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


def row_count(milvus: Milvus, generation: Generation) -> int:
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


def _field(column: pa.Field) -> Any:
    from pymilvus import DataType, FieldSchema

    types = {
        pa.int64(): DataType.INT64,
        pa.int32(): DataType.INT32,
        pa.float32(): DataType.FLOAT,
        pa.string(): DataType.VARCHAR,
    }
    limits = {"max_length": MAX_BYTES[column.name]} if column.type == pa.string() else {}
    return FieldSchema(column.name, types[column.type], is_primary=column.name == "crop_id", **limits)


def _read_description(milvus: Milvus, name: str) -> Generation | None:
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


INSERT_ROWS = 1000
"""4 MB of vectors; a request may have 64 MB, and larger batches were not faster."""

_IDS_PER_CALL = 5000


def insert_rows(
    milvus: Milvus, how: Literal["insert", "upsert"], name: str, batches: Iterable[pa.RecordBatch]
) -> Iterator[int]:
    """Send batches of at most INSERT_ROWS rows; yield the rows sent after each batch. Does not flush."""
    sent = 0
    for batch in batches:
        milvus.call(how, name, list(_as_rows(batch)), timeout=120)
        sent += batch.num_rows
        yield sent


def count_of(milvus: Milvus, name: str, crop_ids: NDArray[np.int64]) -> int:
    """Return how many of the crop_ids (n,) a loaded generation holds."""
    found = 0
    for filter_ in _filters(crop_ids):
        answer = milvus.call(
            "query",
            name,
            filter=filter_,
            output_fields=["count(*)"],
            consistency_level="Strong",
            timeout=60,
        )
        found += int(answer[0]["count(*)"])
    return found


def delete(milvus: Milvus, name: str, crop_ids: NDArray[np.int64]) -> None:
    """Delete the rows of the crop_ids (n,) and flush; ids that are not there are fine."""
    for filter_ in _filters(crop_ids):
        milvus.call("delete", name, filter=filter_, timeout=120)
    if crop_ids.size:
        milvus.call("flush", name, timeout=600)


def fetch_ids(milvus: Milvus, name: str, expression: str = "") -> NDArray[np.int64]:
    """Return the crop_ids (n,) of a loaded generation, ascending: all, or those that pass a filter."""
    pages = milvus.call(
        "query_iterator",
        name,
        batch_size=10_000,
        filter=expression,
        output_fields=["crop_id"],
        consistency_level="Strong",
        timeout=120,
    )
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    try:
        while page := pages.next():
            found.append(np.fromiter((row["crop_id"] for row in page), np.int64, len(page)))
    finally:
        pages.close()
    return np.sort(np.concatenate(found))


def _filters(crop_ids: Sequence[int] | NDArray[np.int64]) -> Iterator[str]:
    for first in range(0, len(crop_ids), _IDS_PER_CALL):
        yield f"crop_id in [{', '.join(str(int(one)) for one in crop_ids[first : first + _IDS_PER_CALL])}]"


def _as_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    names = [name for name in batch.schema.names if name != "embedding"]
    columns = [batch.column(name).to_pylist() for name in names]
    for values, vector in zip(zip(*columns, strict=True), vectors_of(batch), strict=True):
        yield {**dict(zip(names, values, strict=True)), "embedding": vector}
