"""Jobs on a real Ray head behind a token: followed, failed, stopped, tried again; no secret is ever shown."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient

from infra.servers.process import end_all, processes_with_tag
from infra.servers.ray_head import RayHead

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SECRET = "planted-secret-0123456789"


@pytest.fixture(scope="module")
def head(server_folder: Path) -> Iterator[RayHead]:
    """A head whose environment has a secret, as a Kubernetes Secret would give it."""
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        # On a machine with much else to do, Ray's agent takes longer than the half minute it is given.
        "RAY_agent_register_timeout_ms": "180000",
    }
    mark = f"test-{secrets.token_hex(8)}"
    yield RayHead.start(
        server_folder / "jobs",
        environment={**own, "CLVR_MILVUS_TOKEN": SECRET},
        cpus=2,
        object_store_bytes=100 << 20,
        mark=mark,
    )
    end_all(processes_with_tag(mark))


class Laptop:
    """Somebody at a terminal, far from the cluster."""

    def __init__(self, folder: Path, head: RayHead) -> None:
        self.folder = folder
        away = ("CLVR_", "AWS_", "RAY_ADDRESS", "RAY_API")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(away)},
            **head.environment(address=False),
            "CLVR_JOBS_URL": head.dashboard,
            "CLVR_RUNS": str(folder / "data"),
            "CLVR_MILVUS_TOKEN": SECRET,
            "PYTHONPATH": str(ROOT),
        }

    def starts(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *words],
            cwd=self.folder,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that runs us in the background has its children ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def runs(self, *words: str, **variables: str) -> tuple[int, str, str]:
        with self.starts(*words, **variables) as command:
            out, err = command.communicate(timeout=200)
        return command.returncode, out, err

    def json(self, *words: str) -> Any:
        code, out, err = self.runs(*words, "--json")
        assert code == 0, err
        return json.loads(out)


@pytest.fixture
def laptop(tmp_path: Path, head: RayHead) -> Laptop:
    return Laptop(tmp_path, head)


def test_a_verb_fails_there_as_it_fails_here(laptop: Laptop, head: RayHead) -> None:
    here = laptop.runs("status", "tonight")
    code, out, err = laptop.runs("submit", "--json", "--secret-env", "CLVR_MILVUS_TOKEN", "status", "tonight")
    assert code == here[0] == 3
    assert "error: there is no run tonight" in err
    assert "error: there is no run tonight" in here[2]
    told = json.loads(out)
    assert (told["status"], told["exit_code"], told["verb"]) == ("FAILED", 3, "status")

    shown = laptop.json("jobs", "show", told["job"])
    assert shown["exit_code"] == 3
    assert "no run tonight" in laptop.json("jobs", "logs", told["job"])["logs"]

    missing, _, said = laptop.runs("submit", "--secret-env", "NOT_THERE", "status", "tonight")
    assert missing == 3
    assert "the cluster has no NOT_THERE" in said

    again, _, said = laptop.runs("jobs", "retry", told["job"])
    assert again == 3
    assert "no run tonight" in said
    listed = laptop.json("jobs", "list")
    assert [one["retry_of"] for one in listed if one["retry_of"]] == [told["job"]]
    text = laptop.runs("jobs", "list")[1]
    assert told["job"] in text

    client = JobSubmissionClient(
        head.dashboard, headers={"Authorization": f"Bearer {head.token_file.read_text()}"}
    )
    everything = [repr(one) for one in client.list_jobs()]
    everything += [client.get_job_logs(one["job"]) for one in listed]
    everything += [out, err, said, json.dumps(listed)]
    assert not any(SECRET in text for text in everything)


def test_wrong_token_and_unknown_job_are_said_in_a_line(laptop: Laptop) -> None:
    code, _, err = laptop.runs("jobs", "list", CLVR_JOBS_TOKEN="f" * 64)
    assert code == 12
    assert "does not take our token" in err
    code, _, err = laptop.runs("jobs", "show", "nobody")
    assert code == 12
    assert "knows no job nobody" in err


def test_ctrl_c_leaves_the_job_running_and_stop_ends_it(laptop: Laptop, tmp_path: Path) -> None:
    generate = ("generate", str(tmp_path / "archive"), "--labels", str(tmp_path / "labels"), "--models", "90")
    follower = laptop.starts("submit", "--job", "long", *generate)
    deadline = time.monotonic() + 100
    while not (tmp_path / "archive").exists():
        assert follower.poll() is None, follower.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert "detached: job long goes on" in err
    assert laptop.json("jobs", "show", "long")["status"] == "RUNNING"
    assert laptop.runs("jobs", "retry", "long")[0] == 3

    assert laptop.json("jobs", "stop", "long")["stopping"]
    code, _, err = laptop.runs("jobs", "logs", "long", "--follow")
    assert code == 130
    assert laptop.json("jobs", "show", "long")["status"] == "STOPPED"
