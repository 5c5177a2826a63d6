"""All settings and the origin of each value: flag > environment (CLVR_*) > YAML file > default."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from infra.errors import BadSetting
from infra.store.times import DEFAULT_EARLIEST, TimeRange

DEFAULT_FILE = Path("clvr.yaml")
PREFIX = "CLVR_"

# Variables with this prefix that are no settings but have readers too.
_OTHER_VARIABLES = (
    "CLVR_CONFIG",
    "CLVR_LOG_FORMAT",
    "CLVR_PUBLIC_BUCKETS",
    "CLVR_SECRETS",
    "CLVR_SERVE_TOKEN",
    "CLVR_STACK",
)
_MIN_SIMILARITY = 0.8  # of a mistyped name; Kubernetes' own, such as CLVR_PORT_8080_TCP, have less


class Settings(BaseModel):
    """The settings of all commands. The usual `AWS_*` variables configure object storage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runs: str = Field("clvr-data/runs", description="URI of the folder that holds runs and ledgers")
    milvus: str = Field(
        "clvr-data/milvus.db", description="Milvus: http(s)://host:port, or a file (Milvus Lite)"
    )
    milvus_token: SecretStr | None = Field(None, description="Milvus token, user:password or an API key")
    milvus_database: str | None = Field(None, description="Milvus database")
    milvus_ca: Path | None = Field(
        None, description="PEM file: the certificate authority of the Milvus server"
    )
    milvus_bucket: str | None = Field(
        None, description="s3:// URI of the Milvus server's own bucket; bulk import reads only there"
    )
    alias: str = Field("vehicles", description="The alias that searches use")
    gate_rows: int = Field(
        500_000, ge=1000, description="Rows that the gate reads; a larger generation is compared by a sample"
    )
    gate_seconds: float = Field(600.0, gt=0, description="Seconds that the gate takes to compare a sample")
    merge_runs: int = Field(
        30, ge=0, description="Small runs of a chain that stay; `clvr reindex` merges more of them (0: none)"
    )
    merge_rows: int = Field(100_000, ge=1, description="Embedded crops from which a run is not small")
    ray: str | None = Field(None, description="Ray address; without one each job starts a local Ray")
    gpus: int | None = Field(
        None, ge=0, description="GPUs that an autoscaled cluster will have, if no node is up yet"
    )
    jobs_url: str | None = Field(
        None, description="URL for submitted jobs: the cluster's dashboard, http(s)://head:8265"
    )
    jobs_token: SecretStr | None = Field(
        None, description="Token of the cluster (default: RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)"
    )
    jobs_ca: Path | None = Field(None, description="PEM file: the certificate authority of jobs_url")
    earliest_time: str = Field(
        DEFAULT_EARLIEST, description="Capture times before this are refused: ISO 8601, UTC without a zone"
    )
    latest_time: str | None = Field(
        None, description="Capture times after this are refused (default: 24 hours from now)"
    )
    webhook: SecretStr | None = Field(None, description="URL that the summary of a reindex run is posted to")
    cases: SecretStr | None = Field(
        None,
        description="Database of cases: a SQLite file, postgresql://… (default: cases.db beside the runs)",
    )
    case_required: bool = Field(False, description="Whether a search needs a case number and an audit record")
    user_header: str | None = Field(
        None, description="Header with the user's name, from a proxy that signed the user in"
    )
    groups_header: str | None = Field(
        None, description="Header with the user's groups, separated by commas, from the same proxy"
    )
    proxies: str = Field(
        "127.0.0.1,::1", description="Addresses or networks of that proxy; others are refused"
    )
    searchers: str = Field("*", description="Users and groups that may search; * is every user")
    judges: str = Field("*", description="Users and groups that may work on cases; * is every user")
    administrators: str = Field("", description="Users and groups that may read the audit")
    searches_per_minute: int = Field(60, ge=1, description="Searches of one user in the page, at most")
    upload_days: int = Field(30, ge=1, description="Days after which an upload that no case holds is deleted")
    upload_mib: int = Field(1024, ge=1, description="MiB of uploads that no case holds, at most")
    video_url: str | None = Field(
        None,
        description="Link to the video of a match: https://…/{camera_id}?t={iso}; also {seconds}, {track_id}",
    )
    map_tiles: str | None = Field(
        None, description="Images under the map of the page: https://…/{z}/{x}/{y}.png (default: none)"
    )
    map_attribution: str = Field("", description="Whose map_tiles are, as the map shows it")
    signing_key: Path | None = Field(
        None, description="PEM file with the Ed25519 key that signs the exports of cases"
    )

    def case_database(self) -> str:
        """Return the URL or path of the database of cases, which may hold a password."""
        if self.cases is not None:
            return self.cases.get_secret_value()
        folder = Path("clvr-data")
        if self.has_local_runs():
            folder = Path(self.runs.removeprefix("file://")).absolute().parent
        return str(folder / "cases.db")

    def has_local_runs(self) -> bool:
        """Whether the folder of runs is on this machine."""
        return "://" not in self.runs or self.runs.startswith("file://")

    def has_cases(self) -> bool:
        """Whether there may be a database of cases; a SQLite file must exist."""
        where = self.case_database()
        return "://" in where or Path(where).exists()

    def plausible_times(self) -> TimeRange:
        """Return the plausible capture times. Raises BadSetting."""
        return TimeRange.of(self.earliest_time, self.latest_time)


@dataclass(frozen=True, slots=True)
class Origin:
    """The value of one setting and its origin."""

    name: str
    value: str
    origin: str
    description: str


def load_settings(flags: Mapping[str, Any] | None = None, *, file: Path | None = None) -> Settings:
    """Merge flags that are not None, `CLVR_*` variables, a YAML file and the defaults, in that order.

    file: the YAML file; None is `$CLVR_CONFIG`, or `clvr.yaml` in the working directory if it exists.
    Raises BadSetting, with the field's name, for an unknown name or a value of the wrong type, and for a
    named file that is missing or is not YAML.
    """
    return _merge(flags or {}, file)[0]


def origins(flags: Mapping[str, Any] | None = None, *, file: Path | None = None) -> list[Origin]:
    """Return every setting with its origin; secrets are masked. Raises BadSetting."""
    settings, sources = _merge(flags or {}, file)
    return [
        Origin(name, str(getattr(settings, name)), sources.get(name, "default"), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def settings_file(file: Path | None = None) -> Path | None:
    """Return the YAML file that `load_settings` reads, or None. Raises BadSetting for a missing one."""
    path = file or (Path(os.environ["CLVR_CONFIG"]) if os.environ.get("CLVR_CONFIG") else None)
    if path is not None and not path.is_file():
        raise BadSetting(f"settings file {path} does not exist", remedy="Correct --config or CLVR_CONFIG.")
    return path or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)


def unknown_variables() -> dict[str, str | None]:
    """Return the `CLVR_*` variables that nothing reads, each with the name that it may be a slip of."""
    known = [*(PREFIX + name.upper() for name in Settings.model_fields), *_OTHER_VARIABLES]
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    similar = (get_close_matches(name, known, n=1, cutoff=_MIN_SIMILARITY) for name in unknown)
    return {name: next(iter(names), None) for name, names in zip(unknown, similar, strict=True)}


def _merge(flags: Mapping[str, Any], file: Path | None) -> tuple[Settings, dict[str, str]]:
    path = settings_file(file)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, value in (_read_yaml(path) if path else {}).items():
        values[name], sources[name] = value, str(path)
    for name in Settings.model_fields:
        variable = PREFIX + name.upper()
        if variable in os.environ:
            values[name], sources[name] = os.environ[variable], variable
        if flags.get(name) is not None:
            values[name], sources[name] = flags[name], "flag"
    try:
        return Settings(**values), sources
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        where = sources.get(name, "default")
        if first["type"] == "extra_forbidden":
            similar = get_close_matches(name, Settings.model_fields, n=1)
            remedy = f"Did you mean {similar[0]}? " if similar else ""
            raise BadSetting(
                f"{where} has a setting {name!r}, which does not exist",
                remedy=f"{remedy}`clvr config` lists all settings.",
            ) from error
        raise BadSetting(
            f"setting {name!r} from {where}: {first['msg']}", remedy="`clvr config` lists all settings."
        ) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise BadSetting(
            f"settings file {path}{line} cannot be read: {str(error).splitlines()[0]}",
            remedy="Correct the file, or its permissions.",
        ) from error
    if not isinstance(content, dict):
        raise BadSetting(
            f"settings file {path} must hold `name: value` lines", remedy="`clvr config` lists all settings."
        )
    return content
