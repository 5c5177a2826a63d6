"""The kinds of stored objects, and the call of the product that reads each of them."""

import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clvr_model.checkpoint import load_checkpoint
from index.filters import Filters
from index.generations import records
from index.generations.erasure import read_receipt
from index.generations.load_plan import plan_load
from index.lock import acquire
from index.outputs import list_outputs
from index.runs.accounting import crop_ids, quarantine_table
from index.runs.balance import check_run
from index.runs.purge import count_erased
from index.runs.run import Run, list_runs
from index.runs.shards import read_shards, shard_table, vectors_of
from index.runs.tombstones import erasure_ids, read_tombstones
from index.search.calibration import calibration_of
from index.search.scan_source import ScanSource
from infra.errors import Locked
from infra.settings import load_settings
from infra.store import Store, open_store
from infra.store.sealed import seal, unseal
from jobs.embed.status import run_status
from jobs.evaluate.dataset import labelled_run
from jobs.reindex.state import list_reindex_runs
from jobs.sweep.audit import AuditLog
from jobs.sweep.state import Sweep

Read = Callable[[Path, Path], Any]


@dataclass(frozen=True)
class Kind:
    """`files` and `read` take the folder of the try and the root of the world.

    changes: folders, relative to the try, that reading changes. names: further words by which an error may
    name the object.
    """

    name: str
    state: str
    files: Callable[[Path, Path], Iterable[Path]]
    read: Read
    prepare: Callable[[Path, Path], None] | None = None
    changes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def _store(here: Path) -> Store:
    return open_store(str(here / "runs"))


def _run(here: Path, run_id: str = "r1") -> Run:
    return Run.open(_store(here), run_id)


def _unfinished(here: Path, root: Path) -> None:
    """Make run p: all parts written, none compacted, with the rows of r1."""
    store, old = _store(here), _run(here)
    run = Run.create(
        store,
        "p",
        manifest=old.manifest(),
        archive=old.info.archive,
        fingerprint=old.fingerprint,
        model=old.info.model,
        settings={},
        rows_per_part=32,
        rows_per_shard=128,
    )
    rows: dict[int, tuple[Any, int, float]] = {}
    for batch in read_shards(store, old.shard_keys()):
        columns = (batch.column(name).to_pylist() for name in ("crop_id", "model_id", "model_confidence"))
        for crop_id, model, confidence, vector in zip(*columns, vectors_of(batch), strict=True):
            rows[crop_id] = (vector.copy(), model, confidence)
    refused = old.quarantine()
    for part in run.pending_parts():
        crops = run.part_manifest(part)
        good = [number for number, crop_id in enumerate(crop_ids(crops).tolist()) if crop_id in rows]
        chosen = [rows[crop_id] for crop_id in crop_ids(crops)[good].tolist()]
        shard = shard_table(
            crops.take(good),
            np.stack([vector for vector, _, _ in chosen]),
            np.array([model for _, model, _ in chosen], np.int32),
            np.array([confidence for _, _, confidence in chosen], np.float32),
        )
        bad = np.isin(crop_ids(refused), crop_ids(crops))
        run.write_part(part, shard, refused.filter(bad) if bad.any() else quarantine_table())


def _compacted(here: Path, root: Path) -> None:
    _unfinished(here, root)
    run = _run(here, "p")
    for shard in range(run.info.shards):
        run.compact(shard)


def _finish(here: Path, root: Path) -> Any:
    run = _run(here, "p")
    summary = asdict(run.finish())
    counts = {name: summary[name] for name in ("listed", "embedded", "quarantined", "causes")}
    return counts, [batch.to_pylist() for batch in read_shards(run.store, run.shard_keys())], run.quarantine()


def _plan(here: Path, run_ids: tuple[str, ...]) -> Any:
    plan = plan_load([_run(here, run_id) for run_id in run_ids], latest_wins=True)
    return plan.rows, plan.vanished, plan.superseded, [batch.to_pylist() for batch in plan.batches(1000)]


def _search(here: Path, root: Path) -> Any:
    features = np.load(root / "reference.npz")
    names = [name for name in features.files if name != "listed"]
    probes = np.stack([features[name] for name in names[::40]])
    return ScanSource([_run(here)]).nearest(probes, 10, Filters())


def _evaluate(here: Path, root: Path) -> Any:
    labelled = labelled_run(_run(here))
    return labelled.features, labelled.vehicle_ids, labelled.crops


def _hold_lock(here: Path, root: Path) -> None:
    store = _store(here)
    with acquire(store, "held", f"attack {secrets.token_hex(4)}", seconds=3600):
        data = unseal(store.get("locks/held.json"), "the lock")
    data |= {"released": False, "process": "another machine", "expires": time.time() + 3600}
    store.put("locks/held.json", seal(data))


def _take_lock(here: Path, root: Path) -> str:
    try:
        with acquire(_store(here), "held", "a second owner"):
            return "taken"
    except Locked:
        return "refused"


def _checkpoint(here: Path, root: Path) -> Any:
    checkpoint = load_checkpoint(str(here / "model"))
    weights = [(name, tensor.numpy()) for name, tensor in checkpoint.network.state_dict().items()]
    return checkpoint.fingerprint, asdict(checkpoint.card), weights


def _copy_model(here: Path, root: Path) -> None:
    shutil.copytree(root / "model", here / "model")


def _sweep(here: Path, root: Path) -> Any:
    sweep = Sweep.open(open_store(str(here / "out")))
    assert sweep is not None
    parts = range(sweep.info.parts)
    return (
        asdict(sweep.info),
        [sweep.probes(part) for part in parts],
        list(sweep.outcomes()),
        [sweep.results(part) for part in parts],
        sweep.pending(),
        asdict(sweep.summary) if sweep.summary else None,
    )


def _nights(here: Path, root: Path) -> Any:
    return [
        (
            asdict(run.inputs),
            run.created,
            [asdict(step) for step in run.steps()],
            [asdict(attempt) for attempt in run.attempts()],
            run.read_summary(),
            run.finished,
        )
        for run in list_reindex_runs(_store(here))
    ]


def _receipts(here: Path, root: Path) -> Any:
    return [read_receipt(_store(here), name).to_json() for name in erasure_ids(_store(here))]


def _tombstones(here: Path, root: Path) -> Any:
    erased = read_tombstones(_store(here))
    listed = np.load(root / "reference.npz")["listed"]
    (folder,) = erased.folders
    return erased.is_erased(listed), sorted(folder.content_hashes), erased.is_erased_content(b"1")


def _purge_reads(here: Path, root: Path) -> Any:
    """What a purge finds in the runs: the read that decides which rows are written again."""
    erased = read_tombstones(_store(here))
    return [asdict(count_erased(run, erased)) for run in list_runs(_store(here))]


def _balances(here: Path, root: Path) -> Any:
    return [asdict(check_run(run)) for run in list_runs(_store(here))]


def _outputs(here: Path, root: Path) -> Any:
    return sorted(map(repr, list_outputs(_store(here))))


def _calibration(here: Path, root: Path) -> Any:
    return calibration_of(_store(here), _run(here).fingerprint)


def _below(pattern: str) -> Callable[[Path, Path], list[Path]]:
    return lambda here, root: [path for path in here.glob(pattern) if path.is_file()]


def _part_manifests(here: Path, root: Path) -> Any:
    run = _run(here, "p")
    return [run.part_manifest(part) for part in range(run.info.parts)]


PART = ("part 0", "part 1", "part 2", "part 3", "part 4", "part 5", "part 6", "part 7", "part 8", "part 9")
R1 = "runs/runs/r1"
P = "runs/runs/p"
KINDS = (
    Kind("part rows", "embedded", _below(f"{P}/parts/part-*.parquet"), _finish, _unfinished, (P,), PART),
    Kind(
        "part quarantine",
        "embedded",
        _below(f"{P}/parts/quarantine-*.parquet"),
        _finish,
        _unfinished,
        (P,),
        PART,
    ),
    Kind("part mark", "embedded", _below(f"{P}/parts/*.json"), _finish, _compacted, (P,)),
    Kind(
        "manifest, by part",
        "embedded",
        _below(f"{P}/manifest/*"),
        _part_manifests,
        _unfinished,
        (),
        ("manifest",),
    ),
    Kind(
        "manifest",
        "embedded",
        _below(f"{R1}/manifest/*"),
        lambda here, root: _run(here).manifest(),
        names=("manifest",),
    ),
    Kind("quarantine", "embedded", _below(f"{R1}/quarantine/*"), lambda here, root: _run(here).quarantine()),
    Kind(
        "quarantine, by status",
        "embedded",
        _below(f"{R1}/quarantine/*"),
        lambda here, root: asdict(run_status("r1", load_settings({"runs": str(here / "runs")}))),
    ),
    Kind(
        "vanished",
        "embedded",
        _below("runs/runs/r2/vanished-*.parquet"),
        lambda here, root: _plan(here, ("r1", "r2")),
    ),
    Kind("shard, by load", "embedded", _below(f"{R1}/shards/*"), lambda here, root: _plan(here, ("r1",))),
    Kind("shard, by exact search", "embedded", _below(f"{R1}/shards/*"), _search),
    Kind("shard, by evaluate", "embedded", _below(f"{R1}/shards/*"), _evaluate),
    Kind(
        "run.json",
        "embedded",
        _below(f"{R1}/run.json"),
        lambda here, root: asdict(_run(here).info),
        names=("r1",),
    ),
    Kind(
        "done.json",
        "embedded",
        _below(f"{R1}/done.json"),
        lambda here, root: asdict(_run(here).summary),
        names=("r1",),
    ),
    Kind(
        "tombstones",
        "full",
        _below("runs/erasures/*/hashes.parquet"),
        _tombstones,
    ),
    Kind("key of tombstones", "full", _below("runs/erasures/key.json"), _tombstones),
    Kind("manifest, by purge", "full", _below("runs/runs/*/manifest/*"), _purge_reads, names=("manifest",)),
    Kind("shard, by purge", "full", _below("runs/runs/*/shards/*"), _purge_reads),
    Kind("record of an output", "full", _below("runs/outputs/*"), _outputs),
    Kind(
        "purged run, by verify",
        "purged",
        lambda here, root: [
            path for path in here.glob("runs/runs/r1/**/*") if path.is_file() and "timings" not in path.parts
        ],
        _balances,
        names=("r1", "manifest"),
    ),
    Kind("receipt", "full", _below("runs/erasures/*/receipt.json"), _receipts),
    Kind(
        "generation record",
        "full",
        _below("runs/generations/*.json"),
        lambda here, root: sorted(map(repr, records.list_records(_store(here)))),
    ),
    Kind("lock", "embedded", _below("runs/locks/held.json"), _take_lock, _hold_lock),
    Kind("card.json", "bare", _below("model/card.json"), _checkpoint, _copy_model),
    Kind("weights", "bare", _below("model/weights.safetensors"), _checkpoint, _copy_model),
    Kind(
        "sweep", "full", lambda here, root: [*here.glob("out/**/*.parquet"), *here.glob("out/*.json")], _sweep
    ),
    Kind("calibration", "full", _below("runs/calibrations/**/*"), _calibration),
    Kind("reindex run", "full", _below("runs/nights/**/*.json"), _nights),
    Kind(
        "audit record",
        "full",
        _below("runs/audit/*"),
        lambda here, root: AuditLog.read(_store(here)).to_json(),
    ),
)
