"""What is stored and searched: manifests, shards, runs, generations, exact search, CMC. No Ray.

The names below are the public API; `docs/python.md` shows them. They load on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from index.embeddings import list_runs, open_run, read_embeddings, to_table
    from index.evaluation.cmc import Cmc, LabeledFeatures, cmc
    from index.evaluation.protocols import ProtocolResult, evaluate_protocol
    from index.exact.knn import nearest
    from index.filters import Filters
    from index.milvus.search import Hit
    from index.runs.run import Run
    from index.runs.shards import vectors_of
    from index.search.live_index import Index

__all__ = [
    "Cmc",
    "Filters",
    "Hit",
    "Index",
    "LabeledFeatures",
    "ProtocolResult",
    "Run",
    "cmc",
    "evaluate_protocol",
    "list_runs",
    "nearest",
    "open_run",
    "read_embeddings",
    "to_table",
    "vectors_of",
]

_MODULES = {
    "Cmc": "evaluation.cmc",
    "Filters": "filters",
    "Hit": "milvus.search",
    "Index": "search.live_index",
    "LabeledFeatures": "evaluation.cmc",
    "ProtocolResult": "evaluation.protocols",
    "Run": "runs.run",
    "cmc": "evaluation.cmc",
    "evaluate_protocol": "evaluation.protocols",
    "list_runs": "embeddings",
    "nearest": "exact.knn",
    "open_run": "embeddings",
    "read_embeddings": "embeddings",
    "to_table": "embeddings",
    "vectors_of": "runs.shards",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("clvr-archive")
    except PackageNotFoundError:  # the sources were shipped to a cluster without being installed
        return "unknown"
