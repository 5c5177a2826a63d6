"""The night as an Airflow DAG: put this file and night.py into the folder of DAGs."""

from datetime import UTC, datetime, timedelta

from airflow.exceptions import AirflowFailException
from airflow.sdk import dag, task
from night import MAX_RETRIES, RETRY_SECONDS, NightFailed, run_night


@dag(
    schedule="30 1 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": MAX_RETRIES, "retry_delay": timedelta(seconds=RETRY_SECONDS)},
)
def clvr_night() -> None:
    """Bring the index up to date with the archive, every night."""

    @task
    def reindex(ds: str) -> None:
        """Run or continue the night of the date `ds`, which Airflow passes."""
        try:
            run_night(ds)
        except NightFailed as failed:
            if failed.can_retry:
                raise
            raise AirflowFailException(str(failed)) from failed

    reindex(ds="{{ ds }}")


clvr_night()
