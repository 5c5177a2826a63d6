"""A process that is killed at a write: some work ends before or after its n-th change of an object."""

from collections.abc import Callable
from typing import Any

import pytest

from infra.store import Store

WRITES = ("put", "create", "replace", "delete")


class Killed(BaseException):
    """The process ends."""


def killed_at(
    number: int, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch, *, after: bool = False
) -> bool:
    """Do some work until its n-th write, or until `after` it; return whether it was killed.

    Each object of a deletion is a write. Those of locks do not count: a dead process holds no lock.
    """
    left = number

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def count(write: Callable[[], Any]) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and not after:
                raise Killed
            result = write()
            if left == 0:
                raise Killed
            return result

        def change(store: Store, *keys: Any, **options: Any) -> Any:
            if keys and str(keys[0]).startswith("locks/"):
                return original(store, *keys, **options)
            if original.__name__ != "delete":
                return count(lambda: original(store, *keys, **options))
            for key in keys:
                count(lambda key=key: original(store, key))
            return None

        return change

    with monkeypatch.context() as patched:
        for name in WRITES:
            patched.setattr(Store, name, around(getattr(Store, name)))
        try:
            work()
        except Killed:
            return True
    return False
