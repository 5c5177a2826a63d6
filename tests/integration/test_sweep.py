"""`clvr sweep` by the index and exactly: killed and continued, audited, with causes of failures."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from json_documents import read_document

from index.archive.manifest import crop_id_of
from index.generations.load import LoadOptions, load_runs
from index.generations.promotion import promote
from index.generations.upsert import load_into_live
from index.milvus.client import connect
from index.runs.run import Run
from index.runs.shards import shard_table
from index.schema import MANIFEST_SCHEMA, QUARANTINE_SCHEMA
from infra.settings import Settings
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
        "--table",
        tmp_path / "sweep.parquet",
        "--json",
    )
    assert code == 0, errors
    assert read_document(["sweep"], out)["probes"] == 8
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
    rows_of_all = table(tmp_path / "sweep.parquet")
    assert [(row["probe_id"], row["cause"]) for row in rows_of_all if row["rank"] is None] == [
        ("gone", "missing"),
        ("notes", "not-a-picture"),
        ("odd", "unknown-crop"),
    ]
    assert [row["crop_id"] for row in rows_of_all if row["probe_id"] == "archived"] == [
        row["crop_id"] for row in archived
    ]
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


@dataclass(frozen=True, slots=True)
class Incremented:
    """A live generation of two runs: the crops of the archive, and five more as an increment."""

    settings: Settings
    crop_ids: tuple[int, int]

    def environment(self) -> dict[str, str]:
        return {"CLVR_RUNS": self.settings.runs, "CLVR_MILVUS": self.settings.milvus}


@pytest.fixture
def incremented(searchable: Any, tmp_path: Path) -> Incremented:
    settings = Settings(runs=str(tmp_path / "data"), milvus=str(tmp_path / "milvus.db"))
    shutil.copytree(Path(searchable.settings.runs) / "runs", tmp_path / "data" / "runs")
    runs = open_store(settings.runs)
    base = Run.open(runs, searchable.run_id)
    uris = [f"{base.info.archive}/added-{number}.jpg" for number in range(5)]
    for number, uri in enumerate(uris):
        shutil.copy(searchable.crops[number], uri)
    rows = base.manifest().slice(0, 5).to_pylist()
    added = [row | {"uri": uri, "crop_id": crop_id_of(uri)} for row, uri in zip(rows, uris, strict=True)]
    run = Run.create(
        runs,
        "r2",
        manifest=pa.Table.from_pylist(added, schema=MANIFEST_SCHEMA),
        archive=base.info.archive,
        fingerprint=base.fingerprint,
        model=base.info.model,
        settings={},
    )
    features = np.random.default_rng(2).normal(size=(5, 1024)).astype(np.float32)
    for part in run.pending_parts():
        shard = shard_table(run.part_manifest(part), features, np.zeros(5, np.int32), np.ones(5, np.float32))
        run.write_part(part, shard, QUARANTINE_SCHEMA.empty_table())
    run.finish()
    with connect(settings.milvus) as milvus:
        generation = load_runs(milvus, runs, [base], alias=settings.alias)
        promote(milvus, runs, generation.name, force="test")
        load_into_live(milvus, runs, [run], lambda _: [base], alias=settings.alias, options=LoadOptions())
    return Incremented(settings, (searchable.crop_id(0, 0), crop_id_of(uris[0])))


@pytest.mark.timeout(500)
def test_an_exact_sweep_scans_the_runs_of_the_live_generation(
    incremented: Incremented, tmp_path: Path
) -> None:
    probes = tmp_path / "probes.csv"
    old, new = incremented.crop_ids
    probes.write_text(f"probe_id,uri\nold,crop:{old}\nnew,crop:{new}\n")

    def swept(name: str, *options: str) -> tuple[str, str, dict[str, Any]]:
        folder = tmp_path / name
        code, out, errors = done(
            incremented, "sweep", probes, "--exact", "--output", folder, "--case-number", "1", *options
        )
        assert code == 0, errors
        causes = {row["probe_id"]: row["cause"] for row in table(folder / "probes")}
        summary = json.loads((folder / "done.json").read_text())
        return out, errors, summary | {"unknown": sorted(name for name in causes if causes[name])}

    out, _, summary = swept("live")
    assert (summary["runs"], summary["rows"], summary["unknown"]) == (["r1", "r2"], 65, [])
    assert "searched: 65 rows of 2 runs: r1, r2" in out
    assert "65 rows of 2 runs: r1, r2" in (tmp_path / "live" / "report.html").read_text()
    refused = ("--output", tmp_path / "live", "--case-number", "1", "--run-id", "r1")
    assert done(incremented, "sweep", probes, "--exact", *refused)[0] == 6

    _, _, summary = swept("named", "--run-id", "r1")
    assert (summary["runs"], summary["rows"], summary["unknown"]) == (["r1"], 60, ["new"])

    nowhere = tmp_path / "no-index.db"
    _, errors, summary = swept("latest", "--milvus", str(nowhere))
    assert "nothing is live as vehicles: scanning the latest run only, r2" in " ".join(errors.split())
    assert (summary["runs"], summary["rows"], summary["unknown"]) == (["r2"], 5, ["old"])
    assert not nowhere.exists()

    code, _, errors = done(
        incremented, "sweep", probes, "--exact", "--output", tmp_path / "x", "--case-number", "1",
        "--milvus", "http://127.0.0.1:9",
    )  # fmt: skip
    assert code == 5
    assert "--run-id" in errors
    assert not (tmp_path / "x").exists()
