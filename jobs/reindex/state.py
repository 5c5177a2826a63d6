"""The state of reindex runs on disk; a run may be killed at any point and is continued by the same command.

    nights/<id>/night.json            first, once (If-None-Match): the inputs
                attempts/0001.json    an attempt started; 0001-ended.json: its outcome, unless it was killed
                steps/embed.json      the outcome of a finished step, once
                summary.json, summary.html
                done.json             last

The state decides nothing about rows: a repeated step finds its earlier work in the runs and generations.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from index.documents import JsonDocument, require_keys_inside, utc_now
from infra.errors import BadSetting, ClvrError, Mismatch, ObjectExists, ObjectMissing, SchemaMismatch
from infra.store import Store, ignore_missing_root
from infra.store.sealed import seal, unseal

StepName = Literal["plan", "embed", "load", "gate", "promote", "retention"]
STEPS: tuple[StepName, ...] = ("plan", "embed", "load", "gate", "promote", "retention")

RESUME_WINDOW = timedelta(hours=20)
"""An unfinished run that started less long ago is continued, also after midnight."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


_LATER_INPUTS = frozenset({"include", "exclude", "manifest_sha256", "labels_sha256"})


@dataclass(frozen=True, slots=True)
class ReindexInputs:
    """The inputs that identify a run. `fingerprint` is that of the checkpoint, `beside` is --rebuild.

    The names of the fields are keys of `night.json` and enter the digest.
    """

    archive: str
    fingerprint: str
    alias: str
    milvus: str
    key_pattern: str | None = None
    manifest: str | None = None
    labels: str | None = None
    lookback_days: int | None = None
    full: bool = False
    beside: bool = False
    include: list[str] | None = None
    exclude: list[str] | None = None
    manifest_sha256: str | None = None
    labels_sha256: str | None = None

    def differences(self, requested: "ReindexInputs") -> dict[str, tuple[object, object]]:
        """Return the fields that differ, with both values; a digest that an older release lacks is equal."""
        recorded, values = asdict(self), asdict(requested)
        return {
            name: (recorded[name], value)
            for name, value in values.items()
            if recorded[name] != value and not (name.endswith("_sha256") and recorded[name] is None)
        }

    def digest(self) -> str:
        """Return eight hexadecimal digits, equal for equal inputs."""
        # The fields of later releases leave the digest of a run that does not use them as it was.
        inputs = asdict(self)
        for name in _LATER_INPUTS:
            if inputs[name] is None:
                del inputs[name]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class _RunDocument(JsonDocument):
    """`night.json`: the id of the run, its start and its inputs."""

    NOUN: ClassVar = "reindex run"

    reindex_id: Annotated[str, Field(alias="night")]
    created: str
    inputs: ReindexInputs

    def check(self, where: str) -> None:
        """Raise CorruptObject for a name that leaves its folder."""
        require_keys_inside([self.reindex_id], where)


@dataclass(frozen=True, slots=True)
class Step(JsonDocument):
    """A finished step: the start and the seconds of the attempt that finished it, and its outcome."""

    name: str
    started: Annotated[str, Field(alias="began")]
    seconds: float
    outcome: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One process that worked on a run. `outcome` is None if it was killed or still runs."""

    number: int
    started: str
    outcome: dict[str, Any] | None = None


class ReindexRun:
    """One reindex run. Each of its documents is written once, except the summary."""

    def __init__(self, store: Store, reindex_id: str, created: str, inputs: ReindexInputs) -> None:
        self.store = store
        self.reindex_id = reindex_id
        self.created = created
        self.inputs = inputs

    @classmethod
    def start(cls, store: Store, reindex_id: str, inputs: ReindexInputs) -> Self:
        """Create a run, or open the run of this id.

        Raises Mismatch if that run has other inputs, BadSetting for an invalid id.
        """
        if not _ID.fullmatch(reindex_id):
            raise BadSetting(
                f"'{reindex_id}' cannot name a reindex run",
                remedy="Use letters, digits, '.', '_' and '-'.",
            )
        with suppress(ObjectExists):
            document = _RunDocument(reindex_id, utc_now(), inputs)
            store.create(_key(reindex_id, "night.json"), document.to_json())
        run = cls.open(store, reindex_id)
        for name, (recorded, value) in run.inputs.differences(inputs).items():
            raise Mismatch(
                f"reindex run {reindex_id} was started with {name} {recorded}, not {value}",
                remedy="Give another name: --night NAME.",
            )
        return run

    @classmethod
    def open(cls, store: Store, reindex_id: str) -> Self:
        """Open a run. Raises ObjectMissing, SchemaMismatch."""
        document = _RunDocument.read(store, _key(reindex_id, "night.json"))
        return cls(store, reindex_id, document.created, document.inputs)

    @property
    def finished(self) -> bool:
        """Whether done.json exists."""
        return self.store.head(self.key("done.json")) is not None

    def key(self, name: str) -> str:
        """Return the key of one of the run's objects."""
        return _key(self.reindex_id, name)

    def step(self, name: StepName) -> Step | None:
        """Return a finished step, or None."""
        try:
            return Step.read(self.store, self.key(f"steps/{name}.json"))
        except ObjectMissing:
            return None

    def steps(self) -> Iterator[Step]:
        """Yield the finished steps in their order."""
        for name in STEPS:
            step = self.step(name)
            if step is not None:
                yield step

    def record(self, step: Step) -> None:
        """Write a finished step. A step that is already recorded stays as it is."""
        with suppress(ObjectExists):
            self.store.create(self.key(f"steps/{step.name}.json"), step.to_json())

    def attempts(self) -> list[Attempt]:
        """Return the attempts, oldest first."""
        names = sorted(item.key.rpartition("/")[2] for item in self.store.list(self.key("attempts")))
        attempts = []
        for name in names:
            if re.fullmatch(r"\d+\.json", name):
                number = name.removesuffix(".json")
                started = _read(self.store, self.key(f"attempts/{name}"))["began"]
                ended = f"{number}-ended.json"
                outcome = _read(self.store, self.key(f"attempts/{ended}")) if ended in names else None
                attempts.append(Attempt(int(number), started, outcome))
        return attempts

    def start_attempt(self) -> Attempt:
        """Record that a process starts to work on the run."""
        attempt = Attempt(len(self.attempts()) + 1, utc_now())
        document = seal({"began": attempt.started})
        self.store.create(self.key(f"attempts/{attempt.number:04d}.json"), document)
        return attempt

    def finish_attempt(self, attempt: Attempt, step: str, error: BaseException | None) -> Attempt:
        """Record the outcome of an attempt: the run is finished, or an error occurred at a step."""
        outcome: dict[str, Any] = {"at": utc_now(), "step": step}
        if error is not None:
            outcome |= {
                "error": type(error).__name__,
                "message": getattr(error, "message", None) or str(error) or type(error).__name__,
                "remedy": getattr(error, "remedy", ""),
                "exit_code": error.exit_code if isinstance(error, ClvrError) else 1,
            }
        self.store.put(self.key(f"attempts/{attempt.number:04d}-ended.json"), seal(outcome))
        return Attempt(attempt.number, attempt.started, outcome)

    def write_summary(self, summary: Mapping[str, Any], page: str) -> None:
        """Write the summary and its page, in place of those of an earlier attempt."""
        self.store.put(self.key("summary.html"), page.encode())
        self.store.put(self.key("summary.json"), seal(summary))

    def read_summary(self) -> dict[str, Any] | None:
        """Return the summary, or None if no attempt wrote one."""
        try:
            return _read(self.store, self.key("summary.json"))
        except ObjectMissing:
            return None

    def finish(self) -> None:
        """Mark the run as finished."""
        with suppress(ObjectExists):
            self.store.create(self.key("done.json"), seal({"at": utc_now()}))


def current_reindex_id(store: Store, inputs: ReindexInputs, *, now: datetime | None = None) -> str:
    """Return the id of the recent unfinished run with these inputs, or an id by today's date."""
    now = now or datetime.now(UTC)
    for run in reversed(list_reindex_runs(store)):
        is_recent = now - datetime.fromisoformat(run.created) < RESUME_WINDOW
        if not run.inputs.differences(inputs) and is_recent and not run.finished:
            return run.reindex_id
    return f"{now:%Y-%m-%d}-{inputs.digest()}"


def list_reindex_runs(store: Store) -> list[ReindexRun]:
    """Return all reindex runs, oldest first."""
    folders: list[str] = []
    with ignore_missing_root(store):
        folders = store.folders("nights")
    runs = []
    for folder in folders:
        with suppress(ObjectMissing):
            runs.append(ReindexRun.open(store, folder.rpartition("/")[2]))
    return sorted(runs, key=lambda run: (run.created, run.reindex_id))


def previous_summaries(run: ReindexRun, most: int) -> list[dict[str, Any]]:
    """Return the summaries of the last finished runs of the same archive and alias, oldest first."""
    target = (run.inputs.archive, run.inputs.alias)
    earlier = [
        other
        for other in list_reindex_runs(run.store)
        if other.created < run.created and (other.inputs.archive, other.inputs.alias) == target
    ]
    found: list[dict[str, Any]] = []
    for other in reversed(earlier):
        if len(found) == most:
            break
        summary = other.read_summary() if other.finished else None
        if summary is not None:
            found.insert(0, summary)
    return found


def _key(reindex_id: str, name: str) -> str:
    return f"nights/{reindex_id}/{name}"


def _read(store: Store, key: str) -> dict[str, Any]:
    document = unseal(store.get(key), store.uri_of(key))
    if not isinstance(document, dict):
        raise SchemaMismatch(f"{store.uri_of(key)} is no document of a reindex run")
    return document
