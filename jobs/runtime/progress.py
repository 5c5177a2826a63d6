"""Progress of long work: a live bar on a terminal, a plain line every few seconds in a log."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from infra.console import console
from infra.logging import logger

LOG_INTERVAL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ProgressState:
    """Progress in units of work; `note` is shown after the numbers."""

    done: int
    total: int
    note: str = ""


@contextmanager
def progress(
    title: str, unit: str, read: Callable[[], ProgressState], *, interval: float = 0.5
) -> Iterator[None]:
    """Show the state that `read` returns, from a separate thread, until the block ends."""
    stop = threading.Event()
    show = _progress_bar if console.is_terminal else _log_lines
    thread = threading.Thread(target=show, args=(title, unit, read, stop, interval), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _progress_bar(
    title: str, unit: str, read: Callable[[], ProgressState], stop: threading.Event, interval: float
) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    first = read()
    started = time.monotonic()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=first.total, unit=unit, rate="", note="")
        while True:
            stopped = stop.wait(interval)
            state = read()
            rate = (state.done - first.done) / max(time.monotonic() - started, 1e-9)
            bar.update(task, completed=state.done, total=state.total, rate=f"{rate:,.1f}/s", note=state.note)
            if stopped:
                return


def _log_lines(
    title: str, unit: str, read: Callable[[], ProgressState], stop: threading.Event, interval: float
) -> None:
    first = read()
    started = last_line = time.monotonic()
    while True:
        stopped = stop.wait(interval)
        if not stopped and time.monotonic() - last_line < LOG_INTERVAL_SECONDS:
            continue
        last_line = time.monotonic()
        state = read()
        rate = (state.done - first.done) / max(last_line - started, 1e-9)
        remaining = state.total - state.done
        eta = f", {remaining / rate:,.0f} s left" if rate > 0 and remaining > 0 else ""
        note = f", {state.note}" if state.note else ""
        facts = {"phase": title, "done": state.done, "total": state.total, "rate": round(rate, 1)}
        logger.info(f"{title}: {state.done:,}/{state.total:,} {unit}, {rate:,.1f}/s{eta}{note}", extra=facts)
        if stopped:
            return
