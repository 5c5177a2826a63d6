"""Register the backbone `tiny` in every Python process of an attack, also in the workers of Ray.

Python imports this module at its start, because the folder is in PYTHONPATH. A crop then costs milliseconds,
while checkpoints, fingerprints, engines and commands stay the real ones.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _Registration(MetaPathFinder):
    """Adds the backbone to the registry right after the registry was imported."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "clvr_model.backbones":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            from tiny_backbone import Tiny

            module.BACKBONES[Tiny.name] = Tiny

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Registration())
