"""Submitted jobs as text and as JSON."""

from jobs.submit.client import Job
from jobs.submit.text import FinishedJob, JobLog, JobReport, JobTable

JOB = Job(
    job="load-1",
    status="FAILED",
    entrypoint="python -m jobs.cli.entrypoint -- load latest",
    exit_code=5,
    message="",
    started=1_763_800_000_000,
    finished=1_763_800_090_000,
    metadata={"verb": "load", "by": "ann@desk", "clvr": "0.1.0"},
    runtime_env={"env_vars": {"CLVR_RUNS": "s3://data"}},
)
RUNNING = Job("embed-1", "RUNNING", "python", None, "", 1_763_800_000_000, None, {})


def test_the_document_of_a_job_has_no_runtime_environment() -> None:
    assert JobReport(JOB).to_json() == {
        "job": "load-1",
        "status": "FAILED",
        "exit_code": 5,
        "command": "python -m jobs.cli.entrypoint -- load latest",
        "message": "",
        "started": "2025-11-22T08:26:40+00:00",
        "ended": "2025-11-22T08:28:10+00:00",
        "verb": "load",
        "by": "ann@desk",
        "clvr": "0.1.0",
        "retry_of": None,
    }


def test_the_text_of_a_job_shows_the_fields_that_it_has() -> None:
    text = JobReport(RUNNING).to_text()
    assert "status     RUNNING" in text
    assert "exit_code" not in text


def test_the_table_of_jobs_has_one_line_per_job() -> None:
    header, failed, running = JobTable([JOB, RUNNING]).to_text().splitlines()
    assert header.split() == ["job", "status", "code", "started", "took", "by"]
    assert failed.split() == ["load-1", "failed", "5", "2025-11-22T08:26:40+00:00", "90", "s", "ann@desk"]
    assert running.split() == ["embed-1", "running", "2025-11-22T08:26:40+00:00"]


def test_a_finished_job_has_the_exit_code_of_its_command() -> None:
    assert FinishedJob(JOB).to_text() == "job load-1: failed, exit code 5"


def test_structured_lines_of_a_log_are_shown_as_messages() -> None:
    line = '{"time": "2026-11-22T21:00:05.000+00:00", "level": "info", "message": "start"}'
    assert JobLog("load-1", f"{line}\nplain").to_text() == "21:00:05 start\nplain"
