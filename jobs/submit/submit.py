"""`clvr submit` and `clvr jobs`: run a command on a cluster, through Ray Jobs.

Everyone with access to the cluster's dashboard can read the command line, the metadata and the runtime
environment of a job. Secrets are therefore never sent: a job finds them on the cluster, by their names.
"""

import os
import re
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import SecretStr

from index.documents import current_user
from infra.errors import BadInput, BadSetting
from infra.settings import DEFAULT_FILE, Settings
from jobs.submit.client import JobCluster

VERSION_CHECKED_PACKAGES = ("clvr-archive", "ray", "torch", "pyarrow", "pymilvus")
"""Packages that must have the same version on both sides."""

OPEN_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ALLOW_HTTP",
    "AWS_SKIP_SIGNATURE",
    "AWS_REQUEST_PAYER",
    "CLVR_PUBLIC_BUCKETS",
)
"""Variables of object storage that are not secret: a job gets those of the terminal."""

SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "CLVR_MILVUS_TOKEN",
    "CLVR_JOBS_TOKEN",
    "CLVR_WEBHOOK",
    "RAY_AUTH_TOKEN",
)
NOT_SENT = frozenset({"ray", "jobs_url", "jobs_ca"})  # a job already runs in the cluster
EXCLUDED = (".git", ".venv", ".env", ".env.*", "*.pem", "*.key", "__pycache__", "id_*", ".aws", ".netrc")

_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|WEBHOOK|_KEY$", re.IGNORECASE)
_MIN_SECRET_LENGTH = 6  # shorter values occur in any text by chance


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """The request of `clvr submit`: a command with its arguments, and its environment."""

    command: tuple[str, ...]
    job: str | None = None
    working_dir: Path | None = None
    runtime_env: Path | None = None
    secret_env: tuple[str, ...] = ()
    any_versions: bool = False
    python: str = "python"


def submit(
    request: SubmitRequest, settings: Settings, chosen: Mapping[str, str]
) -> tuple[JobCluster, str, list[str]]:
    """Submit a command; return the cluster, the job's name, and notes for the user.

    chosen: settings that differ from their defaults, as text, by name. Raises BadSetting, before anything is
    sent, for a secret in the job; RayUnreachable, RayDenied.
    """
    secret_values = known_secrets(settings)
    entrypoint = entrypoint_of(request)
    environment = runtime_env_of(request, chosen)
    refuse_secrets({"command": entrypoint, "runtime environment": str(environment)}, secret_values)
    cluster = JobCluster(settings)
    job = request.job or new_name(request.command[0])
    metadata = {
        "verb": request.command[0],
        "by": current_user(),
        "clvr": version("clvr-archive"),
    }
    sent = cluster.submit(job, entrypoint, environment, metadata)
    unchecked = [
        name
        for name in SECRET_VARIABLES
        if name in secret_values and name not in (*request.secret_env, "CLVR_JOBS_TOKEN", "RAY_AUTH_TOKEN")
    ]
    notes = []
    if unchecked:
        checks = " ".join(f"--secret-env {name}" for name in unchecked)
        notes.append(f"not sent, the cluster must define: {', '.join(unchecked)} (to check: {checks})")
    return cluster, sent, notes


def retry(job: str, settings: Settings) -> tuple[JobCluster, str]:
    """Submit a finished job again under a new name: the same command and runtime environment.

    Raises JobMissing; BadInput for a job that still runs.
    """
    cluster = JobCluster(settings)
    before = cluster.find(job)
    if not before.is_finished:
        raise BadInput(f"job {job} still runs: {before.status}", remedy=f"clvr jobs stop {job}, or wait.")
    metadata = before.metadata | {"retry_of": job}
    environment = {name: value for name, value in before.runtime_env.items() if not name.startswith("_")}
    name = new_name(before.metadata.get("verb", "job"))
    return cluster, cluster.submit(name, before.entrypoint, environment, metadata)


def entrypoint_of(request: SubmitRequest) -> str:
    """Return the command line of the job."""
    checks = [argument for name in request.secret_env for argument in ("--secret-env", name)]
    if not request.any_versions:
        for name in VERSION_CHECKED_PACKAGES:
            checks += ["--expect", f"{name}=={version(name)}"]
    return shlex.join([request.python, "-m", "jobs.cli.entrypoint", *checks, "--", *request.command])


def runtime_env_of(request: SubmitRequest, chosen: Mapping[str, str]) -> dict[str, Any]:
    """Return Ray's runtime environment of the job: its folder, packages or image, and settings.

    Raises BadSetting for an invalid file, and for secrets in it or in the folder's settings file.
    """
    environment = _read_yaml(request.runtime_env) if request.runtime_env else {}
    variables = {name: os.environ[name] for name in OPEN_VARIABLES if os.environ.get(name)}
    for name, value in chosen.items():
        if name not in NOT_SENT and not _is_secret_setting(name):
            variables[f"CLVR_{name.upper()}"] = value
    given = {str(name): str(value) for name, value in (environment.get("env_vars") or {}).items()}
    for name in given:
        if _SECRET_NAME.search(name) or name in SECRET_VARIABLES:
            raise BadSetting(
                f"{request.runtime_env}: env_vars has {name}, which everyone who sees the job can read",
                remedy=f"Set it on the cluster, and submit with --secret-env {name}, which checks that.",
            )
    environment["env_vars"] = variables | given
    if request.working_dir is not None:
        environment["working_dir"] = str(_check_working_dir(request.working_dir))
        environment["excludes"] = [*environment.get("excludes", ()), *EXCLUDED]
    return environment


def known_secrets(settings: Settings) -> dict[str, str]:
    """Return the secrets of this process, by the variables that define them."""
    values = {name: os.environ[name] for name in SECRET_VARIABLES if os.environ.get(name)}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            values[f"CLVR_{name.upper()}"] = value.get_secret_value()
    return values


def refuse_secrets(texts: Mapping[str, str], secret_values: Mapping[str, str]) -> None:
    """Raise BadSetting if a text contains one of the secrets, or a URL with a password."""
    for title, text in texts.items():
        for name, value in secret_values.items():
            if len(value) >= _MIN_SECRET_LENGTH and (value in text or shlex.quote(value) in text):
                raise BadSetting(
                    f"the {title} of the job contains the value of {name}, which everyone who sees the job "
                    "can read",
                    remedy=f"Set {name} on the cluster, and submit with --secret-env {name}.",
                )
        for url in re.findall(r"\bhttps?://[^\s'\",}]+", text):
            if urlsplit(url).password:
                raise BadSetting(f"the {title} of the job contains a URL with a password")


def refuse_options(command: Sequence[str]) -> None:
    """Raise BadSetting for an option whose value is always secret."""
    for argument in command:
        if argument.partition("=")[0] == "--webhook":
            raise BadSetting(
                "everyone who sees a submitted job can read its --webhook",
                remedy="Set CLVR_WEBHOOK on the cluster, and submit with --secret-env CLVR_WEBHOOK.",
            )


def new_name(command: str) -> str:
    """Return a name that no other job has."""
    return f"{command}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def _check_working_dir(folder: Path) -> Path:
    if not folder.is_dir():
        raise BadSetting(f"--working-dir {folder} is not a folder")
    file = folder / DEFAULT_FILE
    if file.is_file():
        for name, value in _read_yaml(file).items():
            if value and _is_secret_setting(name):
                raise BadSetting(
                    f"{file} holds {name}, and the folder would be uploaded",
                    remedy=f"Take it out of the file, and set CLVR_{name.upper()} instead.",
                )
    return folder.resolve()


def _is_secret_setting(name: str) -> bool:
    """Whether the value of a setting is never shown."""
    field = Settings.model_fields.get(name)
    return field is not None and "SecretStr" in str(field.annotation)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadSetting(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise BadSetting(f"{file} must hold `name: value` lines")
    return values
