"""The doctor: names every fault of a set-up at once, with its remedy, and never a secret."""

import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.checks import Check, Finding, broken, ok, run_checks
from infra.errors import StoreDenied
from infra.servers import MilvusServer, SeaweedFs
from infra.settings import Settings
from infra.store import Store, open_store
from infra.store_settings import StoreSettings
from jobs.cli.app import app
from jobs.doctor.examine import Examination, Patient, check_store, examine
from jobs.doctor.machine import check_clock


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working directory of one's own, and none of the variables of whoever runs the tests."""
    import os

    for name in list(os.environ):
        if name.startswith(("CLVR_", "AWS_", "RAY_A")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def states(found: Examination) -> dict[str, str]:
    order = ["skipped", "ok", "warning", "broken"]
    worst: dict[str, str] = {}
    for finding in found.findings:
        worst[finding.check] = max(worst.get(finding.check, "skipped"), finding.state, key=order.index)
    return worst


def test_a_check_that_hangs_does_not_hold_up_the_others() -> None:
    begun = time.monotonic()
    found = run_checks(
        [
            Check("hangs", lambda: ok("hangs", str(time.sleep(30)))),
            Check("well", lambda: ok("well", "fine")),
            Check("slow but well", lambda: ok("slow", str(time.sleep(0.6))), seconds=5),
        ],
        seconds=0.3,
    )
    assert [one.state for one in found] == ["broken", "ok", "ok"]
    assert "no answer within 0 s" in found[0].says
    assert time.monotonic() - begun < 5


def test_errors_become_findings_with_their_remedy_and_without_secrets() -> None:
    def refused() -> None:
        raise StoreDenied("key AKIA-hush was refused", remedy="not hush-hush")

    def surprised() -> None:
        raise KeyError("hush-hush")

    checks = [Check("a", refused), Check("b", surprised), Check("c", lambda: [broken("c", "x", "y")])]  # type: ignore[arg-type, return-value]
    found = run_checks(checks, seconds=5, secrets=["hush", "hush-hush", ""])
    assert [one.state for one in found] == ["broken"] * 3
    assert "hush" not in repr(found)
    assert found[0].says == "key AKIA-*** was refused"
    assert found[1].says.startswith("KeyError")


def test_a_newcomer_without_any_setting_is_well() -> None:
    found = examine(Patient({}))
    assert found.healthy, str(found)
    assert states(found)["archive"] == "skipped"


@pytest.mark.parametrize(("apart", "state"), [(0, "ok"), (20, "warning"), (-90, "broken")])
def test_a_clock_that_is_wrong_is_seen_by_the_date_of_an_answer(apart: int, state: str) -> None:
    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + apart, usegmt=True)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        storage = StoreSettings(endpoint=f"http://127.0.0.1:{server.server_port}", allow_http=True)
        found = check_clock(storage, Settings.model_validate({"runs": "s3://x/runs"}))
    assert found.state == state, found


def test_a_store_that_ignores_conditions_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> Finding:
        return check_store("runs", str(tmp_path), StoreSettings(), writes=True)

    assert found().state == "ok"
    monkeypatch.setattr(Store, "replace", lambda self, key, data, *, etag: self.put(key, data))
    assert "ignores the etag" in found().says
    monkeypatch.setattr(Store, "create", Store.put)
    assert "lets a second writer overwrite" in found().says
    assert list(open_store(str(tmp_path)).list()) == []


@pytest.mark.integration
def test_a_right_set_up(
    bucket: str, milvus_server: MilvusServer, seaweedfs: SeaweedFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CLVR_MILVUS", milvus_server.uri)
    if milvus_server.token:
        monkeypatch.setenv("CLVR_MILVUS_TOKEN", milvus_server.token)
    monkeypatch.setenv("CLVR_MILVUS_BUCKET", f"s3://{milvus_server.bucket}")
    monkeypatch.setenv("CLVR_RUNS", f"s3://{milvus_server.bucket}/doctor-test")
    found = examine(Patient({}))
    assert found.healthy, str(found)
    told = states(found)
    assert (told["runs"], told["clock"], told["milvus"], told["milvus bucket"]) == ("ok", "ok", "ok", "ok")
    assert told["milvus guard"] == "warning", "2.3.5 drops aliased collections"
    left = list(open_store(f"s3://{milvus_server.bucket}/doctor-test", seaweedfs.settings).list())
    assert left == [], "what it wrote it took away"


@pytest.mark.integration
def test_several_broken_things_are_all_named_at_once(
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
    findings = json.loads(done.stdout)["findings"]
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
    told = {row["name"]: (row["value"], row["origin"]) for row in json.loads(done.stdout)}
    assert told["alias"] == ("cars", "clvr.yaml")
    assert told["runs"] == ("s3://x/runs", "CLVR_RUNS")
    assert told["ray"][1] == "default"
    assert told.keys() == Settings.model_fields.keys()
    assert "hush" not in done.output
