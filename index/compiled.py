"""Functions compiled for this processor when they are first called, and kept on disk for the next time."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numba

_P = ParamSpec("_P")
_R = TypeVar("_R")

_one_at_a_time = threading.Lock()


def compiled(*given: Any) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Compile for arguments of the numba types `given`; calls do not hold Python's lock.

    The types are said beforehand so that nothing is compiled anew because of an array's layout: TypeError.
    """

    def wrap(function: Callable[_P, _R]) -> Callable[_P, _R]:
        made: list[Callable[_P, _R]] = []

        @wraps(function)
        def call(*args: _P.args, **named: _P.kwargs) -> _R:
            if not made:
                with _one_at_a_time:
                    if not made:
                        made.append(_compile(function, given))
            return made[0](*args, **named)

        return call

    return wrap


def inlined(*, any_order: bool = False) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Compile together with whoever calls it. any_order: sums are taken as vector registers like them."""

    def wrap(function: Callable[_P, _R]) -> Callable[_P, _R]:
        how = {"reassoc", "contract", "nsz"} if any_order else False  # NaN and infinity keep their meaning
        within: Callable[_P, _R] = numba.njit(nogil=True, fastmath=how)(function)
        return within

    return wrap


def _compile(function: Callable[_P, _R], given: tuple[Any, ...]) -> Callable[_P, _R]:
    try:
        kept: Callable[_P, _R] = numba.njit(given, nogil=True, cache=True)(function)
    except RuntimeError:  # nowhere to keep it: neither beside the source nor in the user's cache
        kept = numba.njit(given, nogil=True)(function)
    return kept
