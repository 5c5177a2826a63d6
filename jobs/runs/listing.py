"""`clvr runs`: the runs of a folder, and what the records of one run state."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from typing_extensions import TypedDict

from index.documents import UtcTime
from index.runs.run import Run, list_runs
from infra.settings import Settings
from infra.store import open_store
from jobs.runtime.format import count, text_table, timestamp
from jobs.runtime.json_fields import FieldsOf
from jobs.runtime.resolve import find_run


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run. `embedded`, `quarantined` and `finished` (ISO 8601) are None while it is unfinished."""

    run_id: str
    state: str
    """finished or unfinished."""
    archive: str
    model: str
    """URI of the checkpoint."""
    fingerprint: str
    listed: int
    duplicates: int
    embedded: int | None
    quarantined: int | None
    created: UtcTime
    finished: UtcTime | None

    @classmethod
    def of(cls, run: Run) -> "RunRow":
        """Read the records of a run. Raises CorruptObject for an altered one."""
        summary = run.summary if run.finished else None
        return cls(
            run_id=run.run_id,
            state="finished" if summary else "unfinished",
            archive=run.info.archive,
            model=run.info.model,
            fingerprint=run.fingerprint,
            listed=run.info.listed,
            duplicates=run.info.duplicates,
            embedded=summary.embedded if summary else None,
            quarantined=summary.quarantined if summary else None,
            created=run.info.created,
            finished=summary.finished if summary else None,
        )


@dataclass(frozen=True, slots=True)
class RunList:
    """The runs of a folder, oldest first."""

    uri: str
    rows: tuple[RunRow, ...]

    def to_text(self) -> str:
        """Return a table with one line a run."""
        if not self.rows:
            return f"no run in {self.uri}; make one: clvr embed"
        titles = ("run", "state", "model", "crops", "quarantined", "started", "archive")
        return text_table(
            titles,
            [
                (
                    row.run_id,
                    row.state,
                    row.fingerprint,
                    count(row.listed - row.duplicates),
                    count(row.quarantined),
                    timestamp(row.created),
                    row.archive,
                )
                for row in self.rows
            ],
            right={"crops", "quarantined"},
        )

    def to_json(self) -> list[Annotated[dict[str, Any], FieldsOf(RunRow)]]:
        """Return one JSON object a run."""
        return [asdict(row) for row in self.rows]


class RunRecords(TypedDict):
    """The records of one run. causes: quarantined crops by stage/cause. version: release that started it."""

    settings: dict[str, Any]
    causes: dict[str, int]
    shards: int
    version: str


@dataclass(frozen=True, slots=True)
class RunDetails:
    """The records of one run; `clvr status` also checks them against the shards."""

    row: RunRow
    settings: dict[str, Any]
    causes: dict[str, int]
    """Quarantined crops by 'stage/cause'; empty while the run is unfinished."""
    shards: int
    version: str
    """Release that started the run."""

    def to_text(self) -> str:
        """Return one line a field."""
        fields = {name: value for name, value in self.to_json().items() if value not in (None, {}, "")}
        return "\n".join(f"{name:12} {_plain(value)}" for name, value in fields.items())

    def to_json(self) -> Annotated[dict[str, Any], FieldsOf(RunRow, RunRecords)]:
        """Return the fields as one JSON object."""
        records: RunRecords = {
            "settings": self.settings,
            "causes": self.causes,
            "shards": self.shards,
            "version": self.version,
        }
        return {**asdict(self.row), **records}


def list_all_runs(settings: Settings) -> RunList:
    """Return the runs of the folder of runs. Raises CorruptObject, SchemaMismatch, StoreError."""
    store = open_store(settings.runs)
    return RunList(store.uri, tuple(RunRow.of(run) for run in list_runs(store)))


def run_details(run_id: str, settings: Settings) -> RunDetails:
    """Return the records of a run, or of the `latest`. Raises BadInput, CorruptObject, StoreError."""
    run = find_run(run_id, settings, finished=False)
    causes = dict(run.summary.causes) if run.finished else {}
    return RunDetails(RunRow.of(run), run.info.settings, causes, run.info.shards, run.info.version)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items() if part is not None)
    return f"{value:,}" if isinstance(value, int) else str(value)
