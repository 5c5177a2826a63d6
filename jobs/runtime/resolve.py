"""The run, generation, server and time that a command's arguments and the settings refer to."""

from collections.abc import Sequence
from datetime import UTC, datetime

from index.generations import records
from index.milvus.client import Milvus, connect
from index.milvus.collection import Generation, get_generation, list_generations, live_generation
from index.runs.merged import read_merges
from index.runs.run import Run, list_runs
from index.transforms.stored import read_transform, resolve_transform
from index.transforms.transform import FeatureTransform
from infra.errors import BadInput, BadSetting, BucketMissing, ObjectMissing
from infra.settings import Settings
from infra.store import open_store

LATEST = "latest"


def find_run(run_id: str, settings: Settings, *, finished: bool = True) -> Run:
    """Open a run; `latest` is the newest, with `finished` the newest finished one. Raises BadInput."""
    store = open_store(settings.runs)
    if run_id != LATEST:
        try:
            return Run.open(store, run_id)
        except (ObjectMissing, BucketMissing) as error:
            if isinstance(error, BucketMissing) and not store.local:
                raise
            merged = read_merges(store).run_of(run_id)
            if merged != run_id:
                raise BadInput(f"run {run_id} was merged into {merged}", remedy=f"name {merged}") from error
            raise BadInput(
                f"there is no run {run_id} in {store.uri}", remedy="`clvr runs` lists them"
            ) from error
    runs = [run for run in list_runs(store) if run.finished or not finished]
    if not runs:
        noun = "finished run" if finished else "run"
        raise BadInput(f"there is no {noun} in {store.uri}", remedy="make one: clvr embed")
    return runs[-1]


def find_runs(run_ids: Sequence[str], settings: Settings) -> list[Run]:
    """Open several finished runs, oldest first; for runs that were all merged into another one, that one."""
    run_ids = read_merges(open_store(settings.runs)).apply(run_ids)
    runs = {run.run_id: run for run in (find_run(run_id, settings) for run_id in run_ids)}
    return sorted(runs.values(), key=lambda run: run.info.created)


def run_ids_of(generation: Generation, settings: Settings) -> tuple[str, ...]:
    """Return the ids of the runs that a generation holds, those of its increments included."""
    record = records.read(open_store(settings.runs), generation.name)
    return record.run_ids if record else generation.run_ids


def runs_of(generation: Generation, settings: Settings) -> list[Run]:
    """Open the runs of a generation, oldest first. Raises BadInput if one is missing."""
    return find_runs(run_ids_of(generation, settings), settings)


def available_runs_of(generation: Generation, settings: Settings) -> list[Run]:
    """Open those runs of a generation that are still stored: a search needs the index, not every run.

    Raises BadInput if none is left.
    """
    runs, missing = [], None
    for run_id in run_ids_of(generation, settings):
        try:
            runs.append(find_run(run_id, settings))
        except BadInput as error:
            missing = error
    if missing is not None and not runs:
        raise missing
    return sorted(runs, key=lambda run: run.info.created)


def open_milvus(settings: Settings) -> Milvus:
    """Connect to the Milvus of the settings. Raises IndexUnreachable, IndexRefused, Locked."""
    token = settings.milvus_token.get_secret_value() if settings.milvus_token else None
    ca_file = str(settings.milvus_ca) if settings.milvus_ca else None
    return connect(settings.milvus, token, settings.milvus_database, ca_file)


def find_generation(name: str, milvus: Milvus, settings: Settings) -> Generation:
    """Open a generation or the copy that replaced it; `latest` is the alias' newest. Raises BadInput."""
    if name != LATEST:
        return get_generation(milvus, records.current_name(open_store(settings.runs), name))
    generations = list_generations(milvus, settings.alias)
    if not generations:
        raise BadInput(f"alias {settings.alias} has no generation", remedy="build one: clvr load latest")
    return max(generations, key=lambda generation: generation.created)


def live_name(settings: Settings) -> str | None:
    """Return the name of the live generation, None if the alias points to no generation."""
    live = live_generation(open_milvus(settings), settings.alias)
    return live.name if live else None


def find_transform(name: str | None, fingerprint: str, settings: Settings) -> FeatureTransform | None:
    """Open a transform of a model by its id, `latest` or `none`; None for the model's default, or none.

    Raises BadInput, FingerprintMismatch for one of another model, CorruptObject.
    """
    store = open_store(settings.runs)
    return read_transform(store, fingerprint, resolve_transform(store, fingerprint, name))


def epoch_ms(flag: str, text: str | None) -> int | None:
    """Parse an ISO 8601 time into ms since the epoch; without a zone it is UTC. Raises BadSetting."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadSetting(
            f"{flag} {text!r} is not an ISO 8601 time", remedy="e.g. 2026-11-22T18:30"
        ) from error
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
