"""The console script `clvr`: `jobs.cli.app`, with Ctrl-C handled while it is imported."""

from jobs.cli.interrupts import exit_on_interrupt


def main() -> None:
    """Run `clvr`."""
    exit_on_interrupt()
    from jobs.cli.app import main as clvr

    clvr()
