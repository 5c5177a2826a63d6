"""`clvr embed`: an archive into a run of shards, on Ray Data.

One *part* (a fixed slice of the manifest) is the unit of work. An actor fetches, decodes, embeds and writes a
whole part by itself, under a name that depends only on the part's number: nothing but part numbers and
counters passes through Ray, and a part that is done twice overwrites itself with the same rows.
"""

import json
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import ray
from ray.data import ActorPoolStrategy

from clvr_model.checkpoint import load_checkpoint
from clvr_model.embedder import Embedder
from clvr_model.engines import default_cache
from index.key_pattern import KeyPattern
from index.labels import with_labels
from index.ledger import RunSummary
from index.manifest import survey_archive
from index.runs import Run, find_unfinished
from infra.errors import BudgetExceeded
from infra.settings import Settings
from infra.store import open_store
from jobs.board import new_board, standing_of
from jobs.cluster import connect, cores, root_cause
from jobs.embed_part import PartReport, embed_part
from jobs.labels import read_label_table
from jobs.progress import Standing, console, progress

ROW_BYTES = 4400  # 1024 float32 and the scalar columns, before compression
PARTS_PER_ACTOR = 16
PART_ROWS = (64, 4096)
SHARD_ROWS = 122_880
# Below this many rows one bad picture more or less says nothing about the night.
BUDGET_AFTER_ROWS = 200


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What `clvr embed` was asked for; URIs are `s3://…` or local paths."""

    archive: str
    model: str
    key_pattern: str | None = None
    labels: str | None = None
    run_id: str | None = None
    actors: int | None = None
    rows_per_part: int | None = None
    rows_per_shard: int = SHARD_ROWS
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    max_quarantine_rate: float = 0.01


@dataclass(slots=True)
class _Tally:
    """Sums over the parts that this driver has seen finish."""

    embedded: int = 0
    quarantined: int = 0
    waiting_seconds: float = 0.0
    model_seconds: float = 0.0
    writing_seconds: float = 0.0
    causes: Counter[str] = field(default_factory=Counter)

    def add(self, report: PartReport) -> None:
        self.embedded += report.embedded
        self.quarantined += report.quarantined
        self.waiting_seconds += report.waiting_seconds
        self.model_seconds += report.model_seconds
        self.writing_seconds += report.writing_seconds
        self.causes.update(report.causes)

    def check_budget(self, max_rate: float) -> None:
        seen = self.embedded + self.quarantined
        if seen >= BUDGET_AFTER_ROWS and self.quarantined > max_rate * seen:
            causes = ", ".join(f"{cause} {count}" for cause, count in self.causes.most_common(5))
            raise BudgetExceeded(
                f"{self.quarantined:,} of {seen:,} crops could not be embedded ({causes}), "
                f"more than the {max_rate:.1%} that --max-quarantine-rate allows",
                remedy="look at the causes; the same command with a higher rate continues where this stopped",
            )


class _PartActor:
    """A Ray Data actor: the model is loaded once, then each call does one part."""

    def __init__(self, runs: str, run_id: str, request: EmbedRequest, board: Any) -> None:
        self.run = Run.open(open_store(runs), run_id)
        self.archive = open_store(request.archive)
        self.embedder = Embedder(request.model, precision=request.precision, cache=default_cache())
        self.board = board

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        reports = [
            embed_part(self.run, int(part), self.embedder, self.archive, on_rows=self.board.add.remote)
            for part in batch["part"]
        ]
        return {"report": [json.dumps(asdict(report)) for report in reports]}


def embed(request: EmbedRequest, settings: Settings) -> RunSummary:
    """Embed an archive into `settings.runs`, or continue the unfinished run of the same archive and model.

    Returns the summary of the finished run. Raises EmptyArchive, StoreError, BadCheckpoint, BudgetExceeded,
    CountMismatch; after any of them the run is unfinished, invisible to `load`, and the same call continues.
    """
    runs = open_store(settings.runs)
    archive = open_store(request.archive)
    archive.ensure()
    fingerprint = load_checkpoint(request.model).fingerprint
    connect(settings)
    actors = request.actors or cores()
    run = find_unfinished(runs, archive=archive.uri, fingerprint=fingerprint)
    if run is not None and request.run_id in (None, run.run_id):
        console.print(f"continuing run {run.run_id}")
    else:
        run = _create_run(request, settings, fingerprint, actors)
    if run.finished:
        console.print(f"run {run.run_id} is finished already")
        return run.summary
    _embed_parts(run, request, settings, actors)
    _compact(run, settings)
    summary = run.finish()
    console.print(f"run {run.run_id}: {summary.embedded:,} embedded, {summary.quarantined:,} quarantined")
    return summary


def _create_run(request: EmbedRequest, settings: Settings, fingerprint: str, actors: int) -> Run:
    runs, archive = open_store(settings.runs), open_store(request.archive)
    pattern = KeyPattern(request.key_pattern) if request.key_pattern else None
    survey = survey_archive(archive, pattern=pattern)
    manifest = survey.manifest
    console.print(
        f"archive {archive.uri}: {manifest.num_rows:,} crops, {survey.ignored:,} other objects ignored"
    )
    if request.labels is not None:
        manifest, joined = with_labels(manifest, read_label_table(request.labels), archive=archive.uri)
        console.print(
            f"labels: {joined.labelled:,} crops labelled, {joined.unlabelled:,} not, "
            f"{joined.unmatched:,} labels of no crop here"
        )
    runs.require_space(2 * ROW_BYTES * manifest.num_rows)
    low, high = PART_ROWS
    even = math.ceil(manifest.num_rows / (actors * PARTS_PER_ACTOR))
    return Run.create(
        runs,
        request.run_id or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        manifest=manifest,
        archive=archive.uri,
        fingerprint=fingerprint,
        model=request.model,
        settings={"precision": request.precision, "key_pattern": request.key_pattern},
        rows_per_part=request.rows_per_part or min(max(even, low), high),
        rows_per_shard=request.rows_per_shard,
    )


def _embed_parts(run: Run, request: EmbedRequest, settings: Settings, actors: int) -> _Tally:
    tally = _Tally()
    pending = run.pending_parts()
    if not pending:
        return tally
    total = run.info.rows
    before = total - min(total, len(pending) * run.info.rows_per_part)
    board = new_board(total, done=before)

    reports = ray.data.from_items(
        [{"part": part} for part in pending], override_num_blocks=len(pending)
    ).map_batches(
        _PartActor,
        batch_size=1,
        compute=ActorPoolStrategy(size=min(actors, len(pending)), max_tasks_in_flight_per_actor=2),
        num_cpus=1,
        fn_constructor_kwargs={
            "runs": settings.runs,
            "run_id": run.run_id,
            "request": request,
            "board": board,
        },
    )
    try:
        with progress("embed", "crops", lambda: standing_of(board)):
            for batch in reports.iter_batches(batch_size=None, prefetch_batches=0):
                for line in batch["report"]:
                    tally.add(PartReport(**json.loads(str(line))))
                tally.check_budget(request.max_quarantine_rate)
    except Exception as error:
        raise root_cause(error) from error
    return tally


def _compact(run: Run, settings: Settings) -> None:
    compact = ray.remote(_compact_shard)
    waiting = [compact.remote(settings.runs, run.run_id, shard) for shard in range(run.info.shards)]
    total = len(waiting)

    def standing() -> Standing:
        return Standing(total - len(waiting), total)

    with progress("shards", "written", standing):
        while waiting:
            done, waiting = ray.wait(waiting, timeout=1.0)
            try:
                ray.get(done)
            except Exception as error:
                raise root_cause(error) from error


def _compact_shard(runs: str, run_id: str, shard: int) -> None:
    Run.open(open_store(runs), run_id).compact(shard)
