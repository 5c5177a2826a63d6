"""Connections fail fast with a clear error, and the version of the server decides what it may do."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from index.milvus.client import Milvus, connect
from index.milvus.index_types import capabilities_of
from infra.errors import BadSetting, DiskFull, IndexRefused, IndexUnreachable


def test_a_local_file_is_a_milvus_lite_index(milvus: Milvus) -> None:
    assert milvus.capabilities.lite
    assert milvus.capabilities.import_interface == "stream_insert"
    assert milvus.call("list_collections") == []


def test_a_closed_port_is_reported_at_once_with_a_remedy() -> None:
    start = time.monotonic()
    with pytest.raises(IndexUnreachable, match=r"no Milvus at 127\.0\.0\.1:9: Connection refused") as caught:
        connect("http://127.0.0.1:9")
    assert time.monotonic() - start < 2
    assert "CLVR_MILVUS" in caught.value.remedy


def test_a_server_that_never_answers_fails_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        start = time.monotonic()
        with pytest.raises(IndexUnreachable, match="does not answer as Milvus does"):
            connect(f"http://127.0.0.1:{mute.getsockname()[1]}", timeout=1.0)
        assert time.monotonic() - start < 4


@pytest.mark.parametrize("uri", ["ftp://host:1", "clvr", "http://", "index.sqlite"])
def test_an_invalid_address_is_refused(uri: str) -> None:
    with pytest.raises(BadSetting):
        connect(uri)


def test_credentials_in_the_address_are_refused_without_repeating_them() -> None:
    with pytest.raises(BadSetting) as caught:
        connect("http://root:hunter2@127.0.0.1:9")
    assert "hunter2" not in str(caught.value) + caught.value.remedy


def test_the_token_is_in_no_message_and_no_repr(tmp_path: Path) -> None:
    with connect(str(tmp_path / "a.db"), token="root:hunter2") as milvus:
        assert "hunter2" not in repr(milvus)
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(IndexUnreachable) as caught:
        connect(f"http://127.0.0.1:{mute.getsockname()[1]}", token="root:hunter2", timeout=0.5)
    assert "hunter2" not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_a_local_index_is_never_pinged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Milvus Lite closes the connection on the second ping within five minutes. pymilvus pings every ten
    # seconds and retries a request, so a long build of an index would fail with "index already exists".
    options: dict[str, int] = {}

    class Client:
        def __init__(self, uri: str, *, grpc_options: dict[str, int], **_: object) -> None:
            options.update(grpc_options)

        def get_server_version(self, timeout: float) -> str:
            return "3.2.2"

    monkeypatch.setattr("pymilvus.MilvusClient", Client)
    connect(str(tmp_path / "a.db"))
    assert options["grpc.keepalive_time_ms"] > 10 * 300_000


def test_a_file_of_another_format_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "old.db").write_bytes(b"SQLite format 3\0")
    with pytest.raises(IndexUnreachable, match="cannot be opened"):
        connect(str(tmp_path / "old.db"))


def test_a_local_index_is_open_in_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    script = "import sys; from index.milvus.client import connect; connect(sys.argv[1])"
    with connect(str(path)):
        other = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
        assert "Locked" in other.stderr
    again = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr


def test_an_error_of_the_server_names_call_and_address(milvus: Milvus) -> None:
    with pytest.raises(IndexRefused, match=r"describe_collection at .*index\.db: collection 'nope'"):
        milvus.call("describe_collection", "nope")


@pytest.mark.parametrize(
    ("version", "interface", "diskann"),
    [
        ("v2.3.5-lite", "grpc_v1", False),
        ("v2.4.15", "rest_v2", False),
        ("2.5.4", "rest_v2", True),
        ("v3.0.1", "rest_v2", True),
        ("something", "stream_insert", False),
    ],
)
def test_a_server_version_decides_the_import_and_the_index_types(
    version: str, interface: str, diskann: bool
) -> None:
    # The server in PyPI's `milvus` package calls itself "-lite"; it is a whole server all the same.
    capabilities = capabilities_of(version, lite=False)
    assert capabilities.import_interface == interface
    assert ("DISKANN" in capabilities.index_types) == diskann
    assert "HNSW" in capabilities.index_types
    assert not any(name.startswith("GPU") for name in capabilities.index_types)


def test_a_full_disk_is_its_own_error(tmp_path: Path) -> None:
    class FullDisk:
        def insert(self, *_: object, **__: object) -> None:
            raise OSError(28, "No space left on device", "segment.parquet")

    milvus = Milvus(str(tmp_path / "a.db"), FullDisk(), capabilities_of("3.2.2", lite=True), 1.0)
    with pytest.raises(DiskFull, match=r"insert at .*: the disk of Milvus is full"):
        milvus.call("insert", "c", [])
    with pytest.raises(
        DiskFull, match=r"needs about 1,000,000,000,000,000,000 bytes more, and [\d,]+ are free"
    ):
        milvus.require_space(10**18)


def test_a_server_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def __init__(self, *_: object, **__: object) -> None: ...
        def get_server_version(self, timeout: float) -> str:
            return "v2.2.16"

        def close(self) -> None: ...

    monkeypatch.setattr("pymilvus.MilvusClient", Old)
    with (
        socket.create_server(("127.0.0.1", 0)) as port,
        pytest.raises(IndexRefused, match=r"v2\.2\.16.*too old"),
    ):
        connect(f"http://127.0.0.1:{port.getsockname()[1]}")
