"""`clvr submit` and `clvr jobs`: any job verb on a cluster, through Ray Jobs.

What is sent can be read by everybody who sees the cluster's dashboard: the command line, the metadata and
the runtime environment. So secrets are never sent. A job finds them on the cluster, under their names.
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
"""What must be the same on both sides: the engines whose behaviour our contracts rest on."""

OPEN_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ALLOW_HTTP",
)
"""Where object storage is: no secrets, and the same for a job as for a verb at the terminal."""

SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "CLVR_MILVUS_TOKEN",
    "CLVR_JOBS_TOKEN",
    "CLVR_WEBHOOK",
    "RAY_AUTH_TOKEN",
)
NOT_SENT = frozenset({"ray", "jobs_url", "jobs_ca"})  # a job is inside of the cluster already
EXCLUDED = (".git", ".venv", ".env", ".env.*", "*.pem", "*.key", "__pycache__", "id_*", ".aws", ".netrc")

_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|WEBHOOK|_KEY$", re.IGNORECASE)
_SHORTEST_SECRET = 6  # what is shorter stands in any text by chance


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """A verb with its arguments, and what it runs in."""

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
    """Send a verb to the cluster; return the cluster, the job's name, and what should be said about it.

    chosen: settings that are not at their defaults, as text, by name. Nothing is sent unless all of it is
    fit to be seen. Raises BadSetting for a secret in what would be sent, RayUnreachable, RayDenied.
    """
    known = known_secrets(settings)
    entrypoint = entrypoint_of(request)
    environment = runtime_env_of(request, chosen)
    refuse_secrets({"command": entrypoint, "runtime environment": str(environment)}, known)
    cluster = JobCluster(settings)
    job = request.job or new_name(request.command[0])
    metadata = {
        "verb": request.command[0],
        "by": current_user(),
        "clvr": version("clvr-archive"),
    }
    sent = cluster.submit(job, entrypoint, environment, metadata)
    kept = [name for name in SECRET_VARIABLES if name in known and name not in request.secret_env]
    kept = [name for name in kept if name not in ("CLVR_JOBS_TOKEN", "RAY_AUTH_TOKEN")]
    notes = []
    if kept:
        checks = " ".join(f"--secret-env {name}" for name in kept)
        notes.append(f"not sent, the cluster must have its own: {', '.join(kept)} (to check: {checks})")
    return cluster, sent, notes


def retry(job: str, settings: Settings) -> tuple[JobCluster, str]:
    """Start a job again as it was sent: the same command and runtime environment, a new name.

    Raises JobMissing; BadInput for one that is still under way.
    """
    cluster = JobCluster(settings)
    before = cluster.find(job)
    if not before.over:
        raise BadInput(f"job {job} is under way: {before.status}", remedy=f"clvr jobs stop {job}, or wait.")
    metadata = before.metadata | {"retry_of": job}
    environment = {name: value for name, value in before.runtime_env.items() if not name.startswith("_")}
    name = new_name(before.metadata.get("verb", "job"))
    return cluster, cluster.submit(name, before.entrypoint, environment, metadata)


def entrypoint_of(request: SubmitRequest) -> str:
    """The command line of the job."""
    checks = [word for name in request.secret_env for word in ("--secret-env", name)]
    if not request.any_versions:
        checks += [
            word for name in VERSION_CHECKED_PACKAGES for word in ("--expect", f"{name}=={version(name)}")
        ]
    return shlex.join([request.python, "-m", "jobs.cli.entrypoint", *checks, "--", *request.command])


def runtime_env_of(request: SubmitRequest, chosen: Mapping[str, str]) -> dict[str, Any]:
    """Ray's runtime environment of the job: its folder, its packages or image, and settings without secrets.

    Raises BadSetting for a file that is none, and for secrets in the folder's settings file.
    """
    environment = _read(request.runtime_env) if request.runtime_env else {}
    variables = {name: os.environ[name] for name in OPEN_VARIABLES if os.environ.get(name)}
    for name, value in chosen.items():
        if name not in NOT_SENT and not _secret(name):
            variables[f"CLVR_{name.upper()}"] = value
    given = {str(name): str(value) for name, value in (environment.get("env_vars") or {}).items()}
    for name in given:
        if _SECRET_NAME.search(name) or name in SECRET_VARIABLES:
            raise BadSetting(
                f"{request.runtime_env}: env_vars has {name}, and everybody who sees the job sees it",
                remedy=f"Set it on the cluster, and submit with --secret-env {name}, which checks that.",
            )
    environment["env_vars"] = variables | given
    if request.working_dir is not None:
        environment["working_dir"] = str(_check_working_dir(request.working_dir))
        environment["excludes"] = [*environment.get("excludes", ()), *EXCLUDED]
    return environment


def known_secrets(settings: Settings) -> dict[str, str]:
    """The secrets that this process knows, by the variable that they belong in."""
    found = {name: os.environ[name] for name in SECRET_VARIABLES if os.environ.get(name)}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            found[f"CLVR_{name.upper()}"] = value.get_secret_value()
    return found


def refuse_secrets(texts: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Raise BadSetting if a text holds a secret that we know, or a URL with a password."""
    for where, text in texts.items():
        for name, value in known.items():
            if len(value) >= _SHORTEST_SECRET and (value in text or shlex.quote(value) in text):
                raise BadSetting(
                    f"the {where} of the job would hold the value of {name}, and everybody who sees the job "
                    "sees it",
                    remedy=f"Set {name} on the cluster, and submit with --secret-env {name}.",
                )
        for url in re.findall(r"\bhttps?://[^\s'\",}]+", text):
            if urlsplit(url).password:
                raise BadSetting(f"the {where} of the job would hold a URL with a password in it")


def refuse_options(command: Sequence[str]) -> None:
    """Raise BadSetting for an option whose value is a secret by its nature."""
    for word in command:
        if word.partition("=")[0] == "--webhook":
            raise BadSetting(
                "--webhook of a submitted job would be seen by everybody who sees the job",
                remedy="Set CLVR_WEBHOOK on the cluster, and submit with --secret-env CLVR_WEBHOOK.",
            )


def new_name(verb: str) -> str:
    """A name that no other job has."""
    return f"{verb}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def _check_working_dir(folder: Path) -> Path:
    if not folder.is_dir():
        raise BadSetting(f"--working-dir {folder} is no folder")
    file = folder / DEFAULT_FILE
    if file.is_file():
        found = _read(file)
        for name, value in found.items():
            if value and _secret(name):
                raise BadSetting(
                    f"{file} holds {name}, and the folder would be uploaded",
                    remedy=f"Take it out of the file, and set CLVR_{name.upper()} instead.",
                )
    return folder.resolve()


def _secret(name: str) -> bool:
    """Whether a setting is one that is never shown."""
    known = Settings.model_fields.get(name)
    return known is not None and "SecretStr" in str(known.annotation)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadSetting(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise BadSetting(f"{file} must hold `name: value` lines")
    return found
