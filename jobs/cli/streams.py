"""stdout and stderr of a command: results apart from what libraries print, and readers that go away."""

import errno
import io
import os
import sys
from typing import NoReturn, TextIO

from infra.errors import ClvrError, DiskFull

STDOUT_CLOSED = 141
"""The exit code of a command whose stdout was closed by its reader: that of a program killed by SIGPIPE."""

_results: TextIO | None = None


class ResultStream(io.TextIOWrapper):
    """Writes results; what cannot be written ends the command with the right exit code and no traceback.

    Raises SystemExit with `STDOUT_CLOSED` if the reader of a pipe has gone, and DiskFull or ClvrError for a
    file that cannot be written.
    """

    def write(self, text: str) -> int:
        """Write text."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> NoReturn:
        _discard(self.fileno())
        if error.errno == errno.EPIPE:
            raise SystemExit(STDOUT_CLOSED) from None
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ClvrError
        raise kind(
            f"the output cannot be written: {error.strerror}", remedy="send stdout to a file with free space"
        ) from None


class MessageStream(io.TextIOWrapper):
    """Writes messages for as long as they can be written: without a reader the command goes on."""

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        try:
            return super().write(text)
        except OSError:
            _discard(self.fileno())
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        try:
            super().flush()
        except OSError:
            _discard(self.fileno())


def _discard(descriptor: int) -> None:
    """Send a stream nowhere, so that what it still holds does not fail when the interpreter ends."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)


def open_missing_streams() -> None:
    """Open stdin, stdout and stderr on the null device where the caller closed them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def prepare_streams(*, keep_stdout: bool) -> None:
    """Make stdin, stdout and stderr ready for a command; with `keep_stdout` libraries may print on stdout."""
    open_missing_streams()
    sys.stderr = MessageStream(
        os.fdopen(sys.stderr.fileno(), "wb", closefd=False),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )
    if keep_stdout:
        sys.stdout = _result_stream(os.dup(sys.stdout.fileno()))
    else:
        redirect_stdout_to_stderr()


def redirect_stdout_to_stderr() -> None:
    """Send everything that libraries print on stdout to stderr; only `results()` writes to stdout.

    Ray reports a dead worker on stdout, which would break `--json`. Its C++ code writes below Python's
    `sys.stdout`, so the file descriptor is redirected and not only the Python object.
    """
    global _results
    sys.stdout.flush()
    _results = _result_stream(os.dup(sys.stdout.fileno()))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def _result_stream(descriptor: int) -> ResultStream:
    return ResultStream(os.fdopen(descriptor, "wb"), encoding="utf-8", line_buffering=True)


def results() -> TextIO:
    """Return the stream for results: the original stdout."""
    return _results or sys.stdout
