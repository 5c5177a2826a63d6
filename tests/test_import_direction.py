"""Imports point one way: jobs -> index, clvr_model -> the store interface of infra; nothing points back."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"jobs", "index", "clvr_model", "infra"}
# What each package may import of ours, and which third parties would break its independence.
ALLOWED = {
    "infra": {"infra"},
    "clvr_model": {"clvr_model", "infra.errors", "infra.store"},
    "index": {"index", "infra.errors", "infra.store"},
    "jobs": {"jobs", "index", "clvr_model", "infra"},
}
FORBIDDEN = {
    "infra": set(),  # its Ray cluster helpers may use ray
    "clvr_model": {"ray", "typer", "boto3", "pymilvus"},
    "index": {"ray", "typer", "boto3"},
    "jobs": set(),
}
MODULES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imported_by(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names |= (
                {node.module} if node.module not in OURS else {f"{node.module}.{a.name}" for a in node.names}
            )
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name in imported_by(path):
        top = name.split(".")[0]
        assert top not in FORBIDDEN[package], f"{path} must not import {name}"
        if top in OURS:
            allowed = any(name == rule or name.startswith(rule + ".") for rule in ALLOWED[package])
            assert allowed, f"{path} must not import {name}"


def test_every_package_is_looked_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == OURS
