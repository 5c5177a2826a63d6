"""A kernel is compiled once, by the thread that calls it first, also without a writable cache folder."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import pytest
from numba import types

from index.exact.numba_kernels import njit_cached


def test_a_kernel_is_compiled_once_for_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def record(*_: Any, **__: Any) -> Any:
        def wrap(function: Any) -> Any:
            compiled.append(function.__name__)
            return function

        return wrap

    monkeypatch.setattr(numba, "njit", record)

    @njit_cached(types.int64)
    def twice(number: int) -> int:
        return 2 * number

    assert compiled == []
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(twice, range(40))) == list(range(0, 80, 2))
    assert compiled == ["twice"]


def test_without_a_writable_cache_folder_a_kernel_is_compiled_for_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    njit = numba.njit

    def refuse_cache(*signature: Any, cache: bool = False, **options: Any) -> Any:
        if cache:  # numba's error for folders that are not writable; root could write to any
            raise RuntimeError("cannot cache function 'total': no locator available")
        return njit(*signature, **options)

    monkeypatch.setattr(numba, "njit", refuse_cache)

    @njit_cached(types.float64[::1])
    def total(values: Any) -> float:
        result = 0.0
        for value in values:
            result += value
        return result

    assert total(np.arange(5.0)) == 10.0
