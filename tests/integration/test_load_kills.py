"""A load or its server is killed with SIGKILL, and the same command completes the load."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from json_documents import read_document

from index.generations import records
from index.milvus.client import connect
from index.runs.run import Run
from infra.servers import MilvusServer, SeaweedFs
from infra.store import Store, open_store

ROWS = 6000  # on the server
SHARDS = 6
FEW = 2000  # on the laptop
IMPORT_SECONDS = 2.5  # of one shard, about
PRINT = "c0ffee00" * 8
MakeRun = Callable[[Store, str, int, int, int], Run]
DAY_MS = 86_400_000
NOW_MS = int(time.time() * 1000)


@pytest.fixture
def finished_run(make_finished_run: Callable[..., Run]) -> MakeRun:
    """Make a run of ten images per vehicle, captured ten days apart by four cameras."""

    def make(store: Store, run_id: str, first: int, rows: int, shards: int) -> Run:
        numbers = range(first, first + rows)
        return make_finished_run(
            store,
            run_id,
            numbers,
            fingerprint=PRINT,
            rows_per_shard=rows // shards,
            camera_id=[f"cam-{number % 4}" for number in numbers],
            captured_at=[NOW_MS - number % 10 * 10 * DAY_MS - 1 for number in numbers],
            vehicle_id=[number // 10 for number in numbers],
        )

    return make


@dataclass
class User:
    """A user at a terminal; `store` has the runs."""

    store: Store
    environment: dict[str, str]

    def starts(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", "from jobs.cli.app import main; main()", *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def runs(self, *words: str, expect: int = 0) -> str:
        with self.starts(*words) as command:
            out, err = command.communicate(timeout=280)
        assert command.returncode == expect, f"{words}: {command.returncode}\n{out}\n{err}"
        return out if expect == 0 else err

    def json(self, *words: str) -> Any:
        return read_document(words, self.runs(*words, "--json"))

    def receipts(self) -> list[dict[str, Any]]:
        keys = [info.key for info in self.store.list("erasures") if info.key.endswith("receipt.json")]
        return [json.loads(self.store.get(key)) for key in sorted(keys)]

    def states(self) -> list[str]:
        return sorted(entry.state for entry in records.list_records(self.store))


def user(store: Store, milvus: str, more: dict[str, str]) -> User:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CLVR_", "AWS_"))}
    return User(store, clean | {"CLVR_RUNS": store.uri, "CLVR_MILVUS": milvus, "CLVR_ALIAS": "cars"} | more)


def server_user(server: MilvusServer, seaweedfs: SeaweedFs) -> User:
    """Return a user whose runs are in the bucket of the server."""
    store = open_store(f"s3://{server.bucket}/runs-{secrets.token_hex(3)}", seaweedfs.settings)
    token = {"CLVR_MILVUS_TOKEN": server.token} if server.token else {}
    bucket = {"CLVR_MILVUS_BUCKET": f"s3://{server.bucket}"}
    return user(store, server.uri, seaweedfs.environment | bucket | token)


def kill_in_the_middle(
    operator: User, command: list[str], victim: Callable[[int], None], *, wait: Callable[[], object]
) -> int:
    """Start a command, call `victim` with its process id when rows are coming in and `wait` has returned.

    Returns the command's exit status.
    """
    with operator.starts(*command) as loader:
        deadline = time.monotonic() + 120
        while operator.states() != ["loading"] and time.monotonic() < deadline:
            assert loader.poll() is None, loader.communicate()
            time.sleep(0.1)
        wait()
        assert loader.poll() is None, "too late: the load has ended"
        victim(loader.pid)
        loader.communicate(timeout=200)
        return loader.returncode


def an_import() -> None:
    time.sleep(IMPORT_SECONDS)


def check_complete(operator: User, rows: int) -> None:
    verified = operator.json("verify", "latest")
    assert (verified["indexed"], verified["expected"], verified["repeated"]) == (rows, rows, 0)
    assert (verified["missing_count"], verified["foreign_count"]) == (0, 0)


def sigkill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(500)
def test_a_load_killed_during_an_import_is_rebuilt_by_the_same_command(
    milvus_server: MilvusServer, seaweedfs: SeaweedFs, finished_run: MakeRun
) -> None:
    operator = server_user(milvus_server, seaweedfs)
    finished_run(operator.store, "r1", 0, ROWS, SHARDS)
    command = ["load", "r1", "--target", "grpc_v1", "--index-type", "IVF_FLAT"]
    assert kill_in_the_middle(operator, command, sigkill, wait=an_import) == -signal.SIGKILL
    assert operator.states() == ["loading"]

    loaded = operator.json(*command)

    assert loaded["rows"] == ROWS
    assert loaded["target"] == "grpc_v1"
    assert operator.states() == ["dropped", "ready"]
    check_complete(operator, ROWS)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_load_killed_after_its_last_import_is_finished_by_the_same_command(
    milvus_server: MilvusServer, seaweedfs: SeaweedFs, finished_run: MakeRun
) -> None:
    operator = server_user(milvus_server, seaweedfs)
    finished_run(operator.store, "r1", 0, 2000, 2)
    command = ["load", "r1", "--target", "grpc_v1", "--index-type", "IVF_FLAT"]

    def both_completed() -> None:
        with connect(milvus_server.uri, milvus_server.token) as milvus:
            while True:
                (entry,) = records.list_records(operator.store)
                states = [one.state_name for one in milvus.bulk_inserts(entry.name)]
                if states == ["Completed", "Completed"]:
                    return
                time.sleep(0.05)

    assert kill_in_the_middle(operator, command, sigkill, wait=both_completed) == -signal.SIGKILL
    (half,) = records.list_records(operator.store)
    assert half.state == "loading"

    loaded = operator.json(*command)

    assert loaded["generation"]["name"] == half.name
    assert (loaded["rows"], loaded["seconds"]["fill"]) == (2000, 0.0)
    assert operator.states() == ["ready"]
    check_complete(operator, 2000)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_load_whose_server_was_killed_is_rebuilt_by_the_same_command(
    server_folder: Path, seaweedfs: SeaweedFs, finished_run: MakeRun
) -> None:
    name = f"killed-{secrets.token_hex(4)}"
    with MilvusServer.start(server_folder / name, storage=seaweedfs, bucket=name) as server:
        operator = server_user(server, seaweedfs)
        finished_run(operator.store, "r1", 0, ROWS, SHARDS)
        command = ["load", "r1", "--target", "grpc_v1", "--index-type", "IVF_FLAT"]
        assert kill_in_the_middle(operator, command, lambda _: server.kill(), wait=an_import) == 5
        assert "Start Milvus" in operator.runs(*command, expect=5)
        server.restart()

        assert operator.json(*command)["rows"] == ROWS

        assert operator.states() == ["dropped", "ready"]
        check_complete(operator, ROWS)


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[User]:
    (tmp_path / "runs").mkdir()
    yield user(open_store(str(tmp_path / "runs")), str(tmp_path / "milvus.db"), {})


@pytest.mark.timeout(500)
def test_a_killed_load_into_milvus_lite_is_rebuilt_and_a_second_load_at_once_is_refused(
    laptop: User, finished_run: MakeRun
) -> None:
    finished_run(laptop.store, "run1", 0, FEW, 3)
    # At once: a moment later all rows may be in, and such a load would be finished instead of dropped.
    assert kill_in_the_middle(laptop, ["load", "run1"], sigkill, wait=lambda: None) == -signal.SIGKILL

    with laptop.starts("load", "run1") as first:
        while laptop.states() != ["dropped", "loading"]:
            assert first.poll() is None, first.communicate()
            time.sleep(0.1)
        first.send_signal(signal.SIGSTOP)  # it must not end before the second one has come
        refusal = laptop.runs("load", "run1", expect=10)
        assert "error: " in refusal
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=240)
    assert first.returncode == 0
    assert laptop.states() == ["dropped", "ready"]
    check_complete(laptop, FEW)


@pytest.mark.timeout(500)
def test_increment_erasure_and_rebuild_agree_on_milvus_lite(laptop: User, finished_run: MakeRun) -> None:
    finished_run(laptop.store, "run1", 0, FEW, 1)
    laptop.runs("load", "run1")
    assert laptop.json("promote", "latest")["failures"] == []
    finished_run(laptop.store, "run2", FEW - 100, 300, 1)
    assert "300 rows upserted" in laptop.runs("load", "run2", "--into-live")
    check_complete(laptop, FEW + 200)

    draft = laptop.json("forget", "--camera", "cam-1", "--reason", "court order 17")
    assert draft["state"] == "dry run"
    receipt = laptop.json("forget", "--camera", "cam-1", "--reason", "court order 17", "--yes")
    left = receipt["generations"][0]["rows_after"]
    assert (receipt["state"], left) == ("done", FEW + 200 - receipt["crops"])
    assert laptop.json("load", "run1", "run2", "--latest-wins")["rows"] == left
    check_complete(laptop, left)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_killed_erasure_is_finished_by_the_same_command(laptop: User, finished_run: MakeRun) -> None:
    finished_run(laptop.store, "run1", 0, FEW, 1)
    laptop.runs("load", "run1")
    laptop.runs("promote", "latest")
    command = ["forget", "--vehicle", "17", "--vehicle", "18", "--reason", "court order 17"]
    draft = laptop.json(*command)
    assert (draft["state"], draft["crops"], draft["generations"][0]["matching"]) == ("dry run", 20, 20)

    with laptop.starts(*command, "--yes") as eraser:
        while not laptop.receipts():
            assert eraser.poll() is None, eraser.communicate()
        sigkill(eraser.pid)
    (cut,) = laptop.receipts()
    assert cut["state"] == "begun", "too late: the erasure has ended"

    again = laptop.json(*command, "--yes")

    first, second = laptop.receipts()
    assert (first["erasure_id"], first["state"]) == (cut["erasure_id"], "done")
    assert (second["erasure_id"], second["state"]) == (again["erasure_id"], "done")
    one, other = first["generations"][0], second["generations"][0]
    assert (one["rows_before"], one["matching"], one["rows_after"], one["left"]) == (FEW, 20, FEW - 20, 0)
    assert (other["rows_before"], other["matching"], other["rows_after"]) == (FEW - 20, 0, FEW - 20)
    assert laptop.json("load", "run1")["rows"] == FEW - 20
    check_complete(laptop, FEW - 20)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_retention_and_retirement_drop_rows_and_a_tampered_shard_is_refused(
    laptop: User, finished_run: MakeRun
) -> None:
    finished_run(laptop.store, "run1", 0, FEW, 1)
    built = []
    for _ in range(3):
        built.append(laptop.json("load", "run1")["generation"]["name"])
        laptop.runs("promote", "latest")
    retired = laptop.json("retire", "--keep", "1")
    assert (retired["dropped"], retired["kept"]) == (built[:1], built[1:])
    assert laptop.json("retire", "--keep", "1")["dropped"] == []
    assert [(row["previous"], row["live"]) for row in laptop.json("generations")] == [
        (True, False),
        (False, True),
    ]

    assert laptop.json("retain", "--days", "45")["state"] == "dry run"
    receipt = laptop.json("retain", "--days", "45", "--yes")
    assert (receipt["state"], receipt["crops"]) == ("done", FEW // 2)
    after = [(one["rows_before"], one["rows_after"], one["left"]) for one in receipt["generations"]]
    assert after == [(FEW, FEW // 2, 0)] * 2
    assert laptop.json("rollback")["name"] == built[1]
    check_complete(laptop, FEW // 2)

    (shard,) = Run.open(laptop.store, "run1").shard_keys()
    path = Path(laptop.store.uri_of(shard))
    tampered = bytearray(path.read_bytes())
    tampered[len(tampered) // 2] ^= 1
    path.write_bytes(bytes(tampered))
    assert "was altered" in laptop.runs("load", "run1", expect=7)
    assert len(laptop.json("generations")) == 2


def test_an_erasure_needs_a_reason_and_a_selection(laptop: User) -> None:
    assert "needs a reason" in laptop.runs("forget", "--camera", "c", "--reason", " ", expect=3)
    assert "nothing selects" in laptop.runs("forget", "--reason", "r", expect=3)
    assert "would erase everything" in laptop.runs("retain", "--days", "0", expect=3)
