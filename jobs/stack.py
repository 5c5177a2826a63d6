"""`clvr stack`: the local servers for development, started, shown and ended."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.errors import BadInput
from infra.servers.stack import PARTS, Stack, Standing
from jobs.runtime.progress import console

DEFAULT_FOLDER = Path("clvr-data/stack")


@dataclass(frozen=True, slots=True)
class StackReport:
    """What stands: `env` is the shell file that points every verb at it, "" if nothing was started."""

    folder: str
    env: str
    servers: list[Standing]

    @property
    def whole(self) -> bool:
        """Whether everything that was started still serves."""
        started = [server for server in self.servers if server.health != "not started"]
        return bool(started) and all(server.health == "serving" for server in started)

    def __str__(self) -> str:
        """A line a server, and what to do next."""
        lines = [
            f"{server.name:10} {server.health:14} {server.address:28} "
            + (f"pid {server.pid}, since {server.since}" if server.since else "")
            for server in self.servers
        ]
        if self.whole:
            lines.append(
                f"to use it:  . {self.env}        to end it:  clvr stack down --folder {self.folder}"
            )
        elif self.env:
            lines.append(f"to start what is missing:  clvr stack up --folder {self.folder}")
        return "\n".join(line.rstrip() for line in lines)


def stack_up(folder: Path, *, without: Sequence[str] = (), cpus: int | None = None) -> StackReport:
    """Start what does not run yet. Raises what `Stack.up` raises, BadInput for an unknown part."""
    unknown = set(without) - set(PARTS)
    if unknown:
        raise BadInput(
            f"no such part: {', '.join(sorted(unknown))}", remedy=f"name one of {', '.join(PARTS)}"
        )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        Stack(folder).up(tuple(part for part in PARTS if part not in without), cpus=cpus, say=console.print)
    for warning in said:
        if warning.category is UserWarning:
            console.print(f"warning: {warning.message}")
    return stack_status(folder)


def stack_status(folder: Path) -> StackReport:
    """Say what runs and what does not."""
    stack = Stack(folder)
    env = str(stack.env_file) if stack.env_file.exists() else ""
    return StackReport(str(stack.folder), env, stack.status())


def stack_down(folder: Path, *, purge: bool = False) -> int:
    """End the stack and return how many processes it had. Raises BadInput if there is none."""
    return Stack(folder).down(purge=purge, say=console.print)
