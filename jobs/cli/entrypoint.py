"""The entrypoint of a submitted job: `python -m jobs.cli.entrypoint [checks] -- COMMAND ARGS…`.

It checks the versions and secrets of the cluster, and then runs `clvr COMMAND ARGS…`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from infra.errors import BadSetting, ClvrError, Mismatch

PACKAGE = "clvr-archive"
SECRETS_FOLDER = "CLVR_SECRETS"
"""Variable with a folder of files named as variables, as Kubernetes mounts a Secret."""


def require_secrets(names: Sequence[str]) -> None:
    """Set variables from files of the same names, and check that all are set.

    Raises BadSetting with the missing names.
    """
    folder = Path(os.environ.get(SECRETS_FOLDER) or "/run/secrets")
    missing = []
    for name in names:
        if os.environ.get(name):
            continue
        try:
            os.environ[name] = (folder / name).read_text(encoding="utf-8").strip()
        except OSError:
            missing.append(name)
    if missing:
        raise BadSetting(
            f"the cluster has no {', '.join(missing)}, neither in its nodes' environment nor in {folder}",
            remedy="Set it on the cluster, such as by a Kubernetes Secret. Secrets are never submitted.",
        )


def require_versions(expected: Sequence[str]) -> None:
    """Check that the cluster has the versions 'name==version' of the submitter. Raises Mismatch."""
    differences = []
    for requirement in expected:
        name, _, submitted = requirement.partition("==")
        try:
            installed = _public(version(name))
        except PackageNotFoundError:
            if name == PACKAGE:
                continue  # the job uploaded the sources
            installed = "none"
        if installed != _public(submitted):
            differences.append(f"{name} is {installed} on the cluster and {submitted} at the submitter")
    if differences:
        raise Mismatch(
            "; ".join(differences),
            remedy="Install the same version, pin it by --runtime-env, or submit with --any-versions.",
        )


def _public(text: str) -> str:
    """Return a version without its build: torch is +cpu on a laptop and +cu130 on a GPU node."""
    return text.partition("+")[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the checks, then the command, in this process."""
    parser = argparse.ArgumentParser(prog="jobs.cli.entrypoint")
    parser.add_argument("--secret-env", action="append", default=[])
    parser.add_argument("--expect", action="append", default=[])
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    try:
        require_versions(options.expect)
        require_secrets(options.secret_env)
    except ClvrError as error:
        print(f"error: {error.message}\nremedy: {error.remedy}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    sys.argv = ["clvr", *options.command]
    from jobs.cli.main import main as clvr

    clvr()


if __name__ == "__main__":
    main()
