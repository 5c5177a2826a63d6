"""A reindex run on many Ray nodes loses one in each of its steps; it continues, and the counts agree."""

import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from clvr_model.embeddings import Embeddings
from infra.settings import Settings
from infra.store import open_store
from jobs.embed.new_run import EmbedRequest
from jobs.generations.load import verify_generation
from jobs.reindex.job import STEP_FUNCTIONS, reindex
from jobs.reindex.plan import ReindexRequest
from jobs.reindex.steps import ReindexContext

pytestmark = [pytest.mark.slow, pytest.mark.integration]

CROPS, BROKEN = 384, 2


class Stub:
    """A slow network, without weights."""

    batch_size, feature_dim, image_size, fingerprint = 8, 1024, 299, "stub"

    def __call__(self, images: np.ndarray) -> Embeddings:
        time.sleep(0.2)
        count = len(images)
        features = images[:, ::10, ::10].reshape(count, -1)[:, :1024].astype(np.float32) / 255
        return Embeddings(features, np.zeros(count, np.int32), np.ones(count, np.float32))


def jpeg(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.timeout(900)
def test_a_reindex_run_survives_the_loss_of_a_node_in_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = open_store(str(tmp_path / "archive"))
    for number in range(CROPS):
        archive.put(f"dt=2026-11-2{number % 3}/cam=00{number % 4}/{number:05d}.jpg", jpeg(number))
    for number in range(BROKEN):
        archive.put(f"dt=2026-11-22/cam=000/broken-{number}.jpg", b"no picture")
    settings = Settings(runs=str(tmp_path / "data"), milvus=str(tmp_path / "milvus.db"))
    store = open_store(settings.runs)
    node = {"num_cpus": 2, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 1})
    killed: list[str] = []

    def lose_a_node(phase: str) -> None:
        cluster.remove_node(min(cluster.worker_nodes, key=lambda node: node.node_id), allow_graceful=False)
        killed.append(phase)

    def lose_one_while_embedding() -> None:
        while not list((tmp_path / "data" / "runs" / "n" / "parts").glob("part-*")):
            time.sleep(0.02)
        lose_a_node("embed")

    def losing(
        phase: str, step: Callable[[ReindexContext], dict[str, Any]]
    ) -> Callable[[ReindexContext], dict[str, Any]]:
        def run_step(context: ReindexContext) -> dict[str, Any]:
            lose_a_node(phase)
            cluster.add_node(**node)
            return step(context)

        return run_step

    for phase in ("load", "gate", "promote", "retention"):
        monkeypatch.setitem(STEP_FUNCTIONS, phase, losing(phase, STEP_FUNCTIONS[phase]))
    try:
        for _ in range(2):
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        threading.Thread(target=lose_one_while_embedding, daemon=True).start()
        request = ReindexRequest(embed=EmbedRequest(archive.uri, model="stub", actors=4), reindex_id="n")
        done = reindex(request, settings, open_embedder=Stub)
        assert killed == ["embed", "load", "gate", "promote", "retention"]
        check_counts(done.summary, settings)
        print("nodes lost while at:", ", ".join(killed))
        print(
            json.dumps(done.summary["crops"]),
            [(step["name"], step["seconds"]) for step in done.summary["steps"]],
        )
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert store.head("nights/n/done.json") is not None


def check_counts(summary: dict[str, Any], settings: Settings) -> None:
    crops = summary["crops"]
    assert (crops["listed"], crops["embedded"], crops["quarantined"]) == (CROPS + BROKEN, CROPS, BROKEN)
    verified = verify_generation("live", settings)
    assert verified.differences == ()
    assert (verified.indexed, verified.repeated, verified.missing_count) == (CROPS, 0, 0)
