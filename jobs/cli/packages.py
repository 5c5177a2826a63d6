"""Packages that a command needs and that this installation lacks, and the role that brings them."""

import re

from infra.errors import BadSetting

_DISTRIBUTION = "clvr-archive"
_OPTIONAL = re.compile(r"^([A-Za-z0-9._-]+).*\bextra\s*==")


def missing_package(error: ModuleNotFoundError, command: str | None) -> BadSetting | None:
    """Return the error for a module of a role that is not installed; None if the module is of no role.

    command: the one that failed, which may be the name of its role.
    """
    from importlib.metadata import PackageNotFoundError, metadata

    package = (error.name or "").partition(".")[0]
    try:
        installed = metadata(_DISTRIBUTION)
    except PackageNotFoundError:  # the sources were shipped to a cluster without being installed
        return None
    optional = {
        _canonical(found[1])
        for requirement in installed.get_all("Requires-Dist") or []
        if (found := _OPTIONAL.match(requirement))
    }
    if _canonical(package) not in optional:
        return None
    role = command if command in (installed.get_all("Provides-Extra") or []) else "all"
    return BadSetting(
        f"this command needs the package {package}, which is not installed",
        remedy=f"Install its role: pip install '{_DISTRIBUTION}[{role}]'.",
    )


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
