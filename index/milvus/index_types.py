"""Index types: the server versions that may use them, and their build and search parameters."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from index.schema import EMBEDDING_DIM
from infra.errors import IndexRefused

ImportInterface = Literal["stream_insert", "grpc_v1", "rest_v2"]

MAX_TOP = 16_384
"""Maximum number of hits that Milvus returns for one probe."""

GRAPH_ROWS = 5_000_000
"""Up to this many rows 'auto' chooses HNSW: 22 GB of memory at 4.3 KB per row; IVF_SQ8 needs a quarter."""

LITE_GRAPH_ROWS = 20_000
"""The same for a local file: above it, HNSW takes minutes to build, and IVF_FLAT has the same recall."""


@dataclass(frozen=True, slots=True)
class IndexType:
    """One type of vector index: where it is allowed, and its parameters for building and searching.

    since: first server version that may use it. lite: whether Milvus Lite may use it too.
    build: rows -> build parameters. search: (build parameters, top) -> search parameters.
    """

    name: str
    since: tuple[int, int, int]
    lite: bool
    build: Callable[[int], dict[str, int]]
    search: Callable[[dict[str, int], int], dict[str, int]]


def _nlist(rows: int) -> dict[str, int]:
    # About the square root of the number of rows, as a power of two.
    return {"nlist": min(65_536, max(16, 2 ** round(max(rows, 1).bit_length() / 2)))}


def _nprobe(built: dict[str, int], top: int) -> dict[str, int]:
    # A fixed nprobe has full recall at k=20 and loses half of it at k=100: on 20,000 vectors in groups of
    # 20, recall@100 is .62 with 16 of 256 lists and .999 with 128.
    nlist = built["nlist"]
    return {"nprobe": min(nlist, max(16, nlist // 16, math.ceil(1.28 * top)))}


def _ef(built: dict[str, int], top: int) -> dict[str, int]:
    # As for nprobe: recall@100 is .92 with ef 128 and .998 with ef 800.
    return {"ef": min(32_768, max(128, 8 * top))}


def _no_build(rows: int) -> dict[str, int]:
    return {}


def _no_search(built: dict[str, int], top: int) -> dict[str, int]:
    return {}


# An allow-list, because a server accepts types that it cannot build: 2.3.5 takes DISKANN and the GPU types
# and then hangs, and FLAT on Milvus Lite allocates probes x rows x 4 KiB. Tested on milvus-lite 3.2.2 and
# Milvus 2.3.5; later versions follow their documentation.
INDEX_TYPES = {
    index_type.name: index_type
    for index_type in (
        IndexType("FLAT", (2, 3, 0), False, _no_build, _no_search),
        IndexType("HNSW", (2, 3, 0), True, lambda rows: {"M": 16, "efConstruction": 200}, _ef),
        IndexType("IVF_FLAT", (2, 3, 0), True, _nlist, _nprobe),
        IndexType("IVF_SQ8", (2, 3, 0), True, _nlist, _nprobe),
        IndexType("IVF_PQ", (2, 3, 0), False, lambda rows: _nlist(rows) | {"m": 64, "nbits": 8}, _nprobe),
        IndexType("SCANN", (2, 5, 0), False, _nlist, _nprobe),
        IndexType("DISKANN", (2, 5, 0), False, _no_build, lambda _, top: {"search_list": max(100, 2 * top)}),
        IndexType("IVF_RABITQ", (2, 6, 0), False, _nlist, _nprobe),
    )
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The index types, the import interface and the batch size of one version of Milvus."""

    version: str
    version_tuple: tuple[int, int, int]
    lite: bool
    index_types: frozenset[str]
    import_interface: ImportInterface
    probes_per_call: int


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """The vector index of a generation: its type and build parameters."""

    type: str
    params: dict[str, int]


def capabilities_of(version: str, *, lite: bool) -> Capabilities:
    """Return the capabilities of a version of Milvus, or of Milvus Lite."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    version_tuple = (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)
    if lite:
        allowed = frozenset(name for name, index_type in INDEX_TYPES.items() if index_type.lite)
        return Capabilities(
            version=version,
            version_tuple=version_tuple,
            lite=True,
            index_types=allowed,
            import_interface="stream_insert",
            probes_per_call=1000,
        )
    # `connect` refuses servers that are older than every entry of the table.
    oldest = min(index_type.since for index_type in INDEX_TYPES.values())
    allowed = frozenset(
        name for name, index_type in INDEX_TYPES.items() if index_type.since <= max(version_tuple, oldest)
    )
    interface: ImportInterface = "stream_insert"
    if version_tuple[:2] == (2, 3):
        interface = "grpc_v1"
    elif version_tuple >= (2, 4, 0):
        interface = "rest_v2"
    return Capabilities(
        version=version,
        version_tuple=version_tuple,
        lite=False,
        index_types=allowed,
        import_interface=interface,
        probes_per_call=4096,
    )


def index_spec(capabilities: Capabilities, name: str, rows: int, dimension: int = EMBEDDING_DIM) -> IndexSpec:
    """Return the index of `rows` vectors of a dimension; 'auto' chooses the type by rows and server.

    Raises IndexRefused for a type that this server may not use.
    """
    index_type = _automatic(capabilities, rows) if name == "auto" else name.upper()
    if index_type not in capabilities.index_types:
        raise IndexRefused(
            f"index type {index_type} is not allowed on Milvus {capabilities.version}",
            remedy=f"Choose one of {', '.join(sorted(capabilities.index_types))}.",
        )
    params = INDEX_TYPES[index_type].build(rows)
    if index_type == "IVF_PQ":  # the parts of a vector are of one length
        params["m"] = max(part for part in range(1, params["m"] + 1) if dimension % part == 0)
    return IndexSpec(index_type, params)


def search_params(index: IndexSpec, top: int) -> dict[str, int]:
    """Return the search parameters for full recall of the nearest `top` crops of a probe."""
    return INDEX_TYPES[index.type].search(index.params, top)


def _automatic(capabilities: Capabilities, rows: int) -> str:
    if capabilities.lite:
        return "HNSW" if rows < LITE_GRAPH_ROWS else "IVF_FLAT"
    return "HNSW" if rows <= GRAPH_ROWS else "IVF_SQ8"
