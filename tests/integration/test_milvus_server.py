"""The local Milvus server imports from S3, and keeps its rows when it is killed and restarted."""

import os
import time
import uuid
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pymilvus import Collection, MilvusClient, MilvusException, connections, utility

from infra.servers import MilvusServer, SeaweedFs
from infra.store import open_store

pytestmark = pytest.mark.integration


def _parquet(path: Path, rows: int) -> Path:
    vectors = np.random.default_rng(1).random((rows, 8), dtype=np.float32)
    table = pa.table(
        {
            "id": pa.array(range(rows), pa.int64()),
            "vector": pa.array(list(vectors), pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, path)
    return path


def test_the_server_is_milvus_2_3_5(milvus_server: MilvusServer) -> None:
    client = MilvusClient(milvus_server.uri, token=milvus_server.token)
    assert client.get_server_version().startswith("v2.3.5")
    client.close()


def test_a_server_of_root_has_a_private_network(milvus_server: MilvusServer) -> None:
    if os.geteuid() == 0 and milvus_server.network is not None:
        assert milvus_server.uri.startswith("http://198.1")
        assert milvus_server.token == ""
    else:
        assert milvus_server.token.startswith("root:")


def test_bulk_import_reads_from_the_bucket(
    milvus_server: MilvusServer, seaweedfs: SeaweedFs, tmp_path: Path
) -> None:
    open_store(f"s3://{milvus_server.bucket}", seaweedfs.settings).put(
        "shards/one.parquet", _parquet(tmp_path / "one.parquet", 500)
    )
    name = f"c{uuid.uuid4().hex[:8]}"
    client = MilvusClient(milvus_server.uri, token=milvus_server.token)
    client.create_collection(name, dimension=8, metric_type="L2")
    alias = uuid.uuid4().hex
    connections.connect(alias, uri=milvus_server.uri, token=milvus_server.token)
    try:
        assert Collection(name, using=alias).name == name
        task = utility.do_bulk_insert(name, ["shards/one.parquet"], using=alias)
        deadline = time.monotonic() + 90
        while client.query(name, filter="id >= 0", output_fields=["count(*)"])[0]["count(*)"] < 500:
            state = utility.get_bulk_insert_state(task, using=alias)
            assert state.state_name != "Failed", state
            assert time.monotonic() < deadline, state
            time.sleep(0.5)
    finally:
        client.drop_collection(name)
        connections.disconnect(alias)
        client.close()


def test_rows_survive_a_kill_at_the_same_address(seaweedfs: SeaweedFs, tmp_path: Path) -> None:
    with MilvusServer.start(tmp_path / "m", storage=seaweedfs, bucket="kill-test") as server:
        before = server.uri
        client = MilvusClient(server.uri, token=server.token)
        client.create_collection("crops", dimension=4)
        client.insert("crops", [{"id": 1, "vector": [1.0] * 4}])
        server.kill()
        with pytest.raises((MilvusException, grpc.RpcError)):  # pymilvus lets some of gRPC's own through
            client.list_collections(timeout=2)
        client.close()
        server.restart()
        assert server.uri == before
        client = MilvusClient(server.uri, token=server.token)
        assert client.list_collections() == ["crops"]
        client.close()


def test_a_server_without_a_private_network_needs_its_password(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="all interfaces"),
        MilvusServer.start(tmp_path / "m", isolate=False) as server,
    ):
        for stranger in ("", "root:Milvus"):
            with pytest.raises((MilvusException, grpc.RpcError)):
                MilvusClient(server.uri, token=stranger, timeout=3).list_collections()
        server.kill()
        server.restart()
        client = MilvusClient(server.uri, token=server.token)
        assert client.list_collections() == []
        client.close()


def test_the_settings_file_with_the_keys_is_private(milvus_server: MilvusServer) -> None:
    assert (milvus_server.folder / "configs" / "milvus.yaml").stat().st_mode & 0o077 == 0
