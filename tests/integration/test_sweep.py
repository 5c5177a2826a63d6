"""`clvr sweep` by the index and exactly: killed and continued, audited, with causes of failures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from infra.store import open_store
from jobs.sweep.audit import AuditLog
from jobs.sweep.state import RESULT_SCHEMA

pytestmark = pytest.mark.integration

CLVR = [sys.executable, "-c", "from jobs.cli.app import main; main()"]


def started(archive: Any, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, **archive.environment()}
    return subprocess.Popen(
        [*CLVR, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def done(archive: Any, *arguments: object) -> tuple[int, str, str]:
    process = started(archive, *arguments)
    out, errors = process.communicate(timeout=280)
    return process.returncode, out, errors


def table(folder: Path) -> list[dict[str, Any]]:
    return ds.dataset(folder, format="parquet").to_table().to_pylist()


def test_a_sweep_by_the_index_searches_every_probe_and_records_causes_of_failures(
    searchable: Any, tmp_path: Path
) -> None:
    probes = tmp_path / "probes.csv"
    notes = tmp_path / "notes.jpg"
    notes.write_text("no picture " * 100)
    rows = [f"v{number},{path}" for number, path in enumerate(searchable.pictures[:4])]
    rows += [
        f"archived,crop:{searchable.crop_id(3, 0)}",
        "gone,/nowhere/x.jpg",
        f"notes,{notes}",
        "odd,crop:7",
    ]
    probes.write_text("\n".join(["probe_id,uri", *rows]))
    code, out, errors = done(
        searchable,
        "sweep",
        probes,
        "--output",
        tmp_path / "out",
        "--case-number",
        "26-117",
        "--top",
        3,
        "--json",
    )
    assert code == 0, errors
    assert json.loads(out)["probes"] == 8
    outcomes = {row["probe_id"]: row for row in table(tmp_path / "out" / "probes")}
    assert {name: outcomes[name]["cause"] for name in ("gone", "notes", "odd")} == {
        "gone": "missing",
        "notes": "not-a-picture",
        "odd": "unknown-crop",
    }
    results = table(tmp_path / "out" / "results")
    assert list(results[0]) == RESULT_SCHEMA.names
    assert {row["probe_id"] for row in results} == {"v0", "v1", "v2", "v3", "archived"}
    archived = [row for row in results if row["probe_id"] == "archived"]
    assert [row["rank"] for row in archived] == [1, 2, 3]
    assert "003" not in {row["camera_id"] for row in archived}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "unknown-crop" in page
    assert page.count("data:image/jpeg") > 15
    records = AuditLog.read(open_store(searchable.settings.runs)).records
    of_case = [record for _, record in records if record.case_number == "26-117"]
    assert [record.action for record in of_case] == ["sweep start"]
    assert of_case[0].generation == results[0]["generation"]


def test_a_killed_sweep_continues_and_searches_no_probe_twice(searchable: Any, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(64):
        source = searchable.pictures[number % len(searchable.pictures)]
        # One more byte makes another object of the same image.
        (folder / f"{number:03d}.jpg").write_bytes(source.read_bytes() + bytes([number]))
    command = (
        "sweep", folder, "--output", tmp_path / "out", "--case-number", "kill", "--exact", "--top", 5,
        "--workers", 1,
    )  # fmt: skip
    first = started(searchable, *command)
    results = tmp_path / "out" / "results"
    deadline = time.monotonic() + 200
    while not (results.is_dir() and len(list(results.glob("*.parquet"))) >= 1):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    time.sleep(1)
    before = {path.name: path.stat().st_mtime_ns for path in results.glob("*.parquet")}
    assert not (tmp_path / "out" / "done.json").exists()
    code, _, errors = done(searchable, *command)
    assert code == 0, errors
    assert {name: (results / name).stat().st_mtime_ns for name in before} == before
    probes = [row["probe_id"] for row in table(tmp_path / "out" / "probes")]
    assert sorted(probes) == [f"{number:03d}.jpg" for number in range(64)]
    ranked = [(row["probe_id"], row["rank"]) for row in table(results)]
    assert len(ranked) == len(set(ranked)) == 64 * 5
    actions = [
        record.action
        for _, record in AuditLog.read(open_store(searchable.settings.runs)).records
        if record.case_number == "kill"
    ]
    assert actions == ["sweep start", "sweep continue"]
    assert done(searchable, *command, "--top", 6)[0] == 6


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--case-number", " "], 3, "needs a reason"),
        (["--case-number", "x", "--camera", "999"], 3, "known cameras"),
        (["--case-number", "x", "--from", "2026-02-01", "--until", "2026-01-01"], 3, "time window is empty"),
        ([], 2, "--case-number"),
    ],
    ids=["reason", "camera", "window", "case"],
)
def test_an_invalid_sweep_fails_before_anything_is_written(
    searchable: Any, tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    exit_code, _, errors = done(
        searchable, "sweep", searchable.folder / "pictures", "--output", tmp_path / "out", *options
    )
    assert exit_code == code, errors
    assert message in errors
    assert not (tmp_path / "out").exists()
