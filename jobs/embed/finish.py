"""The last steps of a run: its shards, its summary, and the catalogue. None needs torch."""

from itertools import islice
from typing import Any

import ray

from index.catalogue.catalogue import open_catalogue
from index.runs.records import RunSummary
from index.runs.run import Run
from infra.errors import ClvrError
from infra.logging import logger
from jobs.runtime.progress import ProgressState, progress
from jobs.runtime.ray_cluster import num_cpus, root_cause, run_as_ray_task


def write_shards(run: Run) -> None:
    """Join the parts of each shard, as Ray tasks. The only shard of a small run is left to `finish_run`."""
    if run.info.shards == 1:
        return
    compact, at_once = ray.remote(_write_shard), 2 * num_cpus()
    total, shards = run.info.shards, iter(range(run.info.shards))
    pending: list[Any] = []
    num_done = 0
    with progress("shards", "written", lambda: ProgressState(num_done, total)):
        while num_done < total:
            pending += [compact.remote(run, shard) for shard in islice(shards, at_once - len(pending))]
            done, pending = ray.wait(pending, timeout=1.0)
            try:
                ray.get(done)
            except Exception as error:
                raise root_cause(error) from error
            num_done += len(done)


def _write_shard(run: Run, shard: int) -> None:
    run.compact(shard)


def finish_run(run: Run) -> RunSummary:
    """Finish a run, and carry the catalogue on to it. Raises what `Run.finish` raises.

    A run of more than one shard is finished in a process of its own, because its memory grows with the rows.
    """
    summary, problem = _finish(run) if run.info.shards == 1 else run_as_ray_task(_finish, run)
    if problem:
        logger.info(f"the catalogue was not updated: {problem}; the next incremental run does that")
    result: RunSummary = summary
    return result


def _finish(run: Run) -> tuple[RunSummary, str]:
    """Return the summary, and why the catalogue was not updated: the run is finished all the same."""
    summary = run.finish()
    try:
        open_catalogue(run.store, run.run_id)
    except ClvrError as error:
        return summary, error.message
    return summary, ""
