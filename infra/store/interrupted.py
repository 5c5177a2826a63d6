"""Writes that were cut off: in a local folder they leave a file beside the object, `NAME#1`, with its bytes.

No listing shows these files and no command reads them, but a purge must find them. On S3 a write that was
cut off leaves no object; parts of its upload stay until they are aborted.
"""

import os
import re
import time
from pathlib import Path

from infra.store.store import Store

QUIET_SECONDS = 60.0
"""A write has ended if its file has not grown for so long: it renames the file at its end."""

_NAME = re.compile(r"\.(parquet|json|html|safetensors|pt)#\d+$")


def interrupted_writes(store: Store, prefix: str = "") -> list[str]:
    """Return the names of files below a prefix that look like unfinished writes; none on S3."""
    if not store.local:
        return []
    root = Path(store.uri)
    paths = (Path(folder, name) for folder, _, names in os.walk(root / prefix) for name in names)
    return sorted(str(path.relative_to(root)) for path in paths if _NAME.search(path.name))


def remove_interrupted_writes(store: Store, *, quiet: float = QUIET_SECONDS) -> int:
    """Delete the files of writes that were cut off, and wait for those that are under way; return how many.

    quiet: s after which a file that does not grow is deleted.
    """
    paths = [Path(store.uri, name) for name in interrupted_writes(store)]
    return sum(_remove_when_quiet(path, quiet) for path in paths)


def _remove_when_quiet(path: Path, quiet: float) -> bool:
    seen, since = None, time.monotonic()
    while True:
        try:
            status = path.stat()
        except FileNotFoundError:
            return False  # renamed: the write has ended
        if (status.st_mtime_ns, status.st_size) != seen:
            seen, since = (status.st_mtime_ns, status.st_size), time.monotonic()
        # Two clocks, because that of a file server may differ from ours.
        if max(time.time() - status.st_mtime, time.monotonic() - since) >= quiet:
            path.unlink(missing_ok=True)
            return True
        time.sleep(min(1.0, quiet / 4))
