"""Checks of a set-up: each says in one line what it found and what to do, within a time limit."""

import contextvars
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from infra.errors import ClvrError

State = Literal["ok", "warning", "broken", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `broken` means that a verb which needs this will fail."""

    check: str
    state: State
    says: str
    remedy: str = ""
    seconds: float = 0.0


Work = Callable[[], "Finding | list[Finding]"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to try, by name. It may raise: a ClvrError is a finding, with its own remedy."""

    name: str
    work: Work
    seconds: float | None = None  # more than the caller's limit, for what is slow when it is well


def ok(check: str, says: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", says)


def warning(check: str, says: str, remedy: str) -> Finding:
    """It works, but not as it should."""
    return Finding(check, "warning", says, remedy)


def broken(check: str, says: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(check, "broken", says, remedy)


def skipped(check: str, says: str) -> Finding:
    """It was not asked for, or there is nothing to check."""
    return Finding(check, "skipped", says)


def run_checks(checks: Sequence[Check], *, seconds: float, secrets: Iterable[str] = ()) -> list[Finding]:
    """Run all checks side by side and return their findings in the given order.

    seconds: the limit for each; a check that takes longer is broken, and its thread is left behind. Whatever
    of `secrets` a server or a library put into its words is masked.
    """
    answers: list[list[Finding]] = [[] for _ in checks]
    begun = time.monotonic()

    def work(position: int) -> None:
        answers[position] = _found(checks[position])

    threads = []
    for position in range(len(checks)):
        context = contextvars.copy_context()
        threads.append(threading.Thread(target=context.run, args=(work, position), daemon=True))
        threads[-1].start()
    for check, thread, answer in zip(checks, threads, range(len(checks)), strict=True):
        limit = max(seconds, check.seconds or 0.0)
        thread.join(max(0.0, begun + limit - time.monotonic()))
        if thread.is_alive():
            answers[answer] = [
                broken(check.name, f"no answer within {limit:.0f} s", "see whether it is up and reachable")
            ]
    hide = _mask(secrets)
    return [
        replace(finding, says=hide(finding.says), remedy=hide(finding.remedy))
        for answer in answers
        for finding in answer
    ]


def _found(check: Check) -> list[Finding]:
    begun = time.monotonic()
    try:
        found = check.work()
    except ClvrError as error:
        found = broken(check.name, error.message, error.remedy)
    except Exception as error:
        text = str(error).splitlines()
        found = broken(
            check.name, f"{type(error).__name__}: {text[0][:200] if text else ''}", "report this: it is a bug"
        )
    spent = time.monotonic() - begun
    return [replace(one, seconds=round(spent, 2)) for one in (found if isinstance(found, list) else [found])]


def _mask(secrets: Iterable[str]) -> Callable[[str], str]:
    # Short ones would mask half of the text, and are no secrets anyway.
    words = sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True)
    if not words:
        return lambda text: text
    pattern = re.compile("|".join(map(re.escape, words)))
    return lambda text: pattern.sub("***", text)
