"""A whole night on real servers: the seconds of each step for a small and a ten times larger archive.

python tests/benchmarks/bench_night.py [--sizes 20000 200000]

The archive lies in tar files on SeaweedFS, the index in Milvus Lite; a stub takes the place of the network.
The first run embeds everything. Then one percent changes: half of it are crops of a new tar file, and half
those of a tar file that is written anew.
"""

import argparse
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
from measure import Row, add_json_option, machine, save_rows
from numpy.typing import NDArray
from PIL import Image

from clvr_model.embeddings import Embeddings
from infra.servers import SeaweedFs
from infra.settings import Settings
from infra.store import Store, open_store
from jobs.embed.new_run import EmbedRequest
from jobs.generations.load import verify_generation
from jobs.reindex import plan
from jobs.reindex.job import reindex
from jobs.reindex.plan import ReindexRequest

TARS = 200  # of the first run: one is half a percent


class Stub:
    """Features are pixels."""

    batch_size, feature_dim, image_size, fingerprint = 64, 1024, 299, "stub"

    def __call__(self, images: NDArray[np.uint8]) -> Embeddings:
        """Take every tenth pixel."""
        count = len(images)
        features = images[:, ::9, ::9].reshape(count, -1)[:, :1024].astype(np.float32) / 255
        return Embeddings(features, np.zeros(count, np.int32), np.ones(count, np.float32))


def jpeg(seed: int) -> bytes:
    """Return a small image; ten in a row are alike, as crops of a vehicle."""
    colors = np.random.default_rng(seed // 10).integers(20, 235, (3, 4, 3))
    noise = np.random.default_rng(seed).integers(-20, 21, (24, 32, 3))
    pixels = (np.kron(colors, np.ones((8, 8, 1), np.int64)) + noise).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def put_tar(archive: Store, number: int, crops: int, seed: int) -> None:
    """Write a tar file with so many crops; it replaces one of the same number."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for place in range(crops):
            data = jpeg((seed << 40) + number * crops + place)
            member = tarfile.TarInfo(f"cam=00{place % 8}/{number:05d}-{place:05d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    archive.put(f"dt=2026-11-{1 + number % 28:02d}/{number:05d}.tar", buffer.getvalue())


@contextmanager
def servers(folder: Path) -> Iterator[SeaweedFs]:
    """Start SeaweedFS and a Ray of this machine's cores, two at least."""
    with SeaweedFs.start(folder / "s3") as server:
        os.environ.update(server.environment)  # also of Ray's workers
        ray.init(num_cpus=4, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
        try:
            yield server
        finally:
            ray.shutdown()


def run(size: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the seconds of the steps of the first run, and of the night after one percent changed."""
    with tempfile.TemporaryDirectory(prefix="clvr-night-") as name, servers(Path(name)) as server:
        bucket = server.create_bucket("night")
        archive = open_store(f"{bucket}/archive", server.settings)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda number: put_tar(archive, number, size // TARS, 0), range(TARS)))
        settings = Settings(runs=f"{name}/data", milvus=f"{name}/milvus.db")
        embedding = EmbedRequest(archive.uri, model="stub", actors=2)
        request = ReindexRequest(embed=embedding, reindex_id="first", index_type="IVF_FLAT")
        first = seconds_of(request, settings)
        put_tar(archive, TARS, size // TARS, 0)
        put_tar(archive, TARS - 1, size // TARS, 1)
        night = seconds_of(replace(request, reindex_id="night"), settings)
        verified = verify_generation("live", settings)
        assert not verified.differences, verified.differences
        assert verified.indexed == size + size // TARS
        return first, night


def seconds_of(request: ReindexRequest, settings: Settings) -> dict[str, float]:
    """Run a night, and return the seconds of its steps."""
    started = time.monotonic()
    done = reindex(request, settings, open_embedder=Stub)
    seconds = {step["name"]: float(step["seconds"]) for step in done.summary["steps"]}
    print(f"{request.reindex_id}: {done.summary['crops']}", flush=True)
    return {**seconds, "all": time.monotonic() - started}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000])
    add_json_option(parser)
    args = parser.parse_args()
    plan.MIN_CROPS_TO_SAMPLE = 1 << 40  # a stub has no checkpoint whose speed could be measured
    print(machine())
    nights: dict[int, dict[str, float]] = {}
    for size in args.sizes:
        first, nights[size] = run(size)
        for name, seconds in (("first", first), ("night", nights[size])):
            steps = ", ".join(f"{step} {value:.1f}" for step, value in seconds.items())
            print(f"{size:>10,} crops, {name}: {steps}", flush=True)
    small, *others = args.sizes
    rows = [
        Row(
            f"night of {size // 100:,} changes in {size:,} crops",
            f"{nights[size]['all']:.1f} s",
            f"{small // 100:,} in {small:,}: {nights[small]['all']:.1f} s",
            nights[small]["all"] / nights[size]["all"],
        )
        for size in others
    ]
    save_rows(rows, args.json)


if __name__ == "__main__":
    main()
