"""What a night costs when the archive grows: CPU seconds and peak memory of every step, each in a process.

    python tests/benchmarks/bench_scale.py [--sizes 1000000 3000000 10000000] [--changed 1000]

The crops do not exist: the listing is synthetic, and the vectors have one number, since no step here reads
them (the join of parts copies them, 4 KB a crop). Every day has 20,000
crops on 20 cameras, so an archive of 10 million has 500 days. The night has `--changed` new crops on a new
day, and as many changed ones in its look-back window of three days.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measure import Row, add_json_option, machine, save_rows
from stub_index import StubIndex

from index.catalogue.catalogue import open_catalogue
from index.documents import utc_now
from index.generations import load_plan, records
from index.generations.keys import compare_keys
from index.generations.load import LoadOptions
from index.generations.upsert import load_into_live
from index.milvus.collection import Generation
from index.milvus.index_types import IndexSpec
from index.parquet import write_table
from index.runs import order, shards
from index.runs.accounting import QuarantinedCrop, count_causes, quarantine_table
from index.runs.balance import check_run
from index.runs.records import RunSummary
from index.runs.run import Run
from infra.settings import load_settings
from infra.store import ObjectInfo, Store, StoreSettings, UnusableObject, open_store
from infra.store.backend import Level
from jobs.embed.discovery import CropSelection, discover
from jobs.embed.listing import PlanningTasks

CROPS_PER_DAY, CAMERAS, LOOKBACK_DAYS = 20_000, 20, 3
FIRST_DAY = date(2020, 1, 1)
WRITTEN = datetime(2026, 11, 22, tzinfo=UTC)
LIVE = Generation("live_f", "live", "f", 1, ("all",), IndexSpec("HNSW", {}), "2026-11-22", dimension=1)


class SyntheticArchive(Store):
    """Lists crops that do not exist. changed: how many crops of the newest old day have another etag."""

    def __init__(self, folder: str, crops: int, new: int = 0, changed: int = 0) -> None:
        super().__init__(folder, StoreSettings())
        self.given = crops, new, changed
        days = crops // CROPS_PER_DAY
        self.crops_of = {_folder(day): CROPS_PER_DAY for day in range(days)}
        self.changed = {_folder(days - 1): changed}
        if new:
            self.crops_of[_folder(days)] = new

    def __reduce__(self) -> tuple[Any, ...]:
        return SyntheticArchive, (self.uri, *self.given)

    def ensure(self) -> None:
        """Accept the root: nothing can be missing."""

    def level(self, prefix: str = "", *, max_objects: int | None = None) -> Level:
        """Return the days, or the cameras of a day."""
        if not prefix:
            return Level(sorted(self.crops_of), [])
        return Level([f"{prefix}/cam={camera:03d}" for camera in range(CAMERAS)], [])

    def list(
        self,
        prefix: str = "",
        *,
        unusable: Callable[[UnusableObject], object] = lambda found: None,
        after: str = "",
    ) -> Iterator[ObjectInfo]:
        """Yield the crops of a day, or of a camera on a day."""
        for folder in [prefix] if "/" in prefix else self.level(prefix).folders:
            day, _, camera = folder.partition("/")
            changed = self.changed.get(day, 0)
            for number in range(int(camera[4:]), self.crops_of[day], CAMERAS):
                etag = f"{number + (1 << 100 if number < changed else 0):032x}"
                yield ObjectInfo(f"{folder}/1793{number:09d}_t{number:07d}.jpg", 20_000, etag, WRITTEN)


def _folder(day: int) -> str:
    return f"dt={FIRST_DAY + timedelta(day)}"


def discovered(
    runs: Store, archive: Store, run_id: str, since: str | None = None, tasks: PlanningTasks | None = None
) -> Run:
    """List, compare and create a run, as the planning of `clvr embed` does."""
    selection = CropSelection(archive.uri, since_run=since, lookback_days=LOOKBACK_DAYS if since else None)
    discovery = discover(selection, archive, runs, tasks=tasks)
    return Run.create(
        runs,
        run_id,
        manifest=discovery.crops,
        archive=archive.uri,
        fingerprint="f",
        model="m",
        settings={"since_run": since},
        vanished=discovery.changes.vanished if discovery.changes else (),
    )


def plan_all(where: Path, crops: int, changed: int) -> None:
    """Plan the whole archive."""
    archive = SyntheticArchive(str(where / "archive"), crops)
    discovered(open_store(str(where / "runs")), archive, "all")


def plan_all_by_tasks(where: Path, crops: int, changed: int) -> dict[str, float]:
    """Plan the whole archive by Ray tasks; return their CPU seconds, and the peak memory of one."""
    from jobs.runtime.ray_cluster import connect, map_in_ray_tasks  # the other steps do without Ray

    archive = SyntheticArchive(str(where / "archive"), crops)
    figures = {"tasks_cpu": 0.0, "tasks_peak": 0.0}

    def each(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for result, cpu, peak in map_in_ray_tasks(Measured(function), items):
            figures["tasks_cpu"] += cpu
            figures["tasks_peak"] = max(figures["tasks_peak"], peak)
            yield result

    connect(load_settings({}))
    with tempfile.TemporaryDirectory() as folder, PlanningTasks(each) as tasks:
        run = discovered(open_store(folder), archive, "all", tasks=tasks)
    assert run.info.manifest == Run.open(open_store(str(where / "runs")), "all").info.manifest
    return figures


@dataclass(frozen=True)
class Measured:
    """A function that also returns its CPU seconds, and the peak memory of its process in MiB."""

    function: Callable[[Any], Any]

    def __call__(self, item: Any) -> tuple[Any, float, float]:
        """Call it."""
        cpu = time.process_time()
        result = self.function(item)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return result, time.process_time() - cpu, peak


def embed_all(where: Path, crops: int, changed: int) -> None:
    """Write its shards at once, without parts, and its result; this is not measured."""
    run = Run.open(open_store(str(where / "runs")), "all")
    info, folder = run.info, run.folder
    written, quarantine, causes = [], [], Counter[str]()
    for number in range(info.shards):
        first = number * info.parts_per_shard
        parts = range(first, min(first + info.parts_per_shard, info.parts))
        good, bad = outcome(pa.concat_tables(map(folder.part_rows, parts)))
        stated = {"fingerprint": info.fingerprint, "run_id": info.run_id}
        written.append(shards.write_shard(run.store, folder.shard_key(number), good, **stated))
        key = folder.quarantine_key(number)
        quarantine.append(write_table(run.store, key, bad, metadata=folder.footer))
        causes += count_causes(bad)
    summary = RunSummary(
        **{name: getattr(info, name) for name in ("run_id", "archive", "fingerprint", "manifest", "listed")},
        embedded=sum(file.rows for file in written),
        quarantined=causes.total(),
        duplicates=info.duplicates,
        causes=dict(causes),
        shards=tuple(map(folder.relative, written)),
        quarantine=tuple(map(folder.relative, quarantine)),
        started=info.created,
        finished=info.created,
        settings=info.settings,
    )
    run.store.put(folder.done_key(), summary.to_json())


def index_all(where: Path, crops: int, changed: int) -> None:
    """Make the live generation of it: crop_ids in a file, and the record; this is not measured."""
    run = Run.open(open_store(str(where / "runs")), "all")
    ids = [shards.shard_ids(run.store, info, fingerprint="f", run_id="all") for info in run.shards()]
    np.save(where / "index.npy", np.sort(np.concatenate(ids)))
    record = records.GenerationRecord(
        name=LIVE.name,
        alias=LIVE.alias,
        fingerprint="f",
        run_ids=("all",),
        rows=run.summary.embedded,
        target="stream_insert",
        state="ready",
        updated=utc_now(),
    )
    records.create(run.store, record)


def compare_all(where: Path, crops: int, changed: int) -> None:
    """Plan a load of everything, and compare every key of the index with it, as a load and `verify` do."""
    runs = open_store(str(where / "runs"))
    plan = load_plan.plan_load([Run.open(runs, "all")], latest_wins=True, verify=False)
    found = compare_keys(StubIndex(where / "index.npy", LIVE), LIVE.name, plan)
    assert found.indexed == plan.rows and not found.any, found


def load_night(where: Path, crops: int, changed: int) -> None:
    """Load the night into the live generation; the index holds crop_ids alone."""
    runs = open_store(str(where / "runs"))
    done = load_into_live(
        StubIndex(where / "index.npy", LIVE),
        runs,
        [Run.open(runs, "night")],
        lambda run_ids: [Run.open(runs, run_id) for run_id in run_ids],
        alias=LIVE.alias,
        options=LoadOptions(),
    )
    assert not done.promote_next and done.rows_after > done.rows_before, done


def prove_all(where: Path, crops: int, changed: int) -> None:
    """Prove the counts, shard by shard."""
    check_run(Run.open(open_store(str(where / "runs")), "all"))


def catalogue_all(where: Path, crops: int, changed: int) -> None:
    """Make the catalogue of the whole archive."""
    open_catalogue(open_store(str(where / "runs")), "all")


def plan_night(where: Path, crops: int, changed: int) -> None:
    """Plan the night."""
    archive = SyntheticArchive(str(where / "archive"), crops, changed, changed)
    run = discovered(open_store(str(where / "runs")), archive, "night", "all")
    assert run.info.rows == 2 * changed, run.info


def embed_night(where: Path, crops: int, changed: int) -> None:
    """Embed the crops of the night, of zeros."""
    embed(Run.open(open_store(str(where / "runs")), "night"))


def finish_night(where: Path, crops: int, changed: int) -> None:
    """Join and prove the night."""
    Run.open(open_store(str(where / "runs")), "night").finish()


def catalogue_night(where: Path, crops: int, changed: int) -> None:
    """Carry the catalogue on to the night."""
    open_catalogue(open_store(str(where / "runs")), "night")


def status_night(where: Path, crops: int, changed: int) -> None:
    """Check the counts of the night."""
    from jobs.embed.status import run_status

    run_status("night", load_settings({"runs": str(where / "runs")}))


STEPS: dict[str, Callable[[Path, int, int], dict[str, float] | None]] = {
    "plan everything": plan_all,
    "plan everything by tasks": plan_all_by_tasks,
    "(embed everything)": embed_all,
    "(index everything)": index_all,
    "prove everything": prove_all,
    "plan a load of everything, compare every key": compare_all,
    "catalogue of everything": catalogue_all,
    "plan the night": plan_night,
    "embed the night": embed_night,
    "compact and prove the night": finish_night,
    "catalogue of the night": catalogue_night,
    "load the night": load_night,
    "status of the night": status_night,
}


def embed(run: Run) -> None:
    """Embed a run by a network that returns one zero; one crop in a thousand is broken."""
    for part in run.pending_parts():
        run.write_part(part, *outcome(run.part_manifest(part)))


def outcome(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the rows of a shard and of its quarantine."""
    is_bad = np.asarray(rows["crop_id"]) % 1000 == 0
    good, bad = rows.filter(pa.array(~is_bad)), rows.filter(pa.array(is_bad))
    count = good.num_rows
    zeros = np.zeros((count, 1), np.float32)
    shard = shards.shard_table(good, zeros, np.zeros(count, np.int32), np.ones(count, np.float32))
    pairs = bad.select(["crop_id", "uri"]).to_pylist()
    return shard, quarantine_table(QuarantinedCrop(**pair, stage="decode", cause="x") for pair in pairs)


def one(step: str, where: str, crops: int, changed: int) -> None:
    """Do one step, and print its CPU seconds, wall seconds and peak memory as JSON."""
    shards.EMBEDDING_DIM = 1  # type: ignore[misc]
    for function in (shards.write_shard, shards.check_values, shards.check_vectors):
        assert function.__kwdefaults__ is not None
        function.__kwdefaults__["dimension"] = 1
    shards.vectors_of.__defaults__ = (1,)
    load_plan.EMBEDDING_DIM = order.EMBEDDING_DIM = 1  # type: ignore[misc]
    order._ROW_BYTES = 4
    started, cpu = time.perf_counter(), time.process_time()
    further = STEPS[step](Path(where), crops, changed) or {}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "cpu": time.process_time() - cpu,
                "wall": time.perf_counter() - started,
                "peak": usage.ru_maxrss / 1024,
            }
            | further
        )
    )


def main() -> None:
    """Measure each step at each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000_000, 3_000_000, 10_000_000])
    parser.add_argument("--changed", type=int, default=1000)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--where", help=argparse.SUPPRESS)
    add_json_option(parser)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.where, args.sizes[0], args.changed)
        return
    print(machine())
    rows = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as where:
            for step in STEPS:
                command = [sys.executable, __file__, "--one", step, "--where", where]
                command += ["--sizes", str(size), "--changed", str(args.changed)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                figures = json.loads(done.stdout.splitlines()[-1])
                text = f"{figures['cpu']:.2f} CPU s, {figures['wall']:.1f} s, peak {figures['peak']:,.0f} MiB"
                if "tasks_cpu" in figures:
                    text += f"; tasks {figures['tasks_cpu']:.2f} CPU s, peak {figures['tasks_peak']:,.0f} MiB"
                print(f"{size:>12,} {step:44} {text}", flush=True)
                rows.append(Row(f"{size:,} crops: {step}", text))
    save_rows(rows, args.json)


if __name__ == "__main__":
    main()
