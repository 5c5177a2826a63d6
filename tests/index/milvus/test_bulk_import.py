"""Imports run as jobs, several at a time; failed and stuck jobs are errors, no load is half visible."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from index.milvus import bulk_import, waiting
from index.milvus.bulk_import import GrpcImporter, ImportFile, ImportProgress, import_files
from index.milvus.client import Milvus
from index.milvus.index_types import capabilities_of
from index.milvus.rest_import import RestImporter
from infra.errors import ImportFailed, IndexRefused, IndexUnreachable

TOKEN = "root:secret-of-the-test"


@dataclass
class Job:
    key: str
    rows: int
    seen: int = 0
    end: str = ""


@dataclass
class FakeMilvus:
    """The documented REST interface: responses are HTTP 200 with a code, and each poll advances a job."""

    two_phases: bool = False
    rows: dict[str, int] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # key -> reason
    stuck: set[str] = field(default_factory=set)
    lose_responses: int = 0
    refuse: dict[str, Any] | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    idempotent: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    max_running: int = 0
    uri: str = ""

    def answer(self, action: str, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        self.requests.append((action, body, headers))
        if self.refuse:
            return self.refuse
        if action == "create":
            return {"code": 0, "data": {"jobId": self._create(body, headers)}}
        if action == "list":
            records = [{"jobId": number, **self._progress(job)} for number, job in self.jobs.items()]
            return {"code": 0, "data": {"records": records}}
        job = self.jobs.get(body["jobId"])
        if job is None:
            return {"code": 1100, "message": "job not found"}
        if action == "get_progress":
            return {"code": 0, "data": self._progress(job)}
        job.end = {"commit": "Completed", "abort": "Failed"}[action]
        return {"code": 0, "data": {}}

    def visible(self) -> int:
        return sum(job.rows for job in self.jobs.values() if job.end == "Completed")

    def _create(self, body: dict[str, Any], headers: dict[str, str]) -> str:
        once = headers.get("Idempotency-Key")
        if once and once in self.idempotent:
            return self.idempotent[once]
        ((key,),) = body["files"]
        number = str(448761313698322011 + len(self.jobs))
        self.jobs[number] = Job(key, self.rows[key])
        if once:
            self.idempotent[once] = number
        self.max_running = max(self.max_running, sum(not job.end for job in self.jobs.values()))
        return number

    def _progress(self, job: Job) -> dict[str, Any]:
        job.seen += 1
        if job.key in self.broken:
            detail = {"fileName": job.key, "reason": self.broken[job.key], "state": "Failed"}
            return {"state": "Failed", "progress": 10, "reason": "", "details": [detail]}
        if job.seen < 3 or job.key in self.stuck:
            return {"state": "Importing", "progress": 30 * min(job.seen, 2), "importedRows": 0}
        if self.two_phases and not job.end:
            return {"state": "Uncommitted", "progress": 99, "importedRows": job.rows, "totalRows": job.rows}
        job.end = job.end or "Completed"
        return {"state": job.end, "progress": 100, "importedRows": job.rows, "totalRows": job.rows}


@pytest.fixture
def fake() -> Iterator[FakeMilvus]:
    state = FakeMilvus()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            action = self.path.removeprefix("/v2/vectordb/jobs/import/")
            answer = json.dumps(state.answer(action, body, dict(self.headers))).encode()
            if action == "create" and state.lose_responses:
                state.lose_responses -= 1
                self.close_connection = True
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        state.uri = f"http://127.0.0.1:{server.server_address[1]}"
        yield state
        server.shutdown()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.01)


def importer(fake: FakeMilvus, version: str = "2.6.0", **options: Any) -> RestImporter:
    capabilities = capabilities_of(version, lite=False)
    return RestImporter(Milvus(fake.uri, None, capabilities, 2.0, token=TOKEN, **options))


def files(fake: FakeMilvus, count: int) -> Iterator[ImportFile]:
    fake.rows = {f"runs/shard-{number}.parquet": 100 + number for number in range(count)}
    return iter([ImportFile(key, rows) for key, rows in fake.rows.items()])


def test_each_file_is_a_request_and_only_a_few_run_at_a_time(fake: FakeMilvus) -> None:
    seen: list[ImportProgress] = []
    with importer(fake, database="cars") as rest:
        assert import_files(rest, "vehicles_1", files(fake, 5), seen.append, max_concurrent=2) == 510
    created = [body for action, body, _ in fake.requests if action == "create"]
    assert [body["files"] for body in created] == [[[key]] for key in fake.rows]
    assert {(body["collectionName"], body["dbName"]) for body in created} == {("vehicles_1", "cars")}
    assert created[0]["options"] == {"timeout": "7200s"}
    assert fake.max_running == 2
    assert ImportProgress(0, Counter(importing=2), 60.0) in seen
    assert seen[-1] == ImportProgress(510, Counter())
    assert {headers["Authorization"] for _, _, headers in fake.requests} == {f"Bearer {TOKEN}"}
    assert {headers["DB-Name"] for _, _, headers in fake.requests} == {"cars"}


def test_progress_counts_every_running_import(fake: FakeMilvus) -> None:
    seen: list[ImportProgress] = []
    with importer(fake) as rest:
        import_files(rest, "c", files(fake, 6), seen.append, max_concurrent=6)
    assert max(progress.jobs["importing"] for progress in seen) == 6


def test_the_states_of_all_jobs_of_a_collection_can_be_listed(fake: FakeMilvus) -> None:
    with importer(fake) as rest:
        import_files(rest, "c", files(fake, 2))
        rest.start("c", next(iter(fake.rows)))
        assert rest.states("c") == ["Completed", "Completed", "Importing"]


def test_on_a_3_0_server_nothing_is_visible_before_all_files_are_imported(fake: FakeMilvus) -> None:
    fake.two_phases = True
    seen: list[int] = []
    with importer(fake, "3.0.2") as rest:
        import_files(rest, "c", files(fake, 3), lambda progress: seen.append(fake.visible()))
    assert set(seen) == {0}
    assert fake.visible() == 303
    actions = [action for action, _, _ in fake.requests]
    assert actions[-3:] == ["commit"] * 3
    assert all(
        body["options"]["auto_commit"] == "false" for action, body, _ in fake.requests if action == "create"
    )


def test_a_failed_job_is_an_error_with_its_reason_and_aborts_the_others(fake: FakeMilvus) -> None:
    fake.two_phases = True
    fake.broken = {"runs/shard-1.parquet": "field embedding: dim 1023, want 1024"}
    with importer(fake, "3.0.2") as rest, pytest.raises(ImportFailed) as failed:
        import_files(rest, "c", files(fake, 3))
    assert "runs/shard-1.parquet: the server reports: field embedding: dim 1023" in failed.value.message
    assert fake.visible() == 0
    assert {job.end for job in fake.jobs.values()} == {"Failed"}


def test_a_job_without_progress_is_stuck_and_not_failed(
    fake: FakeMilvus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_import, "JOB_STALL_SECONDS", 0.3)
    fake.stuck = {"runs/shard-0.parquet"}
    with importer(fake) as rest, pytest.raises(ImportFailed, match="is stuck: Importing at 60 %") as stuck:
        import_files(rest, "c", files(fake, 1))
    assert "did not fail" in stuck.value.remedy


def test_fewer_rows_than_the_file_has_are_an_error(fake: FakeMilvus) -> None:
    listed = files(fake, 1)
    fake.rows["runs/shard-0.parquet"] = 99
    with importer(fake) as rest, pytest.raises(ImportFailed, match="99 of 100 rows"):
        import_files(rest, "c", listed)


def test_a_lost_response_is_requested_again_with_an_idempotency_key(
    fake: FakeMilvus,
) -> None:
    fake.lose_responses = 1
    fake.two_phases = True
    with importer(fake, "3.0.2") as rest:
        assert import_files(rest, "c", files(fake, 2)) == 201
    assert len(fake.jobs) == 2
    keys = [headers["Idempotency-Key"] for action, _, headers in fake.requests if action == "create"]
    assert keys[0] == keys[1] == "c/runs/shard-0.parquet"


def test_a_lost_response_without_an_idempotency_key_is_an_unknown_outcome(fake: FakeMilvus) -> None:
    fake.lose_responses = 1
    with importer(fake, "2.5.4") as rest, pytest.raises(ImportFailed, match="outcome is unknown"):
        import_files(rest, "c", files(fake, 2))
    assert [action for action, _, _ in fake.requests] == ["create"]


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ({"code": 1800, "message": "user hasn't authenticated"}, "authenticated"),
        ({"code": 100, "message": "collection not found[collection=c]\nstack"}, r"not found.*\(code 100\)"),
        ({"code": 2, "message": "exceeded the max import job num"}, "max import job num"),
    ],
)
def test_a_refusal_is_one_line_without_the_token(
    fake: FakeMilvus, refusal: dict[str, Any], words: str
) -> None:
    fake.refuse = refusal
    with importer(fake) as rest, pytest.raises(IndexRefused, match=words) as refused:
        import_files(rest, "c", files(fake, 1))
    assert "\n" not in refused.value.message
    assert "secret" not in refused.value.message + refused.value.remedy


def test_an_unreachable_server_is_an_error_after_a_few_attempts() -> None:
    unreachable = FakeMilvus(uri="http://127.0.0.1:9")
    with importer(unreachable) as rest, pytest.raises(IndexUnreachable, match="no answer"):
        rest.state("1")


def test_no_files_give_no_rows(fake: FakeMilvus) -> None:
    with importer(fake) as rest:
        assert import_files(rest, "c", iter([])) == 0


def test_files_are_staged_only_when_a_job_may_start(fake: FakeMilvus) -> None:
    waiting: list[int] = []

    def stage() -> Iterator[ImportFile]:
        for file in files(fake, 6):
            waiting.append(sum(not job.end for job in fake.jobs.values()))
            yield file

    with importer(fake) as rest:
        import_files(rest, "c", stage(), max_concurrent=2)
    assert max(waiting) < 2


def test_commit_and_abort_send_nothing_to_a_2_3_server() -> None:
    requests: list[str] = []

    class Client:
        def __getattr__(self, name: str) -> object:
            requests.append(name)
            raise AssertionError(name)

    grpc = GrpcImporter(Milvus("http://x", Client(), capabilities_of("2.3.5", lite=False), 1.0))
    grpc.commit(["1"])
    grpc.abort(["1"])
    assert requests == []
