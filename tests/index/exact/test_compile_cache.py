"""A compiled function is compiled once, by whoever calls it first, also where its code cannot be kept."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import pytest
from numba import types

from index.exact import numba_kernels as module


def test_it_is_compiled_once_for_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def noted(function: Any, given: Any) -> Any:
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(module, "_compile", noted)

    @module.njit_cached(types.int64)
    def twice(number: int) -> int:
        return 2 * number

    assert compiled == []
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(twice, range(40))) == list(range(0, 80, 2))
    assert compiled == ["twice"]


def test_where_the_code_cannot_be_kept_it_is_compiled_for_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    njit = numba.njit

    def nowhere(*given: Any, cache: bool = False, **how: Any) -> Any:
        if cache:  # what numba raises where no folder can be written to; root could write to any
            raise RuntimeError("cannot cache function 'total': no locator available")
        return njit(*given, **how)

    monkeypatch.setattr(numba, "njit", nowhere)

    @module.njit_cached(types.float64[::1])
    def total(values: Any) -> float:
        some = 0.0
        for value in values:
            some += value
        return some

    assert total(np.arange(5.0)) == 10.0
