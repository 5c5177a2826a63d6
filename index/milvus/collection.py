"""Generations as Milvus collections: created, described, counted, filled and read.

A generation is one collection of embeddings of one model. An alias points to the live one.
"""

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
from index.schema import EMBEDDING_DIM, MAX_BYTES, SHARD_SCHEMAS
from infra.errors import BadInput, FingerprintMismatch, SchemaMismatch

INSERT_ROWS = 1000
"""Rows per request: 4 MB of vectors. A request may have 64 MB, but larger batches were not faster."""

DROP_TIMEOUT_SECONDS = 180.0
"""Time limit of a drop: after a crash, 2.3.5 waits a minute for the sessions of its former process."""

_IDS_PER_FILTER = 5000
_IDS_PER_FETCH = 500  # 2 MB of vectors
_PROPERTY = "clvr.generation"
_LOAD_REMEDY = "Build one with `clvr load`, then make it live with `clvr promote`."


@dataclass(frozen=True, slots=True)
class Generation:
    """The immutable facts of a generation, stored in its collection. Its state is in generations.records."""

    name: str
    alias: str
    fingerprint: str
    schema_version: int
    """That of its shards, which decides its columns."""
    run_ids: tuple[str, ...]
    index: IndexSpec
    created: str
    folder: str = ""
    """URI of the folder of runs that has its record; "" by release 0.1."""
    transform: str = ""
    """Id of the transform of its vectors and of its probes; "" for features as the network gives them."""
    dimension: int = EMBEDDING_DIM
    """The length of its vectors."""


def create_collection(milvus: Milvus, generation: Generation) -> None:
    """Create the empty collection of a generation: the columns of a shard, `crop_id` as primary key."""
    from pymilvus import CollectionSchema, DataType, FieldSchema

    fields = [
        FieldSchema("embedding", DataType.FLOAT_VECTOR, dim=generation.dimension)
        if column.name == "embedding"
        else _field(column)
        for column in SHARD_SCHEMAS[generation.schema_version]
    ]
    description = json.dumps(
        {
            "alias": generation.alias,
            "fingerprint": generation.fingerprint,
            "schema_version": generation.schema_version,
            "run_ids": generation.run_ids,
            "index": {"type": generation.index.type, "params": generation.index.params},
            "created": generation.created,
            "folder": generation.folder,
        }
        | (
            {"transform": generation.transform, "dimension": generation.dimension}
            if generation.transform
            else {}
        )
    )
    # Milvus Lite drops the description, and some server versions drop unknown properties.
    lite = milvus.capabilities.lite
    schema = CollectionSchema(
        fields, description="" if lite else description, auto_id=False, enable_dynamic_field=False
    )
    properties = {_PROPERTY: description} if lite else {}
    milvus.call("create_collection", generation.name, schema=schema, properties=properties)


def create_index(milvus: Milvus, generation: Generation) -> None:
    """Start to build the vector index, metric L2. Milvus Lite returns when it is built, a server at once."""
    from pymilvus import MilvusClient

    spec = generation.index
    # pymilvus sends the parameters one by one; Milvus Lite reads only those inside `params`.
    params: dict[str, Any] = {"params": spec.params} if milvus.capabilities.lite else dict(spec.params)
    index_params = MilvusClient.prepare_index_params()
    index_params.add_index("embedding", index_type=spec.type, metric_type="L2", params=params)
    milvus.call("create_index", generation.name, index_params, sync=False, timeout=3600)


def list_generations(milvus: Milvus, alias: str | None = None) -> list[Generation]:
    """Return the generations on the server, oldest first; collections of other programs are left out."""
    collections = [_read_description(milvus, name) for name in milvus.call("list_collections")]
    generations = [item for item in collections if item is not None and alias in (None, item.alias)]
    return sorted(generations, key=lambda generation: (generation.created, generation.name))


def get_generation(milvus: Milvus, name: str) -> Generation:
    """Return the generation of this name. Raises BadInput if it does not exist or is an alias."""
    generation = _read_description(milvus, name) if milvus.call("has_collection", name) else None
    if generation is None or generation.name != name:
        raise BadInput(f"{name} is no generation at {milvus.uri}", remedy="List them: `clvr generations`.")
    return generation


def live_generation(milvus: Milvus, alias: str) -> Generation | None:
    """Return the generation that the alias points to. Raises SchemaMismatch if it points to anything else."""
    if not milvus.call("has_collection", alias):
        return None
    target = _read_description(milvus, alias)
    if target is None or target.name == alias:
        raise SchemaMismatch(
            f"{alias} at {milvus.uri} is, or points to, a collection of another program",
            remedy="Choose another alias.",
        )
    return target


def require_live(milvus: Milvus, alias: str, fingerprint: str) -> Generation:
    """Return the live generation, loaded, with embeddings of the model of `fingerprint`.

    Raises BadInput if no generation is live, FingerprintMismatch with both fingerprints.
    """
    target = live_generation(milvus, alias)
    if target is None:
        candidates = [generation.name for generation in list_generations(milvus, alias)]
        raise BadInput(
            f"alias {alias} at {milvus.uri} points to nothing"
            + (f"; {candidates[-1]} waits for promotion" if candidates else ", and nothing is indexed"),
            remedy=f"Run `clvr promote {candidates[-1]}`." if candidates else _LOAD_REMEDY,
        )
    if target.fingerprint != fingerprint:
        raise FingerprintMismatch(
            f"{target.name} holds embeddings of model {target.fingerprint}, the probes are of {fingerprint}",
            remedy="Embed the probes with the model of the live generation, or promote one of their model.",
        )
    ensure_loaded(milvus, target)
    return target


def ensure_loaded(milvus: Milvus, generation: Generation) -> None:
    """Load a generation for searching unless it is loaded: after a restart Milvus Lite has none loaded."""
    state = milvus.call("get_load_state", generation.name)["state"]
    if state.name != "Loaded":
        milvus.call("load_collection", generation.name, timeout=600)


def row_count(milvus: Milvus, generation: Generation) -> int:
    """Return count(*) of a loaded generation, including all earlier writes."""
    result = milvus.call(
        "query",
        generation.name,
        filter="",
        output_fields=["count(*)"],
        consistency_level="Strong",
        timeout=60,
    )
    return int(result[0]["count(*)"])


def insert_rows(
    milvus: Milvus,
    method: Literal["insert", "upsert"],
    generation: Generation,
    batches: Iterable[pa.RecordBatch],
) -> Iterator[int]:
    """Send batches of at most INSERT_ROWS rows; yield the rows sent after each batch. Does not flush.

    batches: with vectors of the generation's dimension. Raises CorruptObject for others.
    """
    sent = 0
    for batch in batches:
        milvus.call(method, generation.name, list(_as_rows(batch, generation.dimension)), timeout=120)
        sent += batch.num_rows
        yield sent


def delete(milvus: Milvus, name: str, crop_ids: NDArray[np.int64]) -> None:
    """Delete the rows of the crop_ids (n,) and flush; unknown ids are ignored."""
    for filter_ in _id_filters(crop_ids, _IDS_PER_FILTER):
        milvus.call("delete", name, filter=filter_, timeout=120)
    if crop_ids.size:
        milvus.call("flush", name, timeout=600)


def count_of(milvus: Milvus, name: str, crop_ids: NDArray[np.int64]) -> int:
    """Return how many of the crop_ids (n,) are in a loaded generation."""
    count = 0
    for filter_ in _id_filters(crop_ids, _IDS_PER_FILTER):
        result = milvus.call(
            "query",
            name,
            filter=filter_,
            output_fields=["count(*)"],
            consistency_level="Strong",
            timeout=60,
        )
        count += int(result[0]["count(*)"])
    return count


def present_ids(milvus: Milvus, name: str, crop_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return those of the crop_ids (n,) that are in a loaded generation, ascending."""
    rows = fetch_rows(milvus, name, crop_ids.tolist(), ["crop_id"], consistency_level="Strong")
    return np.unique(np.fromiter((row["crop_id"] for row in rows), np.int64))


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
    crop_ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    try:
        while page := pages.next():
            crop_ids.append(np.fromiter((row["crop_id"] for row in page), np.int64, len(page)))
    finally:
        pages.close()
    return np.sort(np.concatenate(crop_ids))


def fetch_rows(
    milvus: Milvus, name: str, crop_ids: Sequence[int], columns: Sequence[str], **options: Any
) -> Iterator[dict[str, Any]]:
    """Yield columns of the rows of a loaded generation with these crop_ids, in no particular order.

    options: further arguments of pymilvus' `query`, such as consistency_level.
    """
    for filter_ in _id_filters(crop_ids, _IDS_PER_FETCH):
        yield from milvus.call(
            "query", name, filter=filter_, output_fields=list(columns), timeout=60, **options
        )


def _read_description(milvus: Milvus, name: str) -> Generation | None:
    document: dict[str, Any] = milvus.call("describe_collection", name)
    try:
        text = document.get("properties", {}).get(_PROPERTY) or document.get("description") or ""
        fields = json.loads(text)
        return Generation(
            name=document["collection_name"],
            alias=fields["alias"],
            fingerprint=fields["fingerprint"],
            schema_version=fields["schema_version"],
            run_ids=tuple(fields["run_ids"]),
            index=IndexSpec(fields["index"]["type"], fields["index"]["params"]),
            created=fields["created"],
            folder=fields.get("folder", ""),
            transform=fields.get("transform", ""),
            dimension=fields.get("dimension", EMBEDDING_DIM),
        )
    except (ValueError, KeyError, TypeError):
        return None


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


def _id_filters(crop_ids: Sequence[int] | NDArray[np.int64], size: int) -> Iterator[str]:
    for first in range(0, len(crop_ids), size):
        yield f"crop_id in [{', '.join(str(int(crop_id)) for crop_id in crop_ids[first : first + size])}]"


def _as_rows(batch: pa.RecordBatch, dimension: int) -> Iterator[dict[str, Any]]:
    names = [name for name in batch.schema.names if name != "embedding"]
    columns = [batch.column(name).to_pylist() for name in names]
    for values, vector in zip(zip(*columns, strict=True), vectors_of(batch, dimension), strict=True):
        yield {**dict(zip(names, values, strict=True)), "embedding": vector}
