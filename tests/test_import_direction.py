"""Imports point one way: jobs -> index, clvr_model -> the store interface of infra; nothing points back."""

import ast
from graphlib import CycleError, TopologicalSorter
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
    "infra": set(),  # its Ray cluster code may use ray
    "clvr_model": {"ray", "typer", "boto3", "pymilvus", "jinja2"},
    "index": {"ray", "typer", "boto3", "jinja2"},
    "jobs": set(),
}
# Which of its siblings a package of index or jobs may import. A module at the top is its own package.
SIBLINGS = {
    "index": {
        "documents": set(),
        "schema": set(),
        "times": {"schema"},
        "filters": set(),
        "digests": set(),
        "parquet": {"digests", "documents", "schema"},
        "lock": {"documents"},
        "outputs": {"documents", "runs"},
        "embeddings": {"generations", "runs"},
        "archive": {"digests", "documents", "parquet", "schema"},
        "runs": {"archive", "documents", "parquet", "schema"},
        "catalogue": {"archive", "documents", "lock", "parquet", "runs", "schema"},
        "transforms": {"documents", "parquet", "runs"},
        "drift": {"exact", "parquet", "runs", "schema"},
        "exact": set(),
        "milvus": {"filters", "runs", "schema"},
        "generations": {
            "archive",
            "catalogue",
            "documents",
            "exact",
            "filters",
            "lock",
            "milvus",
            "parquet",
            "runs",
            "schema",
            "times",
            "transforms",
        },
        "evaluation": {"exact", "milvus", "parquet", "schema"},
        "search": {
            "archive",
            "documents",
            "exact",
            "filters",
            "generations",
            "milvus",
            "parquet",
            "runs",
            "schema",
            "transforms",
        },
    },
    "jobs": {
        "runtime": set(),
        "pages": {"runtime"},
        "embed": {"runtime"},
        "runs": {"runtime"},
        "train": {"pages", "runtime"},
        "search": {"pages", "runtime"},
        "sweep": {"pages", "runtime", "search"},
        "cases": {"pages", "runtime", "search"},
        "serve": {"cases", "pages", "runtime", "search"},
        "evaluate": {"embed", "pages", "runtime"},
        "generations": {"cases", "runtime", "sweep"},
        "compare_models": {"embed", "evaluate", "pages", "runtime"},
        "fit_transform": {"runtime"},
        "drift": {"runtime"},
        "reproduce": {"embed", "evaluate", "pages", "runtime", "train"},
        "reindex": {"cases", "drift", "embed", "generations", "pages", "runtime"},
        "doctor": {"runtime"},
        "submit": {"runtime"},
        "generate": {"runtime"},
        "pack": {"runtime"},
        "model": {"runtime"},
        "stack": {"runtime"},
        "demo": {
            "embed",
            "evaluate",
            "generate",
            "generations",
            "model",
            "pages",
            "runtime",
            "search",
            "train",
        },
        "cli": {
            "cases",
            "compare_models",
            "demo",
            "doctor",
            "drift",
            "embed",
            "evaluate",
            "fit_transform",
            "generate",
            "generations",
            "model",
            "pack",
            "reindex",
            "reproduce",
            "runs",
            "runtime",
            "search",
            "serve",
            "stack",
            "submit",
            "sweep",
            "train",
        },
        "__main__": {"cli"},
    },
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ALLOWED
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imported_by(path: Path) -> set[str]:
    """The full names that a file imports; imports inside functions count."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative imports hide the direction"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= full if node.module.split(".")[0] in OURS else {node.module}
    return names


def module_of(name: str) -> str:
    """The module that a full name belongs to: itself, or the one that defines it."""
    return name if name in MODULES else name.rpartition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_packages_below_its_own(module: str) -> None:
    package = module.split(".")[0]
    for name in imported_by(MODULES[module]):
        top = name.split(".")[0]
        assert top not in FORBIDDEN[package], f"{module} must not import {name}"
        if top in OURS:
            allowed = any(name == rule or name.startswith(rule + ".") for rule in ALLOWED[package])
            assert allowed, f"{module} must not import {name}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] in SIBLINGS])
def test_a_module_of_index_or_jobs_imports_only_the_siblings_that_its_package_may(module: str) -> None:
    top, *rest = module.split(".")
    for name in imported_by(MODULES[module]):
        if not rest or name.split(".")[0] != top:
            continue
        sibling = name.split(".")[1]
        assert sibling == rest[0] or sibling in SIBLINGS[top][rest[0]], f"{module} must not import {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module: {module_of(name) for name in imported_by(path) if name.split(".")[0] in OURS} - {module}
        for module, path in MODULES.items()
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("top", SIBLINGS)
def test_every_package_has_its_place_in_the_order(top: str) -> None:
    packages = {module.split(".")[1] for module in MODULES if module.startswith(f"{top}.")}
    assert packages <= SIBLINGS[top].keys()
