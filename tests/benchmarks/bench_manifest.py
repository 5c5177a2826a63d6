"""Time and memory of a manifest of a million crops, from the listing to the parts of a run.

    python tests/benchmarks/bench_manifest.py [--crops 1000000]

The listing is synthetic, so the figures exclude the object store. CPU seconds count all threads; the peak is
that of the whole process.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from measure import Row, add_json_option, machine, save_rows

from index.archive.key_pattern import KeyPattern
from index.archive.listing import list_crops
from index.runs.run import Run
from infra.store import ObjectInfo, Store, StoreSettings, UnusableObject, open_store
from infra.store.backend import Level

PATTERN = KeyPattern("dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg")
DAYS, CAMERAS = 10, 20


class SyntheticArchive(Store):
    """Lists crops that do not exist, in folders of days and cameras."""

    def __init__(self, folder: str, crops: int) -> None:
        super().__init__(folder, StoreSettings())
        self.each = crops // (DAYS * CAMERAS)

    def level(self, prefix: str = "", *, max_objects: int | None = None) -> Level:
        """Return the days, or the cameras of a day."""
        days = [f"dt=2026-11-{day + 10}" for day in range(DAYS)]
        return Level([f"{prefix}/cam={camera:03d}" for camera in range(CAMERAS)] if prefix else days, [])

    def list(
        self,
        prefix: str = "",
        *,
        unusable: Callable[[UnusableObject], object] = lambda found: None,
        after: str = "",
    ) -> Iterator[ObjectInfo]:
        """Yield the crops of a day, or of a camera on a day."""
        written = datetime(2026, 11, 22, tzinfo=UTC)
        for folder in [prefix] if "/" in prefix else self.folders(prefix):
            day, camera = int(folder[11:13]), folder[-3:]
            for number in range(self.each):
                milliseconds = 1_793_000_000_000 + day * 86_400_000 + number * 100
                key = f"{folder}/{milliseconds}_t{camera}{number:07d}.jpg"
                yield ObjectInfo(key, 20_000, f"{number:032x}", written)


ROWS: list[Row] = []


@contextmanager
def measured(name: str) -> Iterator[None]:
    """Print and record wall and CPU seconds of a step, and the peak of memory so far."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:40} {wall:7.1f} s wall {cpu:7.1f} s CPU {peak:8.0f} MiB peak", flush=True)
    ROWS.append(Row(name, f"{cpu:.1f} CPU s, {wall:.1f} s, peak {peak:,.0f} MiB"))


def main() -> None:
    """Measure each step once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crops", type=int, default=1_000_000)
    add_json_option(parser)
    args = parser.parse_args()
    crops = args.crops
    print(machine())
    with tempfile.TemporaryDirectory() as archive, tempfile.TemporaryDirectory() as out:
        for day in range(DAYS):  # only the folders exist
            open_store(f"{archive}/dt=2026-11-{day + 10}").create_bucket()
        synthetic = SyntheticArchive(archive, crops)
        with measured("the synthetic listing alone"):
            listed = sum(1 for folder in synthetic.folders() for _ in synthetic.list(folder))
        with measured(f"listing -> manifest of {listed:,} crops"):
            manifest = list_crops(synthetic, pattern=PATTERN).crops.read()
        print(f"{'':40} {manifest.nbytes / 2**20:7.0f} MiB of Arrow columns")
        given = {"manifest": manifest, "archive": archive, "fingerprint": "f", "model": "m", "settings": {}}
        with measured("manifest -> run (unique, digest, Parquet)"):
            run = Run.create(open_store(out), "bench", **given)
        with measured("the same again"):
            Run.create(open_store(out), "bench", **given)
        with measured("100 parts, read one by one"):
            for part in range(min(100, run.info.parts)):
                run.part_manifest(part)
        with measured("the whole manifest, checked"):
            run.manifest()
    save_rows(ROWS, args.json)


if __name__ == "__main__":
    main()
