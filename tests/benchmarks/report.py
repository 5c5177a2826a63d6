"""Run the benchmarks and write their rows into docs/benchmarks.md: machine, date, command and ratio.

    python tests/benchmarks/report.py                           # the quick ones, about 15 minutes on 2 cores
    python tests/benchmarks/report.py bench_cmc bench_exact     # only these
    python tests/benchmarks/report.py bench_cmc -- --times 1 10 # with other arguments

Each benchmark runs in a process of its own and owns one section of the page, between two marks. The sections
of the others, and the text around the marks, stay as they are.
"""

import datetime
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from measure import Row, load_rows, machine

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "benchmarks.md"
END = "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A script with the arguments that its section of the page is measured with."""

    script: str
    arguments: tuple[str, ...] = ()
    quick: bool = True  # part of a run without names


BENCHMARKS = {
    "bench_cmc": Benchmark("bench_cmc", ("--plain", "--repeats", "10")),
    "bench_exact": Benchmark("bench_exact"),
    "bench_exact_avx2": Benchmark("bench_exact", ("--avx2",)),
    "bench_start": Benchmark("bench_start"),
    "bench_embed": Benchmark("bench_embed"),
    "bench_feed": Benchmark("bench_feed"),
    "bench_manifest": Benchmark("bench_manifest"),
    "bench_memory": Benchmark("bench_memory"),
    "bench_scale": Benchmark("bench_scale", quick=False),  # half an hour for its largest archive
    "bench_load": Benchmark("bench_load"),
    "bench_search_index": Benchmark("bench_search_index"),
    "bench_search_index_lite": Benchmark("bench_search_index", ("--lite",)),
    "bench_search": Benchmark("bench_search"),
    "bench_sweep": Benchmark("bench_sweep"),
    "bench_train": Benchmark("bench_train"),
    "bench_train_input": Benchmark("bench_train_input"),
    "bench_ablation": Benchmark("bench_ablation", quick=False),  # hours, and photographs
    "bench_models": Benchmark("bench_models", quick=False),  # likewise: it needs a folder of photographs
    "bench_switches": Benchmark("bench_switches", quick=False),  # likewise
    "bench_models_untrained": Benchmark(
        "bench_models", ("--skip-training", "--seeds", "0", "1", "2", "3", "4"), quick=False
    ),
    "bench_transform": Benchmark("bench_transform", quick=False),  # photographs
}


def run(benchmark: Benchmark, arguments: list[str]) -> str | None:
    """Run one benchmark; return its section of the page, or None if it failed."""
    command = [f"tests/benchmarks/{benchmark.script}.py", *(arguments or benchmark.arguments)]
    with tempfile.TemporaryDirectory(prefix="clvr-bench-") as folder:
        rows = Path(folder, "rows.json")
        done = subprocess.run(
            [sys.executable, *command, "--json", str(rows)],
            cwd=FOLDER.parents[1],
            env=os.environ | {"GRPC_VERBOSITY": "ERROR"},  # else each fork prints a line
        )
        if done.returncode or not rows.exists():
            return None
        return section(" ".join(["python", *command]), load_rows(rows))


def section(command: str, rows: list[Row]) -> str:
    """Return the command, the date, the machine and a table as Markdown."""
    lines = [
        f"`{command}`",
        "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}; {machine()}",
        "",
        "| case | result | baseline | ratio |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"**{row.ratio:.2f}**"
        lines.append(f"| {row.case} | {row.result} | {row.baseline} | {ratio} |")
    return "\n".join(lines)


def with_section(page: str, name: str, text: str) -> str:
    """Return the page with one section replaced. Raises ValueError where the page has no mark for it."""
    before, mark, rest = page.partition(f"<!-- {name} -->")
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{PAGE} has no section {name}")
    return f"{before}{mark}\n{text}\n{end}{after}"


def main() -> int:
    """Run the benchmarks that the command line names; return 1 if one failed."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    arguments = words[split + 1 :]
    chosen = words[:split] or [name for name, benchmark in BENCHMARKS.items() if benchmark.quick]
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        raise SystemExit(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        text = run(BENCHMARKS[name], arguments)
        print(f"== {name}: {'done' if text else 'FAILED'} in {time.monotonic() - started:.0f} s", flush=True)
        if text is None:
            failed.append(name)
        else:
            # Written after each benchmark: one that fails later loses nothing.
            PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), name, text), encoding="utf-8")
    if failed:
        print(f"failed, their sections are as before: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
