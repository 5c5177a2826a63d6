"""Kill this process at its k-th write to the store or to Milvus. Runs inside a fork, before the command.

`install(kill=k, after=False, log=PATH)` counts every write, appends its name to the log, and ends the process
by SIGKILL before (or after) write number k, counted from 1. With k = 0 it only counts.
"""

import functools
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

STORE_WRITES = ("put", "create", "replace", "delete", "copy_from")
MILVUS_WRITES = {
    "create_collection", "drop_collection", "create_index", "insert", "upsert", "delete", "flush", "compact",
    "create_alias", "alter_alias", "drop_alias", "load_collection", "release_collection",
}  # fmt: skip


class _Counter:
    def __init__(self, kill: int, after: bool, log: str) -> None:
        self.kill, self.after, self.log = kill, after, Path(log)
        self.count, self.lock = 0, threading.RLock()

    def around(self, name: str, call: Callable[[], Any]) -> Any:
        with self.lock:
            self.count += 1
            number = self.count
            with self.log.open("a") as file:
                file.write(f"{number} {name}\n")
            if number == self.kill and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
        result = call()
        if number == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def install(*, kill: int, after: bool, log: str) -> None:
    """Wrap the writing methods of Store and Milvus in this process."""
    from index.milvus.client import Milvus
    from infra.store import Store

    counter = _Counter(kill, after, log)

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            label = f"{name} {args[0] if args else ''}"
            return counter.around(label, lambda: original(self, *args, **kwargs))

        return method

    for name in STORE_WRITES:
        setattr(Store, name, wrapped(f"store.{name}", getattr(Store, name)))
    Milvus.bulk_insert = wrapped("milvus.bulk_insert", Milvus.bulk_insert)  # type: ignore[method-assign]
    original_call = Milvus.call

    @functools.wraps(original_call)
    def call(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method not in MILVUS_WRITES:
            return original_call(self, method, *args, **kwargs)
        label = f"milvus.{method} {args[0] if args else ''}"
        return counter.around(label, lambda: original_call(self, method, *args, **kwargs))

    Milvus.call = call  # type: ignore[method-assign]
