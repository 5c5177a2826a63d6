"""A rollback and a retirement, killed before each of their writes, are completed by the same command."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from index.generations import records
from index.generations.load import load_runs
from index.generations.promotion import promote, retire, rollback
from index.milvus import collection
from index.milvus.client import Milvus, connect
from index.runs.run import Run
from infra.store import Store

KILLED = """
import os, signal, sys
from index.milvus.client import Milvus
from infra.store import Store

left = int(sys.argv.pop(1))

def kill_before(kind, name, is_write):
    call = getattr(kind, name)
    def counted(self, *args, **named):
        global left
        if is_write(args):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return call(self, *args, **named)
    setattr(kind, name, counted)

for name in ("put", "create", "replace", "delete"):
    kill_before(Store, name, lambda args: True)
kill_before(Milvus, "call", lambda args: args[0] in ("drop_collection", "alter_alias", "create_alias"))
from jobs.cli.app import main
main()
"""

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def run(store: Store, make_finished_run: Callable[..., Run]) -> Run:
    return make_finished_run(store, "r1", range(20))


def killed_before(write: int, folder: Path, store: Store, *words: str) -> bool:
    """Run a command that is killed before this write; return False if it ends before."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CLVR_", "AWS_"))}
    ours = {"CLVR_RUNS": store.uri, "CLVR_MILVUS": str(folder / "index.db"), "CLVR_ALIAS": "clvr"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(write), *words],
        env=clean | ours,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def writes(limit: int = 30) -> Iterator[int]:
    yield from range(limit)
    pytest.fail(f"the command has more than {limit} writes")


def loaded(milvus: Milvus, store: Store, run: Run) -> collection.Generation:
    return load_runs(milvus, store, [run], alias="clvr")


@pytest.mark.timeout(600)
def test_a_killed_rollback_is_completed_and_never_undone(tmp_path: Path, store: Store, run: Run) -> None:
    with connect(str(tmp_path / "index.db")) as milvus:
        first, second = (loaded(milvus, store, run) for _ in range(2))
        promote(milvus, store, first.name, force="test")
    for write in writes():
        with connect(str(tmp_path / "index.db")) as milvus:
            promote(milvus, store, second.name, force="test")
        if not killed_before(write, tmp_path, store, "rollback"):
            break
        with connect(str(tmp_path / "index.db")) as milvus:
            for _ in range(2):
                assert rollback(milvus, store, "clvr").generation == first
                assert collection.live_generation(milvus, "clvr") == first
            assert records.previous(milvus, store, "clvr") == second
    assert write >= 4  # lock, record, alias, release


@pytest.mark.timeout(600)
def test_a_killed_retirement_is_completed_by_the_next(tmp_path: Path, store: Store, run: Run) -> None:
    with connect(str(tmp_path / "index.db")) as milvus:
        live = loaded(milvus, store, run)
        promote(milvus, store, live.name, force="test")
    for write in writes():
        with connect(str(tmp_path / "index.db")) as milvus:
            old, newest = (loaded(milvus, store, run) for _ in range(2))
        if not killed_before(write, tmp_path, store, "retire", "--keep", "1"):
            break
        with connect(str(tmp_path / "index.db")) as milvus:
            retire(milvus, store, "clvr", keep=1)
            states = {record.name: record.state for record in records.list_records(store, "clvr")}
            assert (states.pop(live.name), states.pop(newest.name)) == ("ready", "ready")
            assert states.pop(old.name) == "dropped"
            assert set(states.values()) <= {"dropped"}
            assert collection.list_generations(milvus, "clvr") == [live, newest]
    assert write >= 6  # two locks, drop, record, two releases
