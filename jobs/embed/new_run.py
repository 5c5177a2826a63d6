"""What `clvr embed` is asked for, and the run that it creates.

It needs no torch: the process that lists an archive starts in a second.
"""

import time
from dataclasses import dataclass

from clvr_model.precision import PrecisionOption
from index.runs.run import Run
from infra.store import Store
from jobs.embed.discovery import CropSelection, Discovery, discover
from jobs.embed.listing import PlanningTasks
from jobs.embed.precision import PrecisionDecision, choose_precision
from jobs.embed.sizes import ROW_BYTES, SHARD_ROWS, rows_per_part
from jobs.runtime.ray_cluster import map_in_ray_tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest(CropSelection):
    """The request of `clvr embed`: a selection of crops, a model, and how to embed."""

    model: str
    """URI of the checkpoint."""
    run_id: str | None = None
    actors: int | None = None
    rows_per_part: int | None = None
    rows_per_shard: int = SHARD_ROWS
    precision: PrecisionOption | None = None
    """None for `default_precision`."""
    max_quarantine_rate: float = 0.01


def discover_and_create(
    request: EmbedRequest,
    runs: Store,
    archive: Store,
    fingerprint: str,
    actors: int,
    resources: dict[str, float],
) -> tuple[Run, list[str]]:
    """Discover the crops of a request and create their run. Raises what both raise."""
    with PlanningTasks(map_in_ray_tasks) as tasks:
        discovery = discover(request, archive, runs, tasks=tasks)
        return create_run(discovery, request, runs, archive, fingerprint, actors, resources)


def create_run(
    discovery: Discovery,
    request: EmbedRequest,
    runs: Store,
    archive: Store,
    fingerprint: str,
    actors: int,
    resources: dict[str, float],
    decision: PrecisionDecision | None = None,
) -> tuple[Run, list[str]]:
    """Create a run of the discovered crops, and return it with notes for the user.

    fingerprint: that of the checkpoint. resources: those of a model actor. decision: the precision, where the
    run continues another one and must be comparable with it.
    """
    rows, precision = discovery.crops.num_rows, request.precision or "fp32"
    runs.require_space(2 * ROW_BYTES * rows)
    decision = decision or choose_precision(
        precision, request.model, fingerprint, discovery.crops, archive, resources
    )
    notes = list(discovery.notes)
    if precision != "fp32":
        notes.append(f"precision {decision.precision}: {decision.reason}")
    changes = discovery.changes
    run = Run.create(
        runs,
        request.run_id or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        manifest=discovery.crops,
        archive=archive.uri,
        fingerprint=decision.fingerprint,
        model=request.model,
        settings=request.origin()
        | decision.as_settings()
        | {"precision_asked": precision, "key_pattern": request.key_pattern}
        | ({"changes": changes.counts()} if changes else {}),
        rows_per_part=request.rows_per_part or rows_per_part(rows, actors),
        rows_per_shard=request.rows_per_shard,
        vanished=changes.vanished if changes else (),
    )
    return run, notes
