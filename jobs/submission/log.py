"""The log of a job as people read it: on a cluster verbs speak JSON, a line a message."""

import json
from collections.abc import Callable


class Spoken:
    """Takes pieces of a log as they come, and says its lines when they are whole."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._rest = ""

    def __call__(self, piece: str) -> None:
        """Take the next piece."""
        *lines, self._rest = (self._rest + piece).split("\n")
        for line in lines:
            self._say(spoken(line))

    def end(self) -> None:
        """Say a last line that nothing ended."""
        if self._rest:
            self._say(spoken(self._rest))
        self._rest = ""


def spoken(line: str) -> str:
    """Return the message of a structured line; any other line as it is."""
    if not line.startswith("{"):
        return line
    try:
        said = json.loads(line)
        text = f"{said['time'][11:19]} {said['message']}"
        if said.get("level") == "error":  # in the words of the same verb at a terminal
            text = f"error: {said['message']}"
            text += f"\nremedy: {said['remedy']}" if said.get("remedy") else ""
        return text
    except (ValueError, KeyError, TypeError):
        return line
