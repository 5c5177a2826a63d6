"""Which run, generation or server a command means: `latest` and the settings, resolved in one place."""

from collections.abc import Sequence
from datetime import UTC, datetime

from index.milvus.client import Milvus, connect
from index.milvus.collection import Generation, get_generation, list_generations, live_generation
from index.runs.run import Run, list_runs
from infra.errors import BadInput, BadSetting, BucketMissing, ObjectMissing
from infra.settings import Settings
from infra.store import open_store


def epoch_ms(flag: str, text: str | None) -> int | None:
    """Milliseconds since the epoch of an ISO 8601 time. Raises BadSetting."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadSetting(
            f"{flag} {text!r} is not an ISO 8601 time", remedy="e.g. 2026-11-22T18:30"
        ) from error
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


LATEST = "latest"


def open_milvus(settings: Settings) -> Milvus:
    """Connect to the Milvus that the settings name. Raises IndexUnreachable, IndexRefused, Locked."""
    token = settings.milvus_token.get_secret_value() if settings.milvus_token else None
    ca_file = str(settings.milvus_ca) if settings.milvus_ca else None
    return connect(settings.milvus, token, settings.milvus_database, ca_file)


def find_run(run_id: str, settings: Settings, *, finished: bool = True) -> Run:
    """Open one run; `latest` is the newest, of the finished ones only if `finished`. Raises BadInput."""
    store = open_store(settings.runs)
    if run_id != LATEST:
        try:
            return Run.open(store, run_id)
        except (ObjectMissing, BucketMissing) as error:
            if isinstance(error, BucketMissing) and not store.local:
                raise
            raise BadInput(
                f"there is no run {run_id} in {store.uri}", remedy="name one of its runs"
            ) from error
    runs = [run for run in list_runs(store) if run.finished or not finished]
    if not runs:
        kind = "finished run" if finished else "run"
        raise BadInput(f"there is no {kind} in {store.uri}", remedy="make one: clvr embed")
    return runs[-1]


def find_runs(run_ids: Sequence[str], settings: Settings) -> list[Run]:
    """Open several finished runs, oldest first."""
    runs = {run.run_id: run for run in (find_run(run_id, settings) for run_id in run_ids)}
    return sorted(runs.values(), key=lambda run: run.info.created)


def find_generation(name: str, milvus: Milvus, settings: Settings) -> Generation:
    """Open one generation; `latest` is the one of the alias that was created last. Raises BadInput."""
    if name != LATEST:
        return get_generation(milvus, name)
    found = list_generations(milvus, settings.alias)
    if not found:
        raise BadInput(f"alias {settings.alias} has no generation", remedy="build one: clvr load latest")
    return max(found, key=lambda generation: generation.created)


def live_name(settings: Settings) -> str | None:
    """Return the name of the live generation; None if the alias points to nothing."""
    current = live_generation(open_milvus(settings), settings.alias)
    return current.name if current else None
