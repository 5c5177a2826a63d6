"""`clvr doctor`: check every part of a set-up and name a remedy for each fault."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from infra.errors import BadSetting
from infra.settings import PREFIX, Settings, load_settings, settings_file, unknown_variables
from infra.store import StoreSettings
from jobs.doctor.check import Check, CheckResult, failed, ok, run_checks, warning
from jobs.doctor.machine_checks import check_clock, check_disk, check_files, check_gpu
from jobs.doctor.ray_checks import check_jobs, check_ray
from jobs.doctor.service_checks import (
    check_archive,
    check_milvus,
    check_milvus_bucket,
    check_model,
    check_store,
)


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """What to check. Without an archive or a model, their checks are skipped."""

    flags: Mapping[str, Any]
    archive: str | None = None
    model: str | None = None
    crops: int = 0
    config: Path | None = None
    seconds: float = 20.0


class Finding(TypedDict):
    """The result of one check. A command that needs a broken part will fail."""

    check: str
    state: Literal["ok", "warning", "broken", "skipped"]
    says: str
    remedy: str
    seconds: float


class Findings(TypedDict):
    """The results of all checks."""

    findings: list[Finding]


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """The results of all checks."""

    results: list[CheckResult]

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return not self._count("failed")

    def to_text(self) -> str:
        """Return one line for each result, with its remedy below, and the counts."""
        lines = []
        for result in self.results:
            state = result.state.upper() if result.state == "failed" else result.state
            lines.append(f"{result.check:18} {state:8} {result.message}")
            if result.remedy and result.state in ("failed", "warning"):
                lines.append(f"{'':18} {'':8} -> {result.remedy}")
        failures, warnings = self._count("failed"), self._count("warning")
        counts = [f"{failures} failed" if failures else "no check failed"]
        counts += [f"{warnings} warnings"] if warnings else []
        return "\n".join([*lines, ", ".join(counts)])

    def to_json(self) -> Findings:
        """Return the report for machines; its keys and the state `broken` are a fixed format."""
        return {
            "findings": [
                {
                    "check": result.check,
                    "state": "broken" if result.state == "failed" else result.state,
                    "says": result.message,
                    "remedy": result.remedy,
                    "seconds": result.seconds,
                }
                for result in self.results
            ]
        }

    def _count(self, state: str) -> int:
        return sum(result.state == state for result in self.results)


def run_doctor(options: DoctorOptions) -> DoctorReport:
    """Run all checks concurrently. Faults become results, not errors; no secret is shown."""
    try:
        settings = load_settings(options.flags, file=options.config)
        file = settings_file(options.config)
        results = [ok("settings", f"from {file or 'no file'}, the environment and flags")]
    except BadSetting as error:
        # Go on with flags and variables: one broken file must not hide other faults.
        settings = _settings_without_file(options)
        results = [failed("settings", error.message, error.remedy)]
    results += _check_variables()
    try:
        storage = StoreSettings.from_env()
    except BadSetting as error:
        storage = StoreSettings()
        results.append(failed("storage settings", error.message, error.remedy))
    checks = [
        Check("files", partial(check_files, options.config)),
        Check("runs", partial(check_store, "runs", settings.runs, storage, writes=True)),
        Check("archive", partial(check_archive, options.archive, storage)),
        Check("clock", partial(check_clock, storage, settings)),
        Check("milvus", partial(check_milvus, settings)),
        Check("milvus bucket", partial(check_milvus_bucket, settings, storage)),
        Check("ray", partial(check_ray, settings, options.seconds), seconds=options.seconds + 5),
        Check("jobs", partial(check_jobs, settings)),
        Check("gpu", check_gpu, seconds=60),  # the import of torch alone takes seconds
        Check("disk", partial(check_disk, settings, options.crops)),
        Check("model", partial(check_model, options.model), seconds=60),
    ]
    secrets = _secrets(settings, storage)
    return DoctorReport(results + run_checks(checks, seconds=options.seconds, secrets=secrets))


def _check_variables() -> list[CheckResult]:
    unknown = unknown_variables()
    message = f"no setting has the name of {', '.join(unknown)}"
    return [warning("settings", message, "`clvr config` lists all settings.")] if unknown else []


def _settings_without_file(options: DoctorOptions) -> Settings:
    values: dict[str, Any] = {name: value for name, value in options.flags.items() if value is not None}
    for name in Settings.model_fields:
        value = values.get(name, os.environ.get(PREFIX + name.upper()))
        if value is not None:
            values[name] = value
    try:
        return Settings.model_validate(values)
    except ValueError:
        return Settings.model_validate({})


def _secrets(settings: Settings, storage: StoreSettings) -> list[str]:
    secrets = [storage.secret_key, storage.session_token, os.environ.get("RAY_AUTH_TOKEN")]
    for setting in (settings.milvus_token, settings.jobs_token, settings.webhook):
        if setting:
            value = setting.get_secret_value()
            secrets += [value, value.partition(":")[2]]
    return [secret for secret in secrets if secret]
