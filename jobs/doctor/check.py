"""Checks and their results: run side by side, each within a time limit, with secrets masked."""

import contextvars
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from infra.errors import ClvrError

State = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check. A command that needs a `failed` part will fail."""

    check: str
    state: State
    message: str
    remedy: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Check:
    """A named function to run. A ClvrError that it raises becomes a result with the error's remedy.

    seconds: its time limit, where it exceeds the common one.
    """

    name: str
    run: Callable[[], CheckResult | list[CheckResult]]
    seconds: float | None = None


def ok(check: str, message: str) -> CheckResult:
    """Make the result of a check that passed."""
    return CheckResult(check, "ok", message)


def warning(check: str, message: str, remedy: str) -> CheckResult:
    """Make the result of a check that passed with a reservation."""
    return CheckResult(check, "warning", message, remedy)


def failed(check: str, message: str, remedy: str) -> CheckResult:
    """Make the result of a check that failed."""
    return CheckResult(check, "failed", message, remedy)


def skipped(check: str, message: str) -> CheckResult:
    """Make the result of a check that was not requested or does not apply."""
    return CheckResult(check, "skipped", message)


def run_checks(checks: Sequence[Check], *, seconds: float, secrets: Iterable[str] = ()) -> list[CheckResult]:
    """Run all checks concurrently and return their results in the given order.

    seconds: the time limit of each check; one that exceeds it fails, and its thread is abandoned.
    secrets: strings to mask in messages and remedies, which may quote a server or a library.
    """
    results: list[list[CheckResult]] = [[] for _ in checks]
    started = time.monotonic()

    def work(position: int) -> None:
        results[position] = _run(checks[position])

    threads = []
    for position in range(len(checks)):
        context = contextvars.copy_context()
        threads.append(threading.Thread(target=context.run, args=(work, position), daemon=True))
        threads[-1].start()
    for position, (check, thread) in enumerate(zip(checks, threads, strict=True)):
        limit = max(seconds, check.seconds or 0.0)
        thread.join(max(0.0, started + limit - time.monotonic()))
        if thread.is_alive():
            message = f"no answer within {limit:.0f} s"
            results[position] = [failed(check.name, message, "Check that it runs and can be reached.")]
    mask = _masker(secrets)
    return [
        replace(result, message=mask(result.message), remedy=mask(result.remedy))
        for of_check in results
        for result in of_check
    ]


def _run(check: Check) -> list[CheckResult]:
    started = time.monotonic()
    try:
        results = check.run()
    except ClvrError as error:
        results = failed(check.name, error.message, error.remedy)
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")[:200]
        message = f"{type(error).__name__}: {first_line}"
        results = failed(check.name, message, "Report this: it is a bug.")
    elapsed = round(time.monotonic() - started, 2)
    return [replace(result, seconds=elapsed) for result in _as_list(results)]


def _as_list(results: CheckResult | list[CheckResult]) -> list[CheckResult]:
    return results if isinstance(results, list) else [results]


def _masker(secrets: Iterable[str]) -> Callable[[str], str]:
    # Strings below four characters occur in ordinary text and protect nothing.
    long_enough = sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True)
    if not long_enough:
        return lambda text: text
    pattern = re.compile("|".join(map(re.escape, long_enough)))
    return lambda text: pattern.sub("***", text)
