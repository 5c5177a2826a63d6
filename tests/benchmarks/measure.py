"""Rows, machine and options that all benchmarks share."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

INSTRUCTION_SETS = {
    "amx_bf16": "AMX with bfloat16",
    "avx512_bf16": "AVX-512 with bfloat16",
    "avx512f": "AVX-512, no bfloat16",
    "avx2": "AVX2, no bfloat16",
}

# The variables by which all libraries work as on a processor that has AVX2 only.
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "ATEN_CPU_CAPABILITY": "avx2",
    "FAISS_OPT_LEVEL": "AVX2",
    "NUMBA_CPU_NAME": "haswell",
}
_STARTED = "CLVR_BENCHMARK_STARTED"


@dataclass(frozen=True, slots=True)
class Row:
    """One result, and the baseline that was measured beside it in the same run, if any.

    `ratio` is above 1 where the result is better than the baseline.
    """

    case: str
    result: str
    baseline: str = ""
    ratio: float | None = None


def machine() -> str:
    """Name the processor, its number of cores, its widest instruction set and the memory."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = facts.get("flags", "").split()
    widest = next((text for flag, text in INSTRUCTION_SETS.items() if flag in flags), platform.machine())
    family = f" (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else ""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = facts.get("model name", platform.machine())
    return f"{name}{family}, {os.cpu_count()} cores, {widest}, {gigabytes:.0f} GiB"


def start_again(threads: int, variables: dict[str, str] | None = None) -> None:
    """Start the script again with these variables and threads for all libraries, unless that has happened.

    Without variables, OpenBLAS gets its kernel for AVX-512 where the processor has it: the one that faiss
    chooses on Sapphire Rapids is up to four times slower.
    """
    if _STARTED in os.environ:
        return
    if variables is None:
        has_avx512 = " avx512f " in Path("/proc/cpuinfo").read_text()
        variables = {"OPENBLAS_CORETYPE": "SKYLAKEX"} if has_avx512 else {}
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LANCE_CPU_THREADS", "LANCE_IO_THREADS")
    numbers = {_STARTED: "1"} | dict.fromkeys(names, str(threads))
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | numbers | variables)  # noqa: S606


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add the option by which report.py receives the rows."""
    parser.add_argument("--json", type=Path, help="also write the rows to this file")


def save_rows(rows: list[Row], path: Path | None) -> None:
    """Write rows for report.py; without a path, do nothing."""
    if path:
        path.write_text(json.dumps([asdict(row) for row in rows]))


def load_rows(path: Path) -> list[Row]:
    """Read the rows that a benchmark wrote."""
    return [Row(**row) for row in json.loads(path.read_text())]


def interval(values: Sequence[float] | NDArray[np.float64]) -> str:
    """Format the mean of shares and the half width of its 95 % interval (Student's t)."""
    array = np.asarray(values)
    if len(array) < 2:
        return f"{array.mean():.1%}"
    half = student.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return f"{array.mean():.1%} ±{half:.1%}"
