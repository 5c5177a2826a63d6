"""What a submitted job runs on the cluster: `python -m jobs.cli.entrypoint [checks] -- VERB ARGS…`.

It looks for what the job needs there, says what is missing, and then is `clvr VERB ARGS…`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from infra.errors import BadSetting, ClvrError, Mismatch

OURS = "clvr-archive"
SECRETS_FOLDER = "CLVR_SECRETS"
"""Variable that names a folder of files, each called like a variable, as Kubernetes mounts a Secret."""


def require_secrets(names: Sequence[str]) -> None:
    """Check that this cluster has the variables, or files of their names; values are never looked at here.

    Raises BadSetting with the names that are missing.
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
            remedy="Set it there, such as by a Kubernetes Secret; a submitted job carries no secrets.",
        )


def require_versions(expected: Sequence[str]) -> None:
    """Check that the cluster has the submitter's versions, 'name==version'. Raises Mismatch."""
    wrong = []
    for line in expected:
        name, _, wanted = line.partition("==")
        try:
            found = _public(version(name))
        except PackageNotFoundError:
            if name == OURS:
                continue  # our sources were sent along
            found = "none"
        if found != _public(wanted):
            wrong.append(f"{name} is {found} here and {wanted} where it was submitted")
    if wrong:
        raise Mismatch(
            "; ".join(wrong),
            remedy="Install the same on both sides, pin it by --runtime-env, or submit with --any-versions.",
        )


def _public(text: str) -> str:
    """A version without what names a build: torch is +cpu on a laptop and +cu on a node with GPUs."""
    return text.partition("+")[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, then run the verb in this process."""
    parser = argparse.ArgumentParser(prog="jobs.cli.entrypoint")
    parser.add_argument("--secret-env", action="append", default=[])
    parser.add_argument("--expect", action="append", default=[])
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args(arguments)
    try:
        require_versions(asked.expect)
        require_secrets(asked.secret_env)
    except ClvrError as error:
        print(f"error: {error.message}\nremedy: {error.remedy}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    sys.argv = ["clvr", *asked.command]
    from jobs.cli.app import main as clvr

    clvr()


if __name__ == "__main__":
    main()
