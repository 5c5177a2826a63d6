"""Jobs on a real Ray head with a token are followed, stopped and retried, and never show a secret."""

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
from json_documents import read_document
from ray.job_submission import JobSubmissionClient

from infra.servers.process import end_all, processes_with_tag
from infra.servers.ray_head import RayHead

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SECRET = "planted-secret-0123456789"


@pytest.fixture(scope="module")
def head(server_folder: Path) -> Iterator[RayHead]:
    """A head with a secret in its environment, as from a Kubernetes Secret."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        # On a busy machine Ray's agent needs more than the default of half a minute.
        "RAY_agent_register_timeout_ms": "180000",
    }
    mark = f"test-{secrets.token_hex(8)}"
    yield RayHead.start(
        server_folder / "jobs",
        environment={**environment, "CLVR_MILVUS_TOKEN": SECRET},
        cpus=2,
        object_store_bytes=100 << 20,
        owner_tag=mark,
    )
    end_all(processes_with_tag(mark))


class Laptop:
    """A user at a terminal outside of the cluster."""

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
        return read_document(words, out)


@pytest.fixture
def laptop(tmp_path: Path, head: RayHead) -> Laptop:
    return Laptop(tmp_path, head)


def test_a_command_fails_on_the_cluster_as_it_fails_locally(laptop: Laptop, head: RayHead) -> None:
    local = laptop.runs("status", "tonight")
    code, out, err = laptop.runs("submit", "--json", "--secret-env", "CLVR_MILVUS_TOKEN", "status", "tonight")
    assert code == local[0] == 3
    assert "error: there is no run tonight" in err
    assert "error: there is no run tonight" in local[2]
    job = read_document(["submit"], out)
    assert (job["status"], job["exit_code"], job["verb"]) == ("FAILED", 3, "status")

    status = laptop.json("jobs", "show", job["job"])
    assert status["exit_code"] == 3
    assert "no run tonight" in laptop.json("jobs", "logs", job["job"])["logs"]

    missing, _, message = laptop.runs("submit", "--secret-env", "NOT_THERE", "status", "tonight")
    assert missing == 3
    assert "the cluster has no NOT_THERE" in message

    again, _, message = laptop.runs("jobs", "retry", job["job"])
    assert again == 3
    assert "no run tonight" in message
    listed = laptop.json("jobs", "list")
    assert [row["retry_of"] for row in listed if row["retry_of"]] == [job["job"]]
    text = laptop.runs("jobs", "list")[1]
    assert job["job"] in text

    client = JobSubmissionClient(
        head.dashboard, headers={"Authorization": f"Bearer {head.token_file.read_text()}"}
    )
    everything = [repr(row) for row in client.list_jobs()]
    everything += [client.get_job_logs(row["job"]) for row in listed]
    everything += [out, err, message, json.dumps(listed)]
    assert not any(SECRET in text for text in everything)


def test_a_wrong_token_and_an_unknown_job_are_errors_of_one_line(laptop: Laptop) -> None:
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
