"""The CLVR network and its recipe: torch only, no Ray, no object storage client, no Milvus.

The names below are the public API; `docs/python.md` shows them. They load on first use, because torch takes
seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clvr_model.checkpoint import Checkpoint, load_checkpoint
    from clvr_model.embedder import Embedder
    from clvr_model.embeddings import Embeddings
    from clvr_model.export import export_checkpoint
    from clvr_model.preprocessing import decode
    from clvr_model.recipe import Recipe, load_recipe

__all__ = [
    "Checkpoint",
    "Embedder",
    "Embeddings",
    "Recipe",
    "decode",
    "export_checkpoint",
    "load_checkpoint",
    "load_recipe",
]

_MODULES = {
    "Checkpoint": "checkpoint",
    "Embedder": "embedder",
    "Embeddings": "embeddings",
    "Recipe": "recipe",
    "decode": "preprocessing",
    "export_checkpoint": "export",
    "load_checkpoint": "checkpoint",
    "load_recipe": "recipe",
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
