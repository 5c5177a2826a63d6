"""A store works on both nodes of a Ray cluster."""

from typing import TYPE_CHECKING

import pytest

from infra.servers import SeaweedFs
from infra.store import Store, open_store

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.integration


def test_both_nodes_write_to_one_bucket(ray_cluster: "Cluster", seaweedfs: SeaweedFs, bucket: str) -> None:
    import ray

    def write(store: Store, key: str) -> str:
        store.put(key, key.encode())
        return ray.get_runtime_context().get_node_id()

    ray.init(address=ray_cluster.address, log_to_driver=False)
    try:
        store = open_store(bucket, seaweedfs.settings)
        on_first = ray.remote(write).options(num_cpus=1).remote(store, "from-any")
        on_second = (
            ray.remote(write).options(num_cpus=1, resources={"second": 1}).remote(store, "from-second")
        )
        nodes = ray.get([on_first, on_second], timeout=60)
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        assert len(alive) == 2
        assert set(nodes) <= set(alive)
        assert sorted(info.key for info in store.list()) == ["from-any", "from-second"]
    finally:
        ray.shutdown()
