"""Folders on local disk for the time of a computation; those that a killed process left are removed.

A process holds a lock on its folder, which ends with it, however it ends. So the next process that needs a
folder knows which of them nobody uses. Process numbers would not tell: containers may share a disk.
"""

import fcntl
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

_PREFIX = "clvr-scratch-"


class ScratchFolder:
    """A folder below TMPDIR, as a context or for as long as the object lives."""

    def __init__(self) -> None:
        """Make the folder; the first one of a process removes those of dead processes."""
        _remove_abandoned(tempfile.gettempdir())
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            handle = _open(path)
            if handle is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if path.exists():  # and was not removed before it was locked
                    break
                os.close(handle)
        self.path = path
        self._finalizer = weakref.finalize(self, _remove, path, handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._finalizer()


@cache
def _remove_abandoned(parent: str) -> None:
    for path in Path(parent).glob(f"{_PREFIX}*"):
        handle = _open(path)
        if handle is None:
            continue
        try:
            if os.fstat(handle).st_uid == os.getuid():
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # its process is alive
        finally:
            os.close(handle)


def _open(path: Path) -> int | None:
    with suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    return None


def _remove(path: Path, handle: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(handle)
