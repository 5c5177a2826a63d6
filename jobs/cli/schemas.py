"""What each command prints with --json: the table of result types, and their JSON Schemas.

schemas.json beside this module has the schemas, which `jobs.cli.make_schemas` makes of the types, so that
`clvr schema` imports the packages of no command.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SCHEMAS = Path(__file__).with_name("schemas.json")
ERROR = "error"


@dataclass(frozen=True, slots=True)
class Output:
    """The JSON output of a command.

    types: `module:Name` of a dataclass, or of a class with `to_json`, whose annotation then counts; a command
    prints one of them. With `[]` at the end, a list of it. version: raise it when a key is removed or
    renamed, or its value changes; a new key is no new version.
    """

    types: tuple[str, ...]
    version: int = 1

    @classmethod
    def of(cls, *types: str, version: int = 1) -> "Output":
        """Make an output of one of these types."""
        return cls(types, version)


_JOB = "jobs.submit.text:FinishedJob", "jobs.submit.text:SubmittedJob"
_ERASURE = "jobs.generations.erase:EraseResult"
_STACK = "jobs.stack:StackReport"

OUTPUTS: dict[str, Output] = {
    "audit": Output.of("jobs.sweep.audit:AuditLog", "jobs.cases.audit:SearchAudit"),
    "calibrate": Output.of("jobs.evaluate.calibrate:CalibrationResult"),
    "case export": Output.of("jobs.cases.export:ExportResult"),
    "case list": Output.of("jobs.cases.documents:CaseSummary[]"),
    "case show": Output.of("jobs.cases.documents:CaseDocument"),
    "case verify": Output.of("jobs.cases.signing:Verification"),
    "compare-models": Output.of("jobs.compare_models.results:ModelComparison"),
    "config": Output.of("infra.settings:Origin[]"),
    "doctor": Output.of("jobs.doctor.doctor:DoctorReport"),
    "drift": Output.of("jobs.drift.job:DriftResult"),
    "embed": Output.of("index.runs.records:RunSummary"),
    ERROR: Output.of("jobs.cli.schemas:ErrorDocument"),
    "evaluate": Output.of("jobs.evaluate.results:Evaluation", "jobs.evaluate.compare:Comparison"),
    "exit-codes": Output.of("jobs.cli.exit_codes:ListedExitCode[]"),
    "fit-transform": Output.of("jobs.fit_transform.job:FitResult"),
    "forget": Output.of(_ERASURE, "jobs.generations.erase:AuditResult"),
    "generate": Output.of("jobs.generate:GeneratedArchive"),
    "generations": Output.of("jobs.generations.listing:GenerationList"),
    "jobs list": Output.of("jobs.submit.text:JobTable"),
    "jobs logs": Output.of("jobs.submit.text:JobLog", _JOB[0]),
    "jobs retry": Output.of(*_JOB),
    "jobs show": Output.of("jobs.submit.text:JobReport"),
    "jobs stop": Output.of("jobs.submit.text:StopRequest"),
    "load": Output.of("jobs.generations.load:LoadResult", "jobs.generations.load:IncrementResult"),
    "model export": Output.of("clvr_model.export:Export"),
    "model import": Output.of("jobs.model:ModelCard"),
    "model show": Output.of("jobs.model:ModelCard"),
    "pack": Output.of("jobs.pack:PackResult"),
    "plan": Output.of("jobs.embed.plan:Plan"),
    "promote": Output.of("index.generations.gate:GateReport"),
    "quarantine": Output.of("jobs.runs.quarantine:QuarantineReport"),
    "reindex": Output.of("jobs.reindex.job:ReindexResult"),
    "reproduce": Output.of("jobs.reproduce.results:Reproduction", "jobs.reproduce.plan:ReproducePlan"),
    "retain": Output.of(_ERASURE),
    "retire": Output.of("index.generations.promotion:Retirement"),
    "rollback": Output.of("jobs.generations.load:RollbackResult"),
    "runs": Output.of("jobs.runs.listing:RunList"),
    "runs export": Output.of("jobs.runs.export:RunExport"),
    "runs show": Output.of("jobs.runs.listing:RunDetails"),
    "schema": Output.of("jobs.cli.schemas:ListedSchema[]"),
    "search": Output.of("jobs.search.search:SearchResult"),
    "stack down": Output.of("jobs.stack:StoppedStack"),
    "stack status": Output.of(_STACK),
    "stack up": Output.of(_STACK),
    "status": Output.of("jobs.embed.status:RunStatus"),
    "submit": Output.of(*_JOB),
    "sweep": Output.of("jobs.sweep.job:SweepResult"),
    "train": Output.of("jobs.train.train:TrainResult", "jobs.train.plan:TrainPlan"),
    "verify": Output.of("jobs.generations.load:VerifyResult"),
}
"""By the words of the command; `error` is what every command prints instead when it fails."""


@dataclass(frozen=True, slots=True)
class ErrorFields:
    """The error of a command. type: its class. remedy: what to do, or "". exit_code: of the process."""

    type: str
    message: str
    remedy: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class ErrorDocument:
    """What a command prints instead of its result when it fails."""

    error: ErrorFields


@dataclass(frozen=True, slots=True)
class ListedSchema:
    """A command with its schema. schema: as documents state it, name and version. id: the schema's `$id`."""

    command: str
    schema: str
    id: str


def label_of(name: str) -> str:
    """Return how documents state their schema: `runs-show/1`."""
    return f"{name.replace(' ', '-')}/{OUTPUTS[name].version}"


def id_of(name: str) -> str:
    """Return the `$id` of a schema: `urn:clvr-archive:json:runs-show:1`."""
    return f"urn:clvr-archive:json:{label_of(name).replace('/', ':')}"


def listed_schemas() -> list[ListedSchema]:
    """Return every command with its schema, and `error`."""
    return [ListedSchema(name, label_of(name), id_of(name)) for name in OUTPUTS]


@cache
def stored_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schemas of this release, by the words of the command."""
    schemas: dict[str, dict[str, Any]] = json.loads(SCHEMAS.read_text(encoding="utf-8"))
    return schemas


def labelled(name: str, document: Any) -> Any:
    """Return a document that states its schema, if it is an object; a list stays as it is."""
    is_stated = isinstance(document, dict) and name in OUTPUTS
    return {"schema": label_of(name), **document} if is_stated else document
