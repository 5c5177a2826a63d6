"""Progress of long work: a live line on a terminal, a plain line now and then in a log."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from infra.logging import console, logger

PLAIN_EVERY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ProgressState:
    """How far the work is: `done` and `total` count `unit`s, `note` is said behind them."""

    done: int
    total: int
    note: str = ""


@contextmanager
def progress(
    title: str, unit: str, read: Callable[[], ProgressState], *, every: float = 0.5
) -> Iterator[None]:
    """Show what `read` answers, from a thread of its own, until the block ends."""
    stop = threading.Event()
    show = _progress_bar if console.is_terminal else _log_lines
    thread = threading.Thread(target=show, args=(title, unit, read, stop, every), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _progress_bar(
    title: str, unit: str, read: Callable[[], ProgressState], stop: threading.Event, every: float
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
            ended = stop.wait(every)
            now = read()
            rate = (now.done - first.done) / max(time.monotonic() - started, 1e-9)
            bar.update(task, completed=now.done, total=now.total, rate=f"{rate:,.1f}/s", note=now.note)
            if ended:
                return


def _log_lines(
    title: str, unit: str, read: Callable[[], ProgressState], stop: threading.Event, every: float
) -> None:
    first = read()
    started = spoken = time.monotonic()
    while True:
        ended = stop.wait(every)
        if not ended and time.monotonic() - spoken < PLAIN_EVERY_SECONDS:
            continue
        spoken = time.monotonic()
        now = read()
        rate = (now.done - first.done) / max(spoken - started, 1e-9)
        left = f", {(now.total - now.done) / rate:,.0f} s left" if rate > 0 and now.done < now.total else ""
        note = f", {now.note}" if now.note else ""
        facts = {"phase": title, "done": now.done, "total": now.total, "rate": round(rate, 1)}
        logger.info(f"{title}: {now.done:,}/{now.total:,} {unit}, {rate:,.1f}/s{left}{note}", extra=facts)
        if ended:
            return
