"""The local stack: found again by later commands, ended without a trace, and nobody else's business."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import BadInput, Locked
from infra.servers.remembered import Remembered, marked, session_of
from infra.servers.stack import Stack, Standing
from infra.store import open_store
from infra.store_settings import StoreSettings

IDLE = [sys.executable, "-c", "import time; time.sleep(300)"]
SCRIPT = (
    "import sys; from pathlib import Path; from infra.servers.stack import Stack; Stack(Path(sys.argv[1]))."
)
ALL = {"seaweedfs": "serving", "milvus": "serving", "ray": "serving"}


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(IDLE, env={**os.environ, "CLVR_STACK": "sleeper"})
    yield child
    child.kill()
    child.wait()


def health(standings: list[Standing]) -> dict[str, str]:
    return {standing.name: standing.health for standing in standings}


def pids_of(stack: Stack) -> dict[str, int]:
    state = json.loads((stack.folder / "stack.json").read_text())
    return {name: process["pid"] for name, process in state["processes"].items()}


def in_a_process_of_its_own(stack: Stack, call: str) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT + call, str(stack.folder)], check=True, timeout=200)


def test_a_process_is_not_mistaken_for_a_later_one_of_the_same_pid(sleeper: subprocess.Popen[bytes]) -> None:
    real = Remembered.of(sleeper.pid)
    later = Remembered(real.pid, real.started + 1, real.boot)
    other_boot = Remembered(real.pid, real.started, "another boot")
    for impostor in (later, other_boot):
        assert not impostor.running
        impostor.end()
    assert real.running
    assert abs(real.since - time.time()) < 30


def test_an_ended_process_counts_as_ended_even_before_its_parent_looked(
    sleeper: subprocess.Popen[bytes],
) -> None:
    process = Remembered.of(sleeper.pid)
    assert process in marked("sleeper")
    os.kill(sleeper.pid, signal.SIGKILL)
    process.end()
    assert not process.running
    assert marked("sleeper") == []


def test_members_of_a_session_are_found_without_a_mark_and_after_their_leader() -> None:
    idle = "import time; time.sleep(300)"
    child = f"subprocess.Popen([sys.executable, '-c', {idle!r}])"
    script = f"import subprocess, sys; print({child}.pid, flush=True); {idle}"
    leader = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True, env={}
    )
    assert leader.stdout is not None
    member = Remembered.of(int(leader.stdout.readline()))
    remembered = Remembered.of(leader.pid)
    assert {process.pid for process in session_of(remembered)} == {leader.pid, member.pid}
    remembered.end()
    assert [process.pid for process in session_of(remembered)] == [member.pid]
    member.end()
    assert session_of(remembered) == []


def test_ending_politely_falls_back_to_sigkill() -> None:
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('.', flush=True); time.sleep(60)"
    stubborn = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    stubborn.stdout.read(1)
    process = Remembered.of(stubborn.pid)
    process.end(grace=0.3)
    assert not process.running


def test_there_is_nothing_to_end_where_there_is_no_stack(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no stack"):
        Stack(tmp_path / "none").down()
    assert health(Stack(tmp_path / "none").status()) == dict.fromkeys(ALL, "not started")


def test_an_unreadable_state_file_is_said_and_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{half a")
    with pytest.raises(BadInput, match=r"stack\.json"):
        Stack(tmp_path).up()
    assert (tmp_path / "stack.json").read_text() == "{half a"


@pytest.mark.integration
def test_it_outlives_the_command_is_found_again_and_keeps_its_data(server_folder: Path) -> None:
    stack = Stack(server_folder / "storage-only")
    try:
        in_a_process_of_its_own(stack, "up(('seaweedfs',))")
        first = pids_of(stack)
        assert health(stack.status())["seaweedfs"] == "serving"

        settings = StoreSettings.from_env(stack.environment())
        open_store("s3://archive", settings).put("a.jpg", b"still here")
        assert health(stack.up(("seaweedfs",)))["seaweedfs"] == "serving"
        assert pids_of(stack) == first, "a second `up` starts nothing twice"

        os.kill(first["seaweedfs"], signal.SIGKILL)
        while health(stack.status())["seaweedfs"] != "ended":
            time.sleep(0.05)
        stack.up(("seaweedfs",))
        again = StoreSettings.from_env(stack.environment())
        assert again == settings, "same keys, same port: what was exported still works"
        assert open_store("s3://archive", again).get("a.jpg") == b"still here"

        assert stack.down() == 1
        assert health(stack.status())["seaweedfs"] == "not started"
        assert not stack.env_file.exists()
    finally:
        stack.down(purge=True)
    assert not stack.folder.exists()


@pytest.mark.integration
def test_what_a_killed_command_had_started_is_found_and_ended(server_folder: Path) -> None:
    stack = Stack(server_folder / "killed")
    command = subprocess.Popen([sys.executable, "-c", SCRIPT + "up()", str(stack.folder)])
    state = stack.folder / "stack.json"
    while not state.exists() or not marked(json.loads(state.read_text())["mark"]):
        assert command.poll() is None
        time.sleep(0.02)
    command.kill()
    command.wait()
    mark = json.loads(state.read_text())["mark"]
    assert stack.down(purge=True) >= 1
    assert marked(mark) == []


@pytest.mark.integration
def test_one_command_at_a_time(server_folder: Path) -> None:
    stack = Stack(server_folder / "alone")
    with stack._alone(), pytest.raises(Locked, match="at work"):
        Stack(stack.folder).up(("seaweedfs",))


@pytest.mark.integration
def test_the_whole_stack_serves_is_closed_to_others_and_goes_without_a_trace(server_folder: Path) -> None:
    stack = Stack(server_folder / "whole")
    bystander = subprocess.Popen(IDLE)
    try:
        said: list[str] = []
        assert health(stack.up(say=said.append)) == ALL
        environment = stack.environment()
        mark = json.loads((stack.folder / "stack.json").read_text())["mark"]

        # Ray: with the token a job runs, and finds the storage's credentials; without it nobody gets in.
        script = (
            "import os, ray; ray.init(log_to_driver=False, logging_level=40); "
            "print(ray.get(ray.remote(lambda: os.environ['AWS_ENDPOINT_URL']).remote()))"
        )
        python = [sys.executable, "-c", script]
        base = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        ours = subprocess.run(python, env=base | environment, capture_output=True, text=True, timeout=150)
        assert ours.stdout.strip() == environment["AWS_ENDPOINT_URL"], ours.stderr[-500:]
        assert _status(environment["RAY_API_SERVER_ADDRESS"] + "/api/jobs/") == 401

        # Everything listens on the loopback, or on the pair of addresses that leads to Milvus.
        listening = _listening({process.pid for process in marked(mark)})
        assert "127.0.0.1" in listening
        assert all(address.startswith(("127.0.0.1", "198.18.", "198.19.")) for address in listening), (
            listening
        )

        # Secrets: in files of mode 600 only, never in argv, never in a log, never in what we say.
        secrets = [environment["AWS_SECRET_ACCESS_KEY"], (stack.folder / "ray" / "token").read_text()]
        assert stat.S_IMODE(stack.folder.stat().st_mode) == 0o700
        for path in (stack.env_file, stack.folder / "stack.json", stack.folder / "ray" / "token"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        spoken = "".join(said)
        for process in marked(mark):
            spoken += Path(f"/proc/{process.pid}/cmdline").read_text()
        for log in (*stack.folder.rglob("*.log"), *stack.folder.rglob("*.out"), *stack.folder.rglob("*.err")):
            spoken += log.read_text(errors="replace") if log.is_file() else ""
        assert not any(secret in spoken for secret in secrets)

        os.kill(pids_of(stack)["milvus"], signal.SIGKILL)
        before = pids_of(stack)
        while health(stack.status())["milvus"] != "ended":
            time.sleep(0.05)
        assert health(stack.up()) == ALL
        after = pids_of(stack)
        assert after["milvus"] != before["milvus"]
        assert (after["ray"], after["seaweedfs"]) == (before["ray"], before["seaweedfs"])

        leaders = [Remembered.of(pid) for pid in after.values()]
        assert stack.down() >= 4
        assert marked(mark) == []
        assert [process for leader in leaders for process in session_of(leader)] == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        stack.down(purge=True)


def _status(url: str) -> int:
    import httpx2

    return httpx2.get(url, trust_env=False).status_code


def _listening(pids: set[int]) -> set[str]:
    """Addresses (IPv4, also where mapped into IPv6) on which these processes listen, in our own network."""
    inodes = set()
    ours = Path("/proc/self/ns/net").readlink()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = str(entry.readlink())
            if target.startswith("socket:") and Path(f"/proc/{pid}/ns/net").readlink() == ours:
                inodes.add(target[8:-1])
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                word = fields[1].partition(":")[0][-8:]
                found.add(".".join(str(byte) for byte in reversed(bytes.fromhex(word))))
    return found
