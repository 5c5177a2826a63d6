"""The local stack: later commands find it, `down` leaves no trace, and no other user has access."""

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.errors import BadInput, Locked
from infra.servers.process import ProcessHandle, processes_in_session, processes_with_tag
from infra.servers.stack import ServerStatus, Stack
from infra.store import open_store
from infra.store.settings import StoreSettings

IDLE = [sys.executable, "-c", "import time; time.sleep(300)"]
SCRIPT = (
    "import sys; from pathlib import Path; from infra.servers.stack import Stack; Stack(Path(sys.argv[1]))."
)
ALL = {"seaweedfs": "serving", "milvus": "serving", "ray": "serving"}


def health(servers: list[ServerStatus]) -> dict[str, str]:
    return {server.name: server.health for server in servers}


def pids_of(stack: Stack) -> dict[str, int]:
    state = json.loads((stack.folder / "stack.json").read_text())
    return {name: process["pid"] for name, process in state["processes"].items()}


def run_in_another_process(stack: Stack, call: str) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT + call, str(stack.folder)], check=True, timeout=200)


def test_down_without_a_stack_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no stack"):
        Stack(tmp_path / "none").down()
    assert health(Stack(tmp_path / "none").status()) == dict.fromkeys(ALL, "not started")


def test_up_rejects_an_unreadable_state_file_and_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{half a")
    with pytest.raises(BadInput, match=r"stack\.json"):
        Stack(tmp_path).up()
    assert (tmp_path / "stack.json").read_text() == "{half a"


@pytest.mark.integration
def test_a_stack_outlives_its_command_and_keeps_its_data(server_folder: Path) -> None:
    stack = Stack(server_folder / "storage-only")
    try:
        run_in_another_process(stack, "up(('seaweedfs',))")
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
def test_down_ends_the_processes_of_a_killed_up(server_folder: Path) -> None:
    stack = Stack(server_folder / "killed")
    command = subprocess.Popen([sys.executable, "-c", SCRIPT + "up()", str(stack.folder)])
    state = stack.folder / "stack.json"
    while not state.exists() or not processes_with_tag(json.loads(state.read_text())["mark"]):
        assert command.poll() is None
        time.sleep(0.02)
    command.kill()
    command.wait()
    owner_tag = json.loads(state.read_text())["mark"]
    assert stack.down(purge=True) >= 1
    assert processes_with_tag(owner_tag) == []


def test_a_second_command_on_the_folder_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for call in (lambda: Stack(tmp_path).up(("seaweedfs",)), lambda: Stack(tmp_path).down()):
            with pytest.raises(Locked, match="at work"):
                call()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.integration
def test_the_whole_stack_serves_admits_no_other_user_and_ends_without_a_trace(server_folder: Path) -> None:
    stack = Stack(server_folder / "whole")
    bystander = subprocess.Popen(IDLE)
    try:
        lines: list[str] = []
        assert health(stack.up(log=lines.append)) == ALL
        environment = stack.environment()
        owner_tag = json.loads((stack.folder / "stack.json").read_text())["mark"]

        # Ray: with the token a job runs, and finds the storage's credentials; without it no client gets in.
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
        listening = _listening({process.pid for process in processes_with_tag(owner_tag)})
        assert "127.0.0.1" in listening
        assert all(address.startswith(("127.0.0.1", "198.18.", "198.19.")) for address in listening), (
            listening
        )

        # Secrets: in files of mode 600 only, never in argv, in a log or in a message.
        secrets = [environment["AWS_SECRET_ACCESS_KEY"], (stack.folder / "ray" / "token").read_text()]
        assert stat.S_IMODE(stack.folder.stat().st_mode) == 0o700
        for path in (stack.env_file, stack.folder / "stack.json", stack.folder / "ray" / "token"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        output = "".join(lines)
        for process in processes_with_tag(owner_tag):
            output += Path(f"/proc/{process.pid}/cmdline").read_text()
        for log in (*stack.folder.rglob("*.log"), *stack.folder.rglob("*.out"), *stack.folder.rglob("*.err")):
            output += log.read_text(errors="replace") if log.is_file() else ""
        assert not any(secret in output for secret in secrets)

        os.kill(pids_of(stack)["milvus"], signal.SIGKILL)
        before = pids_of(stack)
        while health(stack.status())["milvus"] != "ended":
            time.sleep(0.05)
        assert health(stack.up()) == ALL
        after = pids_of(stack)
        assert after["milvus"] != before["milvus"]
        assert (after["ray"], after["seaweedfs"]) == (before["ray"], before["seaweedfs"])

        leaders = [ProcessHandle.of(pid) for pid in after.values()]
        assert stack.down() >= 4
        assert processes_with_tag(owner_tag) == []
        assert [process for leader in leaders for process in processes_in_session(leader)] == []
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
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                word = fields[1].partition(":")[0][-8:]
                addresses.add(".".join(str(byte) for byte in reversed(bytes.fromhex(word))))
    return addresses
