"""The local S3 server is private to this machine and user, and ends with its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from infra.errors import StoreUnreachable
from infra.servers import SeaweedFs
from infra.store import StoreSettings, open_store

pytestmark = pytest.mark.integration


def test_the_environment_of_the_server_connects_a_child_process(seaweedfs: SeaweedFs, bucket: str) -> None:
    script = f"from infra.store import open_store; open_store({bucket!r}).put('a', b'from the child')"
    environment = {**os.environ, **seaweedfs.environment}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert open_store(bucket, seaweedfs.settings).get("a") == b"from the child"


def test_the_server_listens_on_the_loopback_only(seaweedfs: SeaweedFs) -> None:
    ports = {f"{port:04X}" for port in seaweedfs.ports} | {f"{port + 10_000:04X}" for port in seaweedfs.ports}
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and address.rpartition(":")[2] in ports:
                listening.add(address.rpartition(":")[0])
    private = {"12C6", "13C6"}  # 198.18 and 198.19, the pair that leads to Milvus, in the kernel's byte order
    assert all(address == "0100007F" or address[-4:] in private for address in listening)
    assert "0100007F" in listening


def test_the_keys_are_not_in_any_command_line(seaweedfs: SeaweedFs) -> None:
    secret = seaweedfs.settings.secret_key
    assert secret
    shown = [line for table in ("cmdline", "environ") for line in _read_of_every_process(table)]
    assert any("s3.json" in line for line in shown)
    assert not any(secret in line for line in shown)


def _read_of_every_process(table: str) -> Iterator[str]:
    for path in Path("/proc").glob(f"[0-9]*/{table}"):
        with suppress(OSError):  # it ended, or belongs to another user
            yield path.read_text(errors="replace")


def test_two_servers_run_side_by_side(seaweedfs: SeaweedFs, tmp_path: Path) -> None:
    with SeaweedFs.start(tmp_path / "second") as second:
        second.create_bucket("second")
        store = open_store("s3://second", second.settings)
        store.put("a", b"x")
        assert second.endpoint != seaweedfs.endpoint
        second.stop()
        with pytest.raises(StoreUnreachable):
            open_store("s3://second", second.settings).get("a")


def test_objects_survive_a_kill(tmp_path: Path) -> None:
    keys = {"access_key": "the-key", "secret_key": "the-secret"}
    with SeaweedFs.start(tmp_path / "s", **keys) as first:
        first.create_bucket("kept")
        open_store("s3://kept", first.settings).put("a", b"x")
    with SeaweedFs.start(tmp_path / "s", **keys) as again:
        assert open_store("s3://kept", again.settings).get("a") == b"x"


def test_the_server_ends_with_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from infra.servers import SeaweedFs\n"
        "server = SeaweedFs.start(Path(sys.argv[1])); print(server.endpoint, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    endpoint = child.stdout.readline().strip()
    child.send_signal(signal.SIGKILL)
    child.wait()
    time.sleep(0.5)
    settings = StoreSettings(endpoint=endpoint, access_key="a", secret_key="s", allow_http=True, retries=0)
    with pytest.raises(StoreUnreachable):
        open_store("s3://any", settings).ensure()
