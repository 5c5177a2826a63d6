"""The console on stderr, which log lines and progress displays share."""

from rich.console import Console

from infra.log_format import wants_json


class StderrConsole(Console):
    """A rich console on stderr, which counts as a terminal only if log lines are text."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False)

    @property
    def is_terminal(self) -> bool:
        """Whether a live display makes sense."""
        return super().is_terminal and not wants_json()


console = StderrConsole()
