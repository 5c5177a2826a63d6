"""The night as a Dagster job with a schedule: `dagster dev -f dagster_night.py`."""

import os

from dagster import (
    Config,
    Definitions,
    Failure,
    OpExecutionContext,
    RetryRequested,
    RunRequest,
    ScheduleEvaluationContext,
    job,
    op,
    schedule,
)
from night import MAX_RETRIES, RETRY_SECONDS, NightFailed, run_night


class Night(Config):
    """Configuration of the op. name: of the night; a retry continues the night of its name."""

    name: str


@op
def reindex(context: OpExecutionContext, config: Night) -> None:
    """Bring the index up to date with the archive."""
    try:
        run_night(config.name)
    except NightFailed as failed:
        if failed.can_retry:
            seconds = float(os.environ.get("NIGHT_RETRY_SECONDS", RETRY_SECONDS))
            raise RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=seconds) from failed
        raise Failure(str(failed), allow_retries=False) from failed


@job
def night() -> None:
    """The job of every night."""
    reindex()


@schedule(cron_schedule="30 1 * * *", job=night, execution_timezone="UTC")
def every_night(context: ScheduleEvaluationContext) -> RunRequest:
    """Start the night at half past one."""
    name = f"{context.scheduled_execution_time:%Y-%m-%d}"
    return RunRequest(run_key=name, run_config={"ops": {"reindex": {"config": {"name": name}}}})


definitions = Definitions(jobs=[night], schedules=[every_night])
