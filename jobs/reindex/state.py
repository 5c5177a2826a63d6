"""Nights: one nightly job each, in a folder that may be killed at any point and is continued where it was.

    nights/<night id>/night.json            first, once (If-None-Match): what was asked for
                      attempts/0001.json    an attempt began; 0001-ended.json says how, unless it was killed
                      steps/embed.json      what a finished step came to, once
                      summary.json, summary.html
                      done.json             last

Nothing here decides anything about rows: a step that is repeated finds what it did before in the runs and
in the generations.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self

from index.documents import JsonDocument, encode_json, utc_now
from infra.errors import BadSetting, ClvrError, Mismatch, ObjectExists, ObjectMissing, SchemaMismatch
from infra.store import Store, ignore_missing_root

StepName = Literal["plan", "embed", "load", "gate", "promote", "retention"]
STEPS: tuple[StepName, ...] = ("plan", "embed", "load", "gate", "promote", "retention")

RESUME_WINDOW = timedelta(hours=20)
"""An unfinished night that began less long ago is continued, also after midnight."""

_NIGHT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class ReindexInputs:
    """What makes two nights the same job. `fingerprint` is that of the checkpoint."""

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

    def digest(self) -> str:
        """Eight hexadecimal digits that are the same for the same job."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class _RunDocument(JsonDocument):
    """`night.json`: the name of the run and what was asked for."""

    NOUN = "reindex run"

    night: str
    created: str
    inputs: ReindexInputs


@dataclass(frozen=True, slots=True)
class Step(JsonDocument):
    """A finished step: when the attempt at it began that finished it, its seconds, and what came of it."""

    name: str
    began: str
    seconds: float
    outcome: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One process that worked on the night. `ended` is None if it was killed, or is at work."""

    number: int
    began: str
    ended: dict[str, Any] | None = None


class ReindexRun:
    """One night. Its documents are written once each, but for the summary."""

    def __init__(self, store: Store, night_id: str, created: str, inputs: ReindexInputs) -> None:
        self.store = store
        self.night_id = night_id
        self.created = created
        self.inputs = inputs

    @classmethod
    def begin(cls, store: Store, night_id: str, inputs: ReindexInputs) -> Self:
        """Begin a night, or open the one of this name.

        Raises Mismatch if that is another job's, BadSetting for a name that cannot be one.
        """
        if not _NIGHT_ID.fullmatch(night_id):
            raise BadSetting(
                f"'{night_id}' cannot name a night", remedy="Use letters, digits, '.', '_' and '-'."
            )
        with suppress(ObjectExists):
            document = _RunDocument(night_id, utc_now(), inputs)
            store.create(_key(night_id, "night.json"), document.to_json())
        night = cls.open(store, night_id)
        for name, value in asdict(inputs).items():
            known = getattr(night.inputs, name)
            if known != value:
                raise Mismatch(
                    f"night {night_id} was begun with {name} {known}, not {value}",
                    remedy="Give it another name: --night NAME.",
                )
        return night

    @classmethod
    def open(cls, store: Store, night_id: str) -> Self:
        """Open a night. Raises ObjectMissing, SchemaMismatch."""
        key = _key(night_id, "night.json")
        document = _RunDocument.read(store, key)
        return cls(store, night_id, document.created, document.inputs)

    @property
    def finished(self) -> bool:
        """Whether done.json stands."""
        return self.store.head(self.key("done.json")) is not None

    def key(self, name: str) -> str:
        """The key, in the store, of one of the night's objects."""
        return _key(self.night_id, name)

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
        """Write down a finished step. The first record of it stands."""
        with suppress(ObjectExists):
            self.store.create(self.key(f"steps/{step.name}.json"), step.to_json())

    def attempts(self) -> list[Attempt]:
        """Return the attempts, the first one first."""
        names = sorted(found.key.rpartition("/")[2] for found in self.store.list(self.key("attempts")))
        found = []
        for name in names:
            if re.fullmatch(r"\d+\.json", name):
                stem = name.removesuffix(".json")
                began = _read(self.store, self.key(f"attempts/{name}"))["began"]
                ended = f"{stem}-ended.json"
                end = _read(self.store, self.key(f"attempts/{ended}")) if ended in names else None
                found.append(Attempt(int(stem), began, end))
        return found

    def begin_attempt(self) -> Attempt:
        """Write down that a process begins to work on the night."""
        attempt = Attempt(len(self.attempts()) + 1, utc_now())
        self.store.create(
            self.key(f"attempts/{attempt.number:04d}.json"), encode_json({"began": attempt.began})
        )
        return attempt

    def end_attempt(self, attempt: Attempt, step: str, error: BaseException | None) -> Attempt:
        """Write down how it ended: with the night finished, or at a step by an error."""
        end: dict[str, Any] = {"at": utc_now(), "step": step}
        if error is not None:
            end |= {
                "error": type(error).__name__,
                "message": getattr(error, "message", None) or str(error) or type(error).__name__,
                "remedy": getattr(error, "remedy", ""),
                "exit_code": error.exit_code if isinstance(error, ClvrError) else 1,
            }
        self.store.put(self.key(f"attempts/{attempt.number:04d}-ended.json"), encode_json(end))
        return Attempt(attempt.number, attempt.began, end)

    def write_summary(self, summary: Mapping[str, Any], page: str) -> None:
        """Write the summary, in place of an earlier attempt's."""
        self.store.put(self.key("summary.html"), page.encode())
        self.store.put(self.key("summary.json"), encode_json(summary))

    def read_summary(self) -> dict[str, Any] | None:
        """Return the summary, None where the night has none yet."""
        try:
            return _read(self.store, self.key("summary.json"))
        except ObjectMissing:
            return None

    def finish(self) -> None:
        """Set the done-mark."""
        with suppress(ObjectExists):
            self.store.create(self.key("done.json"), encode_json({"at": utc_now()}))


def current_run_id(store: Store, inputs: ReindexInputs, *, now: datetime | None = None) -> str:
    """Return the id of this job's night: the one that is begun and not finished, or one by today's date."""
    now = now or datetime.now(UTC)
    digest = inputs.digest()
    for night in reversed(list_nights(store)):
        begun = datetime.fromisoformat(night.created)
        if night.inputs.digest() == digest and now - begun < RESUME_WINDOW and not night.finished:
            return night.night_id
    return f"{now:%Y-%m-%d}-{digest}"


def list_nights(store: Store) -> list[ReindexRun]:
    """Return all nights, the oldest first."""
    folders: list[str] = []
    with ignore_missing_root(store):
        folders = store.folders("nights")
    nights = []
    for folder in folders:
        with suppress(ObjectMissing):
            nights.append(ReindexRun.open(store, folder.rpartition("/")[2]))
    return sorted(nights, key=lambda night: (night.created, night.night_id))


def previous_summary(night: ReindexRun) -> dict[str, Any] | None:
    """Return the summary of the last finished night of the same archive and alias before this one."""
    for other in reversed(list_nights(night.store)):
        same = (other.inputs.archive, other.inputs.alias) == (night.inputs.archive, night.inputs.alias)
        if same and other.created < night.created and other.finished:
            return other.read_summary()
    return None


def _key(night_id: str, name: str) -> str:
    return f"nights/{night_id}/{name}"


def _read(store: Store, key: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(store.get(key))
    except ValueError as error:
        raise SchemaMismatch(f"{store.uri_of(key)} is no JSON document: {error}") from error
    return document
