"""Whether log lines are text or JSON: `infra.logging` writes them, `infra.console` shows no live display."""

import os
import sys

FORMAT_VARIABLE = "CLVR_LOG_FORMAT"
# Ray sets it for the entry point of each submitted job.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def wants_json() -> bool:
    """Whether log lines are JSON."""
    log_format = os.environ.get(FORMAT_VARIABLE, "auto").lower()
    in_job = JOB_VARIABLE in os.environ and not sys.stderr.isatty()
    return log_format == "json" or (log_format == "auto" and in_job)
