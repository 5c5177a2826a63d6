"""`clvr doctor` names every fault of a set-up at once, with its remedy, and shows no secret."""

import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from json_documents import read_document
from typer.testing import CliRunner

from infra.errors import StoreDenied
from infra.servers import MilvusServer, SeaweedFs
from infra.settings import Settings
from infra.store import Store, StoreSettings, open_store
from jobs.cli.app import app
from jobs.doctor.check import Check, CheckResult, failed, ok, run_checks
from jobs.doctor.doctor import DoctorOptions, DoctorReport, run_doctor
from jobs.doctor.machine_checks import check_clock
from jobs.doctor.service_checks import check_store


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A fresh working directory, and no variable from the environment of the test run."""
    import os

    for name in list(os.environ):
        if name.startswith(("CLVR_", "AWS_", "RAY_A")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def states(report: DoctorReport) -> dict[str, str]:
    order = ["skipped", "ok", "warning", "failed"]
    worst: dict[str, str] = {}
    for result in report.results:
        worst[result.check] = max(worst.get(result.check, "skipped"), result.state, key=order.index)
    return worst


def test_a_check_that_hangs_does_not_delay_the_others() -> None:
    started = time.monotonic()
    results = run_checks(
        [
            Check("hangs", lambda: ok("hangs", str(time.sleep(30)))),
            Check("well", lambda: ok("well", "fine")),
            Check("slow but well", lambda: ok("slow", str(time.sleep(0.6))), seconds=5),
        ],
        seconds=0.3,
    )
    assert [result.state for result in results] == ["failed", "ok", "ok"]
    assert "no answer within 0 s" in results[0].message
    assert time.monotonic() - started < 5


def test_errors_become_results_with_their_remedy_and_without_secrets() -> None:
    def refused() -> None:
        raise StoreDenied("key AKIA-hush was refused", remedy="not hush-hush")

    def surprised() -> None:
        raise KeyError("hush-hush")

    checks = [Check("a", refused), Check("b", surprised), Check("c", lambda: [failed("c", "x", "y")])]  # type: ignore[arg-type, return-value]
    results = run_checks(checks, seconds=5, secrets=["hush", "hush-hush", ""])
    assert [result.state for result in results] == ["failed"] * 3
    assert "hush" not in repr(results)
    assert results[0].message == "key AKIA-*** was refused"
    assert results[1].message.startswith("KeyError")


def test_defaults_alone_are_healthy() -> None:
    report = run_doctor(DoctorOptions({}))
    assert report.healthy, report.to_text()
    assert states(report)["archive"] == "skipped"


def test_variables_of_a_wrong_name_are_named_and_the_right_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLVR_SERVE_TOKEN", "a-token-of-the-page")
    assert states(run_doctor(DoctorOptions({})))["settings"] == "ok"
    monkeypatch.setenv("CLVR_ALAIS", "vehicles")
    report = run_doctor(DoctorOptions({}))
    assert states(report)["settings"] == "warning"
    assert "CLVR_ALAIS" in report.to_text()


def test_the_document_for_machines_keeps_its_words() -> None:
    report = DoctorReport([failed("ray", "no answer", "Start it."), ok("disk", "free")])
    assert report.to_json() == {
        "findings": [
            {"check": "ray", "state": "broken", "says": "no answer", "remedy": "Start it.", "seconds": 0.0},
            {"check": "disk", "state": "ok", "says": "free", "remedy": "", "seconds": 0.0},
        ]
    }


@pytest.mark.parametrize(("skew", "state"), [(0, "ok"), (20, "warning"), (-90, "failed")])
def test_a_wrong_clock_shows_in_the_date_header(skew: int, state: str) -> None:
    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + skew, usegmt=True)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        storage = StoreSettings(endpoint=f"http://127.0.0.1:{server.server_port}", allow_http=True)
        result = check_clock(storage, Settings.model_validate({"runs": "s3://x/runs"}))
    assert result.state == state, result


def test_a_store_that_ignores_conditional_writes_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> CheckResult:
        return check_store("runs", str(tmp_path), StoreSettings(), writes=True)

    assert check().state == "ok"
    monkeypatch.setattr(Store, "replace", lambda self, key, data, *, etag: self.put(key, data))
    assert "ignores the etag" in check().message
    monkeypatch.setattr(Store, "create", Store.put)
    assert "lets a second writer overwrite" in check().message
    assert list(open_store(str(tmp_path)).list()) == []


@pytest.mark.integration
def test_a_working_set_up_is_healthy(
    bucket: str, milvus_server: MilvusServer, seaweedfs: SeaweedFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CLVR_MILVUS", milvus_server.uri)
    if milvus_server.token:
        monkeypatch.setenv("CLVR_MILVUS_TOKEN", milvus_server.token)
    monkeypatch.setenv("CLVR_MILVUS_BUCKET", f"s3://{milvus_server.bucket}")
    monkeypatch.setenv("CLVR_RUNS", f"s3://{milvus_server.bucket}/doctor-test")
    report = run_doctor(DoctorOptions({}))
    assert report.healthy, report.to_text()
    by_check = states(report)
    assert [by_check[name] for name in ("runs", "clock", "milvus", "milvus bucket")] == ["ok"] * 4
    assert by_check["milvus guard"] == "warning", "2.3.5 drops aliased collections"
    remaining = list(open_store(f"s3://{milvus_server.bucket}/doctor-test", seaweedfs.settings).list())
    assert remaining == [], "the probe object is deleted"


@pytest.mark.integration
def test_all_faults_are_named_at_once(
    clean: Path, bucket: str, seaweedfs: SeaweedFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, token = "not-the-secret-key", "root:not-the-password"
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("CLVR_RUNS", f"{bucket}/runs")
    monkeypatch.setenv("CLVR_MILVUS", "http://127.0.0.1:9")
    monkeypatch.setenv("CLVR_RAY", "127.0.0.1:9")
    monkeypatch.setenv("CLVR_JOBS_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("CLVR_ALAIS", "vehicles")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(clean / "no-token"))
    (clean / "clvr.yaml").write_text(f"milvus_token: {token}\nalais: vehicles\n")
    (clean / "clvr.yaml").chmod(0o644)
    model = clean / "model"
    model.mkdir()
    (model / "card.json").write_text("{}")

    done = CliRunner().invoke(
        app, ["doctor", "--json", "--archive", bucket, "--model", str(model), "--timeout", "30"]
    )
    assert done.exit_code == 1
    findings = read_document(["doctor"], done.stdout)["findings"]
    wrong = {finding["check"] for finding in findings if finding["state"] == "broken"}
    assert wrong == {"settings", "files", "runs", "archive", "milvus", "ray", "jobs", "model"}
    assert {f["check"] for f in findings if f["state"] == "warning"} >= {"settings", "files"}
    assert all(finding["remedy"] for finding in findings if finding["state"] in ("broken", "warning"))
    assert secret not in done.output
    assert "not-the-password" not in done.output


def test_config_shows_every_setting_with_its_origin_and_no_secret(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clean / "clvr.yaml").write_text("alias: cars\nmilvus_token: root:hush-hush\n")
    monkeypatch.setenv("CLVR_RUNS", "s3://x/runs")
    done = CliRunner().invoke(app, ["config", "--json"])
    shown = {row["name"]: (row["value"], row["origin"]) for row in json.loads(done.stdout)}
    assert shown["alias"] == ("cars", "clvr.yaml")
    assert shown["runs"] == ("s3://x/runs", "CLVR_RUNS")
    assert shown["ray"][1] == "default"
    assert shown.keys() == Settings.model_fields.keys()
    assert "hush" not in done.output
