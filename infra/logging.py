"""Log lines on stderr: text for people, JSON lines on a cluster. Secrets are masked in both.

`CLVR_LOG_FORMAT` is `text`, `json` or `auto`: JSON in a submitted job whose stderr is not a terminal.
A JSON line has `time`, `level`, `message`, the bound ids (`job`, `run`) and the `extra` of the call:

    logger.info("embedding", extra={"done": 10})

`extra={"markup": True}` marks a message with rich markup; JSON lines leave the markup out.
"""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from infra.log_format import JOB_VARIABLE, wants_json

# rich is imported for the first line: `--help` and errors need none of it.
if TYPE_CHECKING:
    from rich.text import Text

_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "CLVR_CASES",
    "CLVR_JOBS_TOKEN",
    "CLVR_MILVUS_TOKEN",
    "CLVR_SERVE_TOKEN",
    "CLVR_WEBHOOK",
    "RAY_AUTH_TOKEN",
)
_URLS = ("CLVR_CASES", "CLVR_WEBHOOK")  # a colon in them separates no password
_MIN_SECRET_LENGTH = 6
_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red"}
_RECORD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"markup", "message", "taskName"}

# Of the process and not of a context: threads, such as a progress display's, log with the same ids.
context: dict[str, str] = {}


def bind_context(**ids: str) -> None:
    """Add ids, such as `run`, to every later JSON line of this process."""
    context.update(ids)


def without_secrets(text: str) -> str:
    """Return the text with the values of this process's secret variables replaced by ***."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    return text


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with secrets masked."""
        # Ray adds private attributes to every record of the process.
        extra = {
            name: value
            for name, value in vars(record).items()
            if name not in _RECORD_ATTRIBUTES and not name.startswith("_")
        }
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": _message(record).plain.strip(),
            **_job_id(),
            **context,
            **extra,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return without_secrets(json.dumps(line, ensure_ascii=False, default=str))


class StderrHandler(logging.Handler):
    """Writes JSON lines to stderr, or text by the console, which keeps it clear of live displays."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            if wants_json():
                print(self.format(record), file=sys.stderr, flush=True)
            else:
                from infra.console import console

                console.print(_message(record), style=_STYLES.get(record.levelno), soft_wrap=True)
        except Exception:
            self.handleError(record)


def _message(record: logging.LogRecord) -> "Text":
    from rich.text import Text

    message = without_secrets(record.getMessage())
    return Text.from_markup(message) if getattr(record, "markup", False) else Text(message)


def _secrets() -> list[str]:
    secrets = set()
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name, "")
        # The password of user:password is a secret by itself.
        secrets |= {value, value.partition(":")[2]} if name not in _URLS else {value}
    secrets |= {json.dumps(secret)[1:-1] for secret in secrets}  # as JSON escapes them
    return sorted((word for word in secrets if len(word) >= _MIN_SECRET_LENGTH), key=len, reverse=True)


def _job_id() -> dict[str, str]:
    try:
        config = json.loads(os.environ.get(JOB_VARIABLE, "{}"))
        job = config.get("metadata", {}).get("job_submission_id", "")
    except (ValueError, AttributeError):
        job = ""
    return {"job": job} if job else {}


def _make_logger() -> logging.Logger:
    made = logging.getLogger("clvr")
    made.setLevel(logging.INFO)
    made.propagate = False  # the root logger's handlers would repeat every line
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter())
    made.addHandler(handler)
    return made


logger = _make_logger()
