"""Reindex runs are submitted to Ray with S3 and a Milvus server, killed, stopped, retried and finished."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from json_documents import read_document
from ray.job_submission import JobSubmissionClient

from clvr_model.checkpoint import Card, save_checkpoint
from clvr_model.network import Architecture, Clvr
from clvr_model.synthetic.archive import generate
from clvr_model.synthetic.trips import ArchiveSpec
from infra.servers import MilvusServer, SeaweedFs
from infra.servers.process import end_all, processes_with_tag
from infra.servers.ray_head import RayHead
from infra.store import Store, open_store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SPEC = ArchiveSpec(seed=11, models=3, vehicles_per_model=4, sightings_per_vehicle=4, cameras=4)
KEYS = "dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg"
WEBHOOK = "http://127.0.0.1:9/planted-webhook-secret"


class Operator:
    """A user at a terminal; the cluster has its own secrets."""

    def __init__(
        self, folder: Path, bucket: str, seaweedfs: SeaweedFs, milvus: MilvusServer, head: RayHead
    ) -> None:
        self.folder, self.head = folder, head
        self.archive = open_store(f"{bucket}/archive", seaweedfs.settings)
        self.store = open_store(f"{bucket}/data", seaweedfs.settings)
        self.model = f"{bucket}/models/clvr"
        self.outputs: list[str] = []
        unset = ("CLVR_", "AWS_", "RAY_ADDRESS", "RAY_API")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(unset)},
            **head.environment(address=False),
            **seaweedfs.environment,
            "CLVR_JOBS_URL": head.dashboard,
            "CLVR_RUNS": self.store.uri,
            "CLVR_MILVUS": milvus.uri,
            "CLVR_ALIAS": f"reindex_{secrets.token_hex(3)}",
            "PYTHONPATH": str(ROOT),
        }
        if milvus.token:
            self.environment["CLVR_MILVUS_TOKEN"] = milvus.token

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait(self, command: subprocess.Popen[str]) -> int:
        self.outputs.append(command.communicate(timeout=500)[0])
        print(self.outputs[-1])
        return command.returncode

    def json(self, *words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *words, "--json"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=True,
        )
        self.outputs.append(done.stdout + done.stderr)
        return read_document(words, done.stdout)

    def command(self, name: str) -> tuple[str, ...]:
        checks = (
            "--secret-env",
            "AWS_SECRET_ACCESS_KEY",
            "--secret-env",
            "CLVR_WEBHOOK",
            "--job",
            f"job-{name}",
        )
        return (
            *("submit", *checks, "reindex", self.archive.uri, "--model", self.model, "--night", name),
            *("--key-pattern", KEYS, "--max-quarantine-rate", "0.1", "--price-per-node-hour", "2"),
        )

    def summary(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self.store.get(f"nights/{name}/summary.json")))

    def driver(self) -> int:
        """Return the process id of the command on the cluster."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if (
                b"jobs.cli.entrypoint" in words
                and self.archive.uri.encode() in words
                and words[0].endswith(b"python")
            ):
                self.outputs.append(b" ".join(words).decode())
                return int(folder.name)
        raise AssertionError("the cluster has no driver process")


@pytest.fixture
def operator(
    tmp_path: Path, server_folder: Path, bucket: str, seaweedfs: SeaweedFs, milvus_server: MilvusServer
) -> Iterator[Operator]:
    mark = f"test-{secrets.token_hex(8)}"
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        # On a busy machine Ray's agent needs more than the default of half a minute.
        "RAY_agent_register_timeout_ms": "180000",
    }
    token = {"CLVR_MILVUS_TOKEN": milvus_server.token} if milvus_server.token else {}
    head = RayHead.start(
        server_folder / f"reindex-{mark[-4:]}",
        environment={**environment, **seaweedfs.environment, **token, "CLVR_WEBHOOK": WEBHOOK},
        cpus=2,
        object_store_bytes=150 << 20,
        owner_tag=mark,
    )
    try:
        operator = Operator(tmp_path, bucket, seaweedfs, milvus_server, head)
        generate(operator.archive, SPEC)
        operator.archive.put("dt=2026-01-05/cam=001/1767614400000_broken.jpg", b"not a picture")
        store_checkpoint(operator.model, seaweedfs)
        yield operator
    finally:
        end_all(processes_with_tag(mark))


def store_checkpoint(uri: str, seaweedfs: SeaweedFs) -> None:
    os.environ.update(seaweedfs.environment)
    try:
        save_checkpoint(uri, Clvr.of(Architecture(classes=3), seed=2), Card(label_ids=(0, 1, 2)))
    finally:
        for name in seaweedfs.environment:
            del os.environ[name]


def wait_for(command: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def step(store: Store, run: str, name: str) -> bool:
    return store.head(f"nights/{run}/steps/{name}.json") is not None


@pytest.mark.timeout(1500)
def test_reindex_runs_that_are_killed_stopped_and_retried_account_for_every_crop(
    operator: Operator, tmp_path: Path
) -> None:
    first = operator.start(*operator.command("first"))
    wait_for(first, lambda: step(operator.store, "first", "plan"))
    os.kill(operator.driver(), signal.SIGKILL)
    assert operator.wait(first) == 137
    assert not step(operator.store, "first", "load")

    assert operator.wait(operator.start("jobs", "retry", "job-first")) == 0
    summary = operator.summary("first")
    assert (summary["state"], len(summary["attempts"])) == ("finished", 2)
    assert {name: summary["crops"][name] for name in ("listed", "embedded", "quarantined", "duplicates")} == {
        "listed": 49, "embedded": 48, "quarantined": 1, "duplicates": 0,
    }  # fmt: skip
    verified = operator.json("verify", "live")
    assert (verified["indexed"], verified["expected"]) == (48, 48)
    assert (verified["missing_count"], verified["repeated"]) == (0, 0)

    keys = sorted(one.key for one in operator.archive.list() if "broken" not in one.key)
    for number in range(3):
        copied = operator.archive.get(keys[20 + number])
        operator.archive.put(f"dt=2026-02-01/cam=002/17699040000{number:02d}_new{number}.jpg", copied)
    operator.archive.put(keys[5], operator.archive.get(keys[30]))
    operator.archive.delete(keys[0], keys[1])
    second = operator.start(*operator.command("second"))
    wait_for(second, lambda: step(operator.store, "second", "plan"))
    assert operator.json("jobs", "stop", "job-second")["stopping"]
    assert operator.wait(second) == 130
    assert operator.json("verify", "live")["indexed"] == 48

    assert operator.wait(operator.start("jobs", "retry", "job-second")) == 0
    summary = operator.summary("second")
    crops = summary["crops"]
    assert [crops[name] for name in ("new", "changed", "vanished", "unchanged")] == [3, 1, 2, 46]
    assert (summary["live"]["rows_before"], summary["live"]["rows"]) == (48, 49)
    verified = operator.json("verify", "live")
    assert (verified["listed"], verified["embedded"], verified["quarantined"]) == (53, 52, 1)
    assert (verified["superseded"], verified["vanished"], verified["indexed"]) == (1, 2, 49)
    assert operator.wait(operator.start(*operator.command("second"))) == 12  # the job's name is taken

    for name in ("first", "second"):
        (tmp_path / f"{name}.html").write_bytes(operator.store.get(f"nights/{name}/summary.html"))
    print("pages in", tmp_path)
    check_that_no_secret_is_shown(operator)


def check_that_no_secret_is_shown(operator: Operator) -> None:
    token = operator.head.token_file.read_text()
    client = JobSubmissionClient(operator.head.dashboard, headers={"Authorization": f"Bearer {token}"})
    places = {"jobs": "".join(repr(one) for one in client.list_jobs()), "terminal": "".join(operator.outputs)}
    places |= {one.key: operator.store.get(one.key).decode() for one in operator.store.list("nights")}
    logs = list((operator.head.session).glob("session_2*/logs/**/*"))
    assert any("job-driver" in path.name for path in logs)
    places |= {path.name: path.read_text(errors="replace") for path in logs if path.is_file()}
    planted = {
        name: operator.environment.get(name)
        for name in ("AWS_SECRET_ACCESS_KEY", "CLVR_MILVUS_TOKEN", "AWS_ACCESS_KEY_ID")
    } | {"CLVR_WEBHOOK": "planted-webhook-secret", "token": token}
    shown = [
        (name, place)
        for name, value in planted.items()
        for place, text in places.items()
        if value and value in text
    ]
    assert shown == []
