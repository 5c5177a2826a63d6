"""What a command imports: torch, Ray and Milvus take seconds, and most commands need none of them."""

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from clvr_model.card import read_card
from clvr_model.embedder import Embedder
from clvr_model.engines import default_cache, openvino
from index.archive.manifest import crop_id_of
from index.generations.load import load_runs
from index.generations.promotion import promote
from index.milvus.client import connect
from infra.store import open_store

HEAVY = {"torch", "ray", "pymilvus", "pyarrow", "scipy", "numba", "pandas", "numpy", "openvino", "alembic"}
PROGRAM = """
import atexit, json, sys
path = sys.argv.pop(1)
atexit.register(lambda: json.dump(sorted(sys.modules), open(path, "w")))
from jobs.cli.main import main
main()
"""


def imported(
    tmp_path: Path, *arguments: str, of: Collection[str] = HEAVY
) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """Run `clvr` and return which modules of some it imported, and the finished process."""
    modules = tmp_path / "modules.json"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(modules), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return set(of) & set(json.loads(modules.read_text())), done


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--help", 0),
        ("--version", 0),
        ("train --help", 0),
        ("train nowhere --output model", 3),
        ("embed nowhere --checkpoint nothing", 3),
        ("search nothing.jpg", 3),
        ("sweep nowhere --output results --case-number 1", 3),
        ("evaluate unknown", 3),
        ("load unknown", 3),
        ("model show nothing", 3),
        ("--config wrong.yaml runs", 3),
        ("--config wrong.yaml forget --crop a", 3),
        ("--config wrong.yaml jobs list", 3),
    ],
)
def test_help_and_mistakes_import_nothing_heavy(tmp_path: Path, arguments: str, code: int) -> None:
    (tmp_path / "wrong.yaml").write_text("milvuss: http://localhost:19530")
    heavy, done = imported(tmp_path, *arguments.split())
    assert done.returncode == code, done.stderr
    assert heavy == set()


def test_the_list_of_commands_imports_no_package_but_typer(tmp_path: Path) -> None:
    heavy, done = imported(tmp_path, "--help", of={"rich", "pydantic", "importlib.metadata"})
    assert done.returncode == 0, done.stderr
    assert heavy == set()


@pytest.mark.parametrize(
    ("names", "package"),
    [
        # The roles `evaluate` and `serve` have no Ray.
        (("evaluate.calibrate", "evaluate.evaluate", "generations.load", "serve.server"), "ray"),
        # Ray starts a process for each of them; with a converted network, no embedding needs torch.
        (("embed.job", "embed.actor", "embed.monitor", "embed.new_run", "embed.finish"), "torch"),
        (("reindex.job", "generations.load"), "torch"),  # before a gate
    ],
)
def test_modules_do_without_a_package(tmp_path: Path, names: tuple[str, ...], package: str) -> None:
    modules = ", ".join(f"jobs.{name}" for name in names)
    program = f"import sys; import {modules}; sys.exit({package!r} in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0


def test_a_plan_without_a_checkpoint_needs_neither_torch_nor_ray(tmp_path: Path, archive: Path) -> None:
    heavy, done = imported(tmp_path, "plan", str(archive / "archive"))
    assert done.returncode == 0, done.stderr
    assert not heavy & {"torch", "ray", "pymilvus", "scipy", "numba"}


def test_a_search_needs_no_torch(
    tmp_path: Path, checkpoint: str, archive: Path, make_finished_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = open_store(str(tmp_path / "data"))
    runs.create_bucket()
    fingerprint = read_card(checkpoint).fingerprint
    run = make_finished_run(runs, "r1", range(60), model=checkpoint, fingerprint=fingerprint)
    milvus = connect(str(tmp_path / "milvus.db"))
    generation = load_runs(milvus, runs, [run], alias="vehicles")
    promote(milvus, runs, generation.name, force="test")
    milvus.close()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def searched(probe: str) -> set[str]:
        place = ("--runs", runs.uri, "--milvus", "milvus.db")
        heavy, done = imported(tmp_path, "search", probe, "--json", *place)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["answers"]
        return heavy & {"torch", "ray", "scipy", "numba", "openvino", "alembic"}

    # The first one makes the database of cases.
    assert searched(f"crop:{crop_id_of('s3://archive/000007.jpg')}") == {"alembic"}
    image = str(next(archive.rglob("*.jpg")))
    Embedder(checkpoint, device="cpu", cache=default_cache())
    assert searched(image) == ({"openvino"} if openvino() else {"torch"})
