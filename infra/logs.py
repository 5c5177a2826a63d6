"""What is said on stderr: as people read it at a terminal, JSON lines on a cluster; never a secret.

`CLVR_LOG_FORMAT` is `text`, `json` or `auto` (JSON where stderr is no terminal and this is a submitted job).
Each JSON line has `time`, `level`, `message`, the ids that are bound (`job`, `run`), and facts of its own.
"""

import json
import os
import sys
from datetime import UTC, datetime
from functools import cache
from io import StringIO
from typing import Any

from rich.console import Console

VARIABLE = "CLVR_LOG_FORMAT"
# Ray gives it to the entry point of each submitted job.
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "CLVR_JOBS_TOKEN",
    "CLVR_MILVUS_TOKEN",
    "CLVR_WEBHOOK",
    "RAY_AUTH_TOKEN",
)
_SHORTEST_SECRET = 6

_bound: dict[str, str] = {}


def bind(**ids: str) -> None:
    """Put ids, such as `run`, into every JSON line of this process from now on."""
    _bound.update(ids)


def wants_json() -> bool:
    """Whether lines are for machines."""
    asked = os.environ.get(VARIABLE, "auto").lower()
    return asked == "json" or (asked == "auto" and _JOB_VARIABLE in os.environ and not sys.stderr.isatty())


def without_secrets(text: str) -> str:
    """Return the text with what the secret variables of this process hold replaced by ***."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    return text


def record(level: str, message: str, **facts: Any) -> None:
    """Write one JSON line to stderr."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "message": message,
        **_job(),
        **_bound,
        **facts,
    }
    print(without_secrets(json.dumps(line, ensure_ascii=False, default=str)), file=sys.stderr, flush=True)


class Talk(Console):
    """rich's console on stderr, which becomes JSON lines where those are wanted."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False)

    @property
    def is_terminal(self) -> bool:
        """Whether a live display makes sense."""
        return super().is_terminal and not wants_json()

    def print(self, *objects: Any, **named: Any) -> None:
        """Print as rich does, or write one JSON line."""
        if wants_json():
            self.say(_plain(*objects))
        else:
            masked = (without_secrets(one) if isinstance(one, str) else one for one in objects)
            super().print(*masked, **named)

    def say(self, text: str, *, level: str = "info", **facts: Any) -> None:
        """Write one line as it is, without markup; the facts are for JSON only."""
        if wants_json():
            record(level, text, **facts)
        else:
            print(without_secrets(text), file=sys.stderr, flush=True)


def _plain(*objects: Any) -> str:
    paper = Console(file=StringIO(), no_color=True, width=10_000, highlight=False)
    paper.print(*objects)
    return paper.file.getvalue().strip()  # type: ignore[attr-defined,no-any-return]


def _secrets() -> list[str]:
    found = set()
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name, "")
        # Of user:password the second half alone is a secret as well.
        found |= {value, value.partition(":")[2]} if name != "CLVR_WEBHOOK" else {value}
    found |= {json.dumps(word)[1:-1] for word in found}  # as they stand in a JSON line
    return sorted((word for word in found if len(word) >= _SHORTEST_SECRET), key=len, reverse=True)


@cache
def _job() -> dict[str, str]:
    try:
        told = json.loads(os.environ.get(_JOB_VARIABLE, "{}"))
        name = told.get("metadata", {}).get("job_submission_id", "")
    except (ValueError, AttributeError):
        name = ""
    return {"job": name} if name else {}
