"""Commands of a user from crops in S3 to a CMC, on two Ray nodes and a Milvus server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from json_documents import read_document
from ray.cluster_utils import Cluster

from clvr_model.checkpoint import Card, save_checkpoint
from clvr_model.network import Architecture, Clvr
from clvr_model.synthetic.archive import generate, write_labels
from clvr_model.synthetic.trips import ArchiveSpec
from infra.servers import MilvusServer, SeaweedFs
from infra.store import open_store

SPEC = ArchiveSpec(seed=11, models=3, vehicles_per_model=4, sightings_per_vehicle=4, cameras=4)
KEYS = "dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg"


@pytest.fixture
def two_nodes(seaweedfs: SeaweedFs, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray cluster of two nodes that have the credentials of S3 in their environment."""
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(wait=True, **node)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def environment(
    tmp_path: Path, bucket: str, seaweedfs: SeaweedFs, milvus_server: MilvusServer, two_nodes: str
) -> dict[str, str]:
    """Settings of 48 crops and a broken one in S3, labels, a checkpoint, Milvus and Ray."""
    archive = open_store(f"{bucket}/archive", seaweedfs.settings)
    generate(archive, SPEC)
    archive.put("dt=2026-01-05/cam=001/1767614400000_broken.jpg", b"not a picture")
    write_labels(open_store(f"{bucket}/labels", seaweedfs.settings), SPEC)
    model = tmp_path / "model"
    save_checkpoint(str(model), Clvr.of(Architecture(classes=3), seed=2), Card(label_ids=(0, 1, 2)))
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("CLVR_", "AWS_"))},
        **seaweedfs.environment,
        "CLVR_RUNS": f"{bucket}/data",
        "CLVR_MILVUS": milvus_server.uri,
        "CLVR_MILVUS_TOKEN": milvus_server.token,
        "CLVR_ALIAS": "end_to_end",
        "CLVR_RAY": two_nodes,
        "ARCHIVE": f"{bucket}/archive",
        "LABELS": f"{bucket}/labels/labels.parquet",
        "MODEL": str(model),
    }


def test_commands_lead_from_crops_in_s3_to_ranks_and_a_cmc(
    environment: dict[str, str], seaweedfs: SeaweedFs, tmp_path: Path
) -> None:
    outputs: list[str] = []

    def clvr(*arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *arguments, "--json"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        outputs.append(done.stdout + done.stderr)
        assert done.returncode == 0, done.stderr
        return read_document(arguments, done.stdout)

    run = clvr(
        "embed", environment["ARCHIVE"], "--model", environment["MODEL"], "--max-quarantine-rate", "0.1",
        "--key-pattern", KEYS, "--labels", environment["LABELS"],
    )  # fmt: skip
    assert (run["listed"], run["embedded"], run["quarantined"], run["duplicates"]) == (49, 48, 1, 0)

    status = clvr("status", "latest")
    assert status["finished"]
    assert status["causes"] == {"decode/not-a-picture": 1}

    generation = clvr("load", "latest")["generation"]
    gate = clvr("promote", "latest")
    assert gate["generation"] == generation["name"]
    assert gate["rows_indexed"] == gate["rows_expected"] == 48
    assert [row["live"] for row in clvr("generations")] == [True]

    figures = clvr("evaluate", "latest", "--protocol", "vehicleid-paper", "--repeats", "2")
    assert figures["lists"][0]["labelled"] == 48

    keys = [item.key for item in open_store(environment["ARCHIVE"], seaweedfs.settings).list()]
    first = next(key for key in keys if "broken" not in key)
    result = clvr("search", f"{environment['ARCHIVE']}/{first}", "--top", "5")
    assert result["generation"] == generation["name"]
    assert result["answers"], "a probe of the archive finds other crops"

    # A Milvus server in a network of its own asks for no token.
    for secret in filter(None, (environment["CLVR_MILVUS_TOKEN"], environment["AWS_SECRET_ACCESS_KEY"])):
        assert not any(secret in text for text in outputs), "a secret was printed"
