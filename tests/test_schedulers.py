"""The nights of examples/schedulers in Dagster and in Airflow, each in an environment of its own."""

import os
import subprocess
import venv
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples" / "schedulers"
# Ends with the next exit code of a file, and notes its arguments.
CLVR = """#!/bin/sh
echo "$@" >> "$CODES.log"
code=$(head -n 1 "$CODES"); sed -i 1d "$CODES"; exit "${code:-0}"
"""
DAGSTER = """
from dagster_night import night
config = {"ops": {"reindex": {"config": {"name": "2026-11-22"}}}}
print("success" if night.execute_in_process(run_config=config, raise_on_error=False).success else "failure")
"""
AIRFLOW = """
import airflow_night
from airflow.exceptions import AirflowFailException
dag = airflow_night.clvr_night()
task = dag.get_task("reindex")
assert task.retries == 4
while True:
    try:
        task.python_callable(ds="2026-11-22")
    except AirflowFailException:
        print("failure")
    except Exception:
        continue
    else:
        print("success")
    break
"""
PACKAGES = {"dagster": ("dagster==1.13.29", DAGSTER), "airflow": ("apache-airflow==3.3.2", AIRFLOW)}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scheduler", PACKAGES)
def test_a_night_is_tried_again_after_an_outage_and_not_after_a_failed_gate(
    scheduler: str, tmp_path: Path
) -> None:
    package, program = PACKAGES[scheduler]
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
    clvr, codes = tmp_path / "bin/clvr", tmp_path / "codes"
    clvr.parent.mkdir()
    clvr.write_text(CLVR)
    clvr.chmod(0o755)
    environment = {
        "PATH": f"{clvr.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(EXAMPLES),
        "HOME": str(tmp_path),
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "CODES": str(codes),
        "NIGHT": "s3://archive --checkpoint 's3://models/a b'",
        "NIGHT_RETRY_SECONDS": "0",
    }
    for given, outcome, attempts in (("4\n137\n0\n", "success", 3), ("8\n0\n", "failure", 1)):
        codes.write_text(given)
        log = Path(f"{codes}.log")
        log.unlink(missing_ok=True)
        done = subprocess.run(
            [python, "-c", program], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.stdout.splitlines()[-1:] == [outcome], done.stdout + done.stderr
        expected = "reindex s3://archive --checkpoint s3://models/a b --night 2026-11-22"
        assert log.read_text().splitlines() == [expected] * attempts
