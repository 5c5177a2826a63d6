"""A driver, actor, decoder or node of `clvr embed` is killed: each crop is still embedded exactly once.

The job is the real one, on Ray. Only the network is a stub, which logs every image that it embeds.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from index.archive.manifest import crop_id_of
from index.runs.accounting import crop_ids
from index.runs.run import Run, list_runs
from index.runs.shards import read_shards
from infra.store import open_store

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.integration

CROPS, BROKEN, ROWS_PER_PART, BATCH = 192, 2, 16, 8

DRIVER = """
    import os, sys, time
    from pathlib import Path
    import numpy as np
    from clvr_model.embeddings import Embeddings
    from infra.settings import load_settings
    from jobs.embed.job import embed
    from jobs.embed.new_run import EmbedRequest

    archive, runs, address, log = sys.argv[1:]

    class Stub:
        batch_size, feature_dim, image_size, fingerprint = 8, 1024, 299, "stub"

        def __init__(self):
            Path(log, f"pid-{os.getpid()}").touch()

        def __call__(self, images):
            time.sleep(0.25)
            with Path(log, "rows").open("a") as file:
                file.write("x" * len(images))
            means = images.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)
            count = len(images)
            return Embeddings(
                np.repeat(means[:, None], 1024, axis=1), np.zeros(count, np.int32), np.ones(count, np.float32)
            )

    request = EmbedRequest(archive, model="stub", actors=2, rows_per_part=16, max_quarantine_rate=0.5)
    summary = embed(request, load_settings({"runs": runs, "ray": address}), open_embedder=Stub)
    print(summary.embedded, summary.quarantined)
"""


@dataclass(frozen=True)
class Job:
    """An archive, a folder of runs, and the driver that embeds the archive into a run."""

    folder: Path
    address: str

    def start(self) -> subprocess.Popen[str]:
        (self.folder / "log").mkdir(exist_ok=True)
        places = [str(self.folder / name) for name in ("archive", "runs")]
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(DRIVER),
                *places,
                self.address,
                str(self.folder / "log"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def actor_pids(self) -> list[int]:
        names = [path.name for path in (self.folder / "log").glob("pid-*")]
        return [int(name[4:]) for name in names if Path(f"/proc/{name[4:]}").exists()]

    def decoder_pids(self, actor: int) -> list[int]:
        """The decoder processes of an actor, none of an actor that has ended."""
        try:
            tasks = list(Path(f"/proc/{actor}/task").iterdir())
            children = {pid: Path(f"/proc/{pid}/cmdline") for task in tasks for pid in _children(task)}
            return [pid for pid, command in children.items() if b"decoder_process" in command.read_bytes()]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def embedded_rows(self) -> int:
        log = self.folder / "log" / "rows"
        return log.stat().st_size if log.exists() else 0

    def run_parts(self) -> list[Path]:
        return list((self.folder / "runs").glob("runs/*/parts/part-*.json"))

    def run(self) -> Run:
        (run,) = list_runs(open_store(str(self.folder / "runs")))
        return run


def _children(task: Path) -> list[int]:
    return [int(pid) for pid in task.joinpath("children").read_text().split()]


@pytest.fixture(scope="module")
def small_cluster() -> "Iterator[Cluster]":
    """Two nodes of one CPU each, which hold one actor each."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(wait=True, **node)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def job(tmp_path: Path, small_cluster: "Cluster") -> Job:
    folder = tmp_path / "archive" / "dt=2026-11-22"
    folder.mkdir(parents=True)
    for number in range(CROPS):
        shade = np.full((24, 32, 3), number, np.uint8)
        Image.fromarray(shade).save(folder / f"{number:04d}.jpg")
    for number in range(BROKEN):
        (folder / f"{number * 90:04d}.jpg").write_bytes(b"no picture")
    return Job(tmp_path, small_cluster.address)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"the driver ended too early: {process.communicate()[1][-3000:]}")
        assert time.monotonic() < end, "the job makes no progress"
        time.sleep(0.05)


def finish(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-3000:]
    # Ray talks on stdout, too, when a worker dies.
    assert f"{CROPS - BROKEN} {BROKEN}" in out.splitlines(), out


def check_accounting(job: Job) -> None:
    """Check that each crop is once in the shards, with its own feature, or once in the quarantine."""
    run = job.run()
    assert run.summary.listed == run.summary.embedded + run.summary.quarantined + run.summary.duplicates
    rows = list(read_shards(run.store, run.shard_keys()))
    ids = np.concatenate([crop_ids(batch) for batch in rows] + [crop_ids(run.quarantine())])
    keys = sorted(path for path in (job.folder / "archive").rglob("*.jpg"))
    assert sorted(ids.tolist()) == sorted(crop_id_of(str(path.resolve())) for path in keys)
    for batch in rows:
        for uri, vector in zip(batch["uri"].to_pylist(), batch["embedding"], strict=True):
            assert abs(vector[0].as_py() - int(Path(uri).stem)) < 2
    assert run.pending_parts() == []


def half_way(job: Job) -> bool:
    return len(job.run_parts()) >= 3 and job.embedded_rows() >= CROPS // 3


def recomputed(job: Job) -> int:
    return job.embedded_rows() - (CROPS - BROKEN)


def test_a_killed_driver_is_continued_by_the_same_command(job: Job) -> None:
    first = job.start()
    wait_for(lambda: half_way(job), first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not job.run().finished
    done = len(job.run().folder.done_parts())
    finish(job.start())
    check_accounting(job)
    print(f"driver killed with {done} of 12 parts done: {recomputed(job)} rows computed again")
    assert 0 <= recomputed(job) <= 3 * ROWS_PER_PART


def test_a_killed_decoder_and_a_killed_actor_are_replaced_and_the_run_goes_on(job: Job) -> None:
    process = job.start()
    wait_for(lambda: len(job.run_parts()) > 0, process)
    actors = [pid for pid in job.actor_pids() if pid != process.pid]  # the driver asks the stub, too
    for actor in actors:
        for decoder in job.decoder_pids(actor):
            os.kill(decoder, signal.SIGKILL)
    # On a slow machine a killed decoder may not be replaced yet: wait for an actor that has one.
    wait_for(lambda: half_way(job) and any(map(job.decoder_pids, actors)), process)
    actor, decoders = next((pid, found) for pid in actors if (found := job.decoder_pids(pid)))
    os.kill(actor, signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in decoders), process)
    finish(process)
    check_accounting(job)
    print(f"actor killed: {recomputed(job)} rows computed again")
    assert 0 <= recomputed(job) <= 2 * ROWS_PER_PART


@pytest.mark.slow
def test_a_lost_node_repeats_only_its_parts(job: Job, small_cluster: "Cluster") -> None:
    process = job.start()
    wait_for(lambda: half_way(job), process)
    node = next(node for node in small_cluster.worker_nodes)
    small_cluster.remove_node(node, allow_graceful=False)
    finish(process)
    check_accounting(job)
    print(f"node killed: {recomputed(job)} rows computed again")
    assert 0 <= recomputed(job) <= 2 * ROWS_PER_PART
