"""An erasure waits for a running load, by the lock on rows and by a local index that is open elsewhere."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from index.generations.load import load_runs
from index.generations.promotion import promote
from index.milvus.client import connect
from index.runs.run import Run
from infra.errors import Locked
from infra.settings import Settings
from infra.store import Store
from jobs.generations.erase import ForgetRequest, forget_crops, retain_days

LOAD = """
import sys, time
from index.lock import acquire
from index.milvus.client import connect
from infra.store import open_store
with connect(sys.argv[2]), acquire(open_store(sys.argv[1]), "rows", "a load of alias vehicles"):
    print("held", flush=True)
    sys.stdin.readline()
    time.sleep(float(sys.argv[3]))
"""


def begun_load(settings: Settings, seconds: float) -> subprocess.Popen[str]:
    """Start a load that ends some seconds after a line on its input."""
    command = [sys.executable, "-c", LOAD, settings.runs, settings.milvus, str(seconds)]
    load = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert load.stdout is not None
    assert load.stdout.readline() == "held\n"
    return load


def let_end(load: subprocess.Popen[str]) -> None:
    assert load.stdin is not None
    load.stdin.write("\n")
    load.stdin.flush()


@pytest.fixture
def settings(store: Store, tmp_path: Path, make_finished_run: Callable[..., Run]) -> Settings:
    settings = Settings(runs=store.uri, milvus=str(tmp_path / "index.db"))
    run = make_finished_run(store, "r1", range(20), captured_at=[1_577_836_800_000 + n for n in range(20)])
    with connect(settings.milvus) as milvus:
        promote(milvus, store, load_runs(milvus, store, [run], alias="vehicles").name, force="test")
    return settings


@pytest.mark.timeout(200)
def test_an_erasure_waits_for_a_running_load(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    request = ForgetRequest("test", crops=("s3://archive/000003.jpg",), dry_run=False)
    with begun_load(settings, 2.5) as load:
        with pytest.raises(Locked):
            forget_crops(request, settings)
        with pytest.raises(Locked):
            retain_days(1, [], settings, dry_run=False)
        let_end(load)
        receipt = forget_crops(
            ForgetRequest("test", crops=request.crops, dry_run=False, wait=120.0), settings
        )
    assert (receipt.state, receipt.crops) == ("done", 1)
    assert capsys.readouterr().err.count("waiting up to") == 1
    with begun_load(settings, 0.0) as load:
        let_end(load)
        assert retain_days(1, [], settings, dry_run=False, wait=120.0).state == "done"
