"""The chain of runs that continue each other."""

from collections.abc import Iterator, Mapping

from index.runs.merged import read_merges
from index.runs.run import Run
from infra.errors import BadInput
from infra.store import Store


def lineage(store: Store, run_id: str, *, known: Mapping[str, Run] | None = None) -> list[Run]:
    """Return a run and those that it continues, by --since-run or --requeue, the oldest first.

    A run that was merged into another one is that one. known: runs that are already open, by id; others are
    read. Raises ObjectMissing, BadInput for a chain that leads back to itself.
    """
    return list(ancestors(store, run_id, known=known))[::-1]


def ancestors(store: Store, run_id: str, *, known: Mapping[str, Run] | None = None) -> Iterator[Run]:
    """Yield the runs of `lineage`, the newest first; a run is read when it is asked for."""
    merges = read_merges(store)
    seen: set[str] = set()
    next_id: str | None = merges.run_of(run_id)
    while next_id is not None:
        if next_id in seen:
            raise BadInput(f"the runs before {run_id} lead back to {next_id}")
        seen.add(next_id)
        run = (known or {}).get(next_id) or Run.open(store, next_id)
        yield run
        before = run.info.settings.get("since_run") or run.info.settings.get("requeue")
        next_id = merges.run_of(before) if before else None
