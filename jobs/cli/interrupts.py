"""Ctrl-C from the first moment of a process: `clvr` imports for a second before a command can handle it."""

import os
import signal
from types import FrameType

INTERRUPTED = 130


def exit_on_interrupt() -> None:
    """Let Ctrl-C end the process at once and without a word: nothing has begun, or all has been said."""
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _exit):  # not if it is ignored
        signal.signal(signal.SIGINT, _exit)


def allow_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, for a command that has something to put in order."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
