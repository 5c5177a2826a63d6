"""Real servers for the whole session; what uses one of them is marked `integration`."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.servers import MilvusServer, SeaweedFs

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

# Before anything imports Ray: tests report no usage to anybody.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

_SERVER_FIXTURES = {"seaweedfs", "bucket", "milvus_server", "ray_cluster"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _SERVER_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.integration)


def _sweep() -> None:
    """Remove what sessions that were killed left behind; their servers died with them."""
    for folder in Path(tempfile.gettempdir()).glob("clvr-servers-*-*"):
        if not Path(f"/proc/{folder.name.split('-')[2]}").exists():
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    # Not pytest's own: its paths are too long for SeaweedFS' sockets, and it keeps the last three.
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"clvr-servers-{os.getpid()}-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def seaweedfs(server_folder: Path) -> Iterator[SeaweedFs]:
    """A real S3 server on the loopback. `open_store(uri, seaweedfs.settings)` reaches it."""
    with SeaweedFs.start(server_folder / "seaweedfs") as server:
        yield server


@pytest.fixture
def bucket(seaweedfs: SeaweedFs) -> str:
    """The URI of an empty bucket of one's own."""
    return seaweedfs.create_bucket(f"test-{secrets.token_hex(6)}")


@pytest.fixture(scope="session")
def milvus_server(server_folder: Path, seaweedfs: SeaweedFs) -> Iterator[MilvusServer]:
    """A real Milvus 2.3.5; bulk import reads keys of the bucket `milvus_server.bucket` of `seaweedfs`."""
    with MilvusServer.start(server_folder / "milvus", storage=seaweedfs) as server:
        yield server


@pytest.fixture(scope="session")
def ray_cluster() -> "Iterator[Cluster]":
    """A Ray cluster of two nodes on this machine; connect with `ray.init(address=ray_cluster.address)`.

    Each node claims 4 CPUs whatever the machine has, because Ray Data waits for ever when its actors leave
    no CPU for its readers. The second node offers one unit of the resource `second`.
    """
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 4, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(wait=True, resources={"second": 1}, **node)
        yield cluster
    finally:
        cluster.shutdown()
