"""Submitted nights on S3, a Milvus server and Ray behind a token: killed, stopped, tried again, finished."""

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
    """Somebody at a terminal; the cluster has its secrets by itself."""

    def __init__(
        self, folder: Path, bucket: str, seaweedfs: SeaweedFs, milvus: MilvusServer, head: RayHead
    ) -> None:
        self.folder, self.head = folder, head
        self.archive = open_store(f"{bucket}/archive", seaweedfs.settings)
        self.store = open_store(f"{bucket}/data", seaweedfs.settings)
        self.model = f"{bucket}/models/clvr"
        self.heard: list[str] = []
        away = ("CLVR_", "AWS_", "RAY_ADDRESS", "RAY_API")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(away)},
            **head.environment(address=False),
            **seaweedfs.environment,
            "CLVR_JOBS_URL": head.dashboard,
            "CLVR_RUNS": self.store.uri,
            "CLVR_MILVUS": milvus.uri,
            "CLVR_ALIAS": f"night_{secrets.token_hex(3)}",
            "PYTHONPATH": str(ROOT),
        }
        if milvus.token:
            self.environment["CLVR_MILVUS_TOKEN"] = milvus.token

    def starts(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ends(self, command: subprocess.Popen[str]) -> int:
        self.heard.append(command.communicate(timeout=500)[0])
        print(self.heard[-1])
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
        self.heard.append(done.stdout + done.stderr)
        return json.loads(done.stdout)

    def night(self, name: str) -> tuple[str, ...]:
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
        """The process id of the verb on the cluster."""
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
                self.heard.append(b" ".join(words).decode())
                return int(folder.name)
        raise AssertionError("there is no driver")


@pytest.fixture
def operator(
    tmp_path: Path, server_folder: Path, bucket: str, seaweedfs: SeaweedFs, milvus_server: MilvusServer
) -> Iterator[Operator]:
    mark = f"test-{secrets.token_hex(8)}"
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        # On a machine with much else to do, Ray's agent takes longer than the half minute it is given.
        "RAY_agent_register_timeout_ms": "180000",
    }
    token = {"CLVR_MILVUS_TOKEN": milvus_server.token} if milvus_server.token else {}
    head = RayHead.start(
        server_folder / f"night-{mark[-4:]}",
        environment={**own, **seaweedfs.environment, **token, "CLVR_WEBHOOK": WEBHOOK},
        cpus=2,
        object_store_bytes=150 << 20,
        mark=mark,
    )
    try:
        someone = Operator(tmp_path, bucket, seaweedfs, milvus_server, head)
        generate(someone.archive, SPEC)
        someone.archive.put("dt=2026-01-05/cam=001/1767614400000_broken.jpg", b"not a picture")
        store_checkpoint(someone.model, seaweedfs)
        yield someone
    finally:
        end_all(processes_with_tag(mark))


def store_checkpoint(uri: str, seaweedfs: SeaweedFs) -> None:
    os.environ.update(seaweedfs.environment)
    try:
        save_checkpoint(uri, Clvr.of(Architecture(classes=3), seed=2), Card(label_ids=(0, 1, 2)))
    finally:
        for name in seaweedfs.environment:
            del os.environ[name]


def wait_for(command: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not there():
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def step(store: Store, night: str, name: str) -> bool:
    return store.head(f"nights/{night}/steps/{name}.json") is not None


@pytest.mark.timeout(1500)
def test_nights_are_submitted_killed_tried_again_and_add_up(operator: Operator, tmp_path: Path) -> None:
    first = operator.starts(*operator.night("first"))
    wait_for(first, lambda: step(operator.store, "first", "plan"))
    os.kill(operator.driver(), signal.SIGKILL)
    assert operator.ends(first) == 137
    assert not step(operator.store, "first", "load")

    assert operator.ends(operator.starts("jobs", "retry", "job-first")) == 0
    told = operator.summary("first")
    assert (told["state"], len(told["attempts"])) == ("finished", 2)
    assert {name: told["crops"][name] for name in ("listed", "embedded", "quarantined", "duplicates")} == {
        "listed": 49, "embedded": 48, "quarantined": 1, "duplicates": 0,
    }  # fmt: skip
    found = operator.json("verify", "live")
    assert (found["indexed"], found["expected"], found["missing_count"], found["repeated"]) == (48, 48, 0, 0)

    keys = sorted(one.key for one in operator.archive.list() if "broken" not in one.key)
    for number in range(3):
        copied = operator.archive.get(keys[20 + number])
        operator.archive.put(f"dt=2026-02-01/cam=002/17699040000{number:02d}_new{number}.jpg", copied)
    operator.archive.put(keys[5], operator.archive.get(keys[30]))
    operator.archive.delete(keys[0], keys[1])
    second = operator.starts(*operator.night("second"))
    wait_for(second, lambda: step(operator.store, "second", "plan"))
    assert operator.json("jobs", "stop", "job-second")["stopping"]
    assert operator.ends(second) == 130
    assert operator.json("verify", "live")["indexed"] == 48

    assert operator.ends(operator.starts("jobs", "retry", "job-second")) == 0
    told = operator.summary("second")
    crops = told["crops"]
    assert [crops[name] for name in ("new", "changed", "vanished", "unchanged")] == [3, 1, 2, 46]
    assert (told["live"]["rows_before"], told["live"]["rows"]) == (48, 49)
    found = operator.json("verify", "live")
    assert (found["listed"], found["embedded"], found["quarantined"]) == (53, 52, 1)
    assert (found["superseded"], found["vanished"], found["indexed"]) == (1, 2, 49)
    assert operator.ends(operator.starts(*operator.night("second"))) == 12  # the job's name is taken

    for name in ("first", "second"):
        (tmp_path / f"{name}.html").write_bytes(operator.store.get(f"nights/{name}/summary.html"))
    print("pages in", tmp_path)
    nothing_shows_a_secret(operator)


def nothing_shows_a_secret(operator: Operator) -> None:
    token = operator.head.token_file.read_text()
    client = JobSubmissionClient(operator.head.dashboard, headers={"Authorization": f"Bearer {token}"})
    places = {"jobs": "".join(repr(one) for one in client.list_jobs()), "terminal": "".join(operator.heard)}
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
