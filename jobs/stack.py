"""`clvr stack`: start, show and end the local servers for development."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.errors import BadInput
from infra.logging import logger
from infra.servers.stack import PARTS, ServerStatus, Stack


@dataclass(frozen=True, slots=True)
class StackReport:
    """The result of `clvr stack`: `env` is the shell file for clients, "" if no server was started."""

    folder: str
    env: str
    servers: list[ServerStatus]

    @property
    def healthy(self) -> bool:
        """Whether every server that was started still serves."""
        started = [server for server in self.servers if server.health != "not started"]
        return bool(started) and all(server.health == "serving" for server in started)

    def to_text(self) -> str:
        """Return one line per server, and the next command."""
        lines = [
            f"{server.name:10} {server.health:14} {server.address:28} "
            + (f"pid {server.pid}, since {server.since}" if server.since else "")
            for server in self.servers
        ]
        if self.healthy:
            lines.append(
                f"to use it:  . {self.env}        to end it:  clvr stack down --folder {self.folder}"
            )
        elif self.env:
            lines.append(f"to start what is missing:  clvr stack up --folder {self.folder}")
        return "\n".join(line.rstrip() for line in lines)

    def to_json(self) -> dict[str, Any]:
        """Return the status as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class StoppedStack:
    """The processes that `clvr stack down` ended, and whether it deleted the data."""

    ended: int
    purged: bool


def stack_up(folder: Path, *, without: Sequence[str] = (), cpus: int | None = None) -> StackReport:
    """Start the servers that do not run. Raises BadInput for an unknown part, and what `Stack.up` raises."""
    unknown = set(without) - set(PARTS)
    if unknown:
        raise BadInput(
            f"no such part: {', '.join(sorted(unknown))}", remedy=f"name one of {', '.join(PARTS)}"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        Stack(folder).up(tuple(part for part in PARTS if part not in without), cpus=cpus, log=logger.info)
    for warning in caught:
        if warning.category is UserWarning:
            logger.warning(f"warning: {warning.message}")
    return stack_status(folder)


def stack_status(folder: Path) -> StackReport:
    """Return the status of every server."""
    stack = Stack(folder)
    env = str(stack.env_file) if stack.env_file.exists() else ""
    return StackReport(str(stack.folder), env, stack.status())


def stack_down(folder: Path, *, purge: bool = False) -> int:
    """End the stack and return the number of its processes. Raises BadInput without a stack."""
    return Stack(folder).down(purge=purge, log=logger.info)
