"""Reindex runs: planned, embedded, loaded, measured and promoted; killed anywhere and continued.

They run on Ray and Milvus Lite. Only the network is a stub, whose features are a small copy of the image.
"""

import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from pydantic import SecretStr

from clvr_model.embeddings import Embeddings
from index.archive.manifest import crop_id_of
from index.generations import records
from index.lock import acquire
from index.milvus.collection import live_generation
from index.runs.run import Run, list_runs
from index.runs.tombstones import TombstoneWatch, erasure_ids
from index.search.calibration import Calibration, store_calibration
from infra.errors import (
    BudgetExceeded,
    EmptyArchive,
    FingerprintMismatch,
    GateFailed,
    IndexUnreachable,
    Locked,
)
from infra.settings import Settings
from infra.store import Store, open_store
from jobs.cases.casebook import Casebook, CropFacts
from jobs.cases.database import CaseDatabase
from jobs.cases.watch import search_watched
from jobs.embed.new_run import EmbedRequest
from jobs.fit_transform.job import FitRequest, fit_transform
from jobs.generations.erase import ForgetRequest, audit_erasure, forget_crops
from jobs.generations.load import (
    LoadRequest,
    load,
    promote_generation,
    rollback_generation,
    verify_generation,
)
from jobs.reindex import job
from jobs.reindex.plan import ReindexRequest
from jobs.reindex.state import ReindexRun, Step
from jobs.runtime.resolve import open_milvus

KEYS = [f"dt=2026-11-{20 + n % 3}/cam=00{n % 2}/{n:04d}.jpg" for n in range(24)]


class Stub:
    """A stub of a network."""

    batch_size, feature_dim, image_size, fingerprint = 8, 1024, 299, "stub-one"

    def __call__(self, images: np.ndarray) -> Embeddings:
        count = len(images)
        features = images[:, ::10, ::10].reshape(count, -1)[:, :1024].astype(np.float32) / 255
        return Embeddings(features, np.zeros(count, np.int32), np.ones(count, np.float32))


class Other(Stub):
    """A stub of another network."""

    fingerprint = "stub-two"


def jpeg(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.shutdown()  # of a test before these, in this process
    # Without an address, Ray would join a cluster that runs on this machine.
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
    )
    yield
    ray.shutdown()


class Site:
    """An archive of 24 crops, a Milvus, and the reindex runs that bring crops from one to the other."""

    def __init__(self, folder: Path) -> None:
        self.archive = open_store(str(folder / "archive"))
        for number, key in enumerate(KEYS):
            self.archive.put(key, jpeg(number))
        self.settings = Settings(runs=str(folder / "data"), milvus=str(folder / "milvus.db"))

    @property
    def store(self) -> Store:
        return open_store(self.settings.runs)

    def reindex(
        self, name: str | None, model: type[Stub] = Stub, pattern: str | None = None, **options: Any
    ) -> job.ReindexResult:
        embedding = EmbedRequest(self.archive.uri, model="stub", actors=2, key_pattern=pattern)
        request = ReindexRequest(embed=embedding, reindex_id=name, **options)
        # Ray's workers import this module for its stubs, and do not have the helpers of the tests.
        from json_documents import read_result

        result = job.reindex(request, self.settings, open_embedder=model)
        read_result("reindex", result)
        return result

    def verified(self) -> tuple[str, int]:
        """Name and rows of the live generation, whose keys are compared with the runs."""
        found = verify_generation("live", self.settings)
        assert found.differences == ()
        return found.generation, found.indexed

    def states(self) -> list[str]:
        return sorted(entry.state for entry in records.list_records(self.store))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def figures(done: job.ReindexResult) -> tuple[Any, ...]:
    crops = done.summary["crops"]
    return tuple(crops.get(name) for name in ("new", "changed", "vanished", "embedded", "quarantined"))


def test_reindex_adds_new_replaces_changed_and_removes_vanished_crops(site: Site) -> None:
    first = site.reindex(None)
    assert first.summary["kind"] == "full"
    assert figures(first) == (24, 0, 0, 24, 0)
    live, rows = site.verified()
    assert (live, rows) == (first.summary["live"]["generation"], 24)

    again = site.reindex(None)
    assert again.already_finished
    assert len(list_runs(site.store)) == 1

    site.archive.put("dt=2026-11-23/cam=000/new.jpg", jpeg(100))
    site.archive.put("dt=2026-11-23/cam=000/broken.jpg", b"no picture")
    site.archive.put(KEYS[3], jpeg(101))
    site.archive.delete(KEYS[7])
    second = site.reindex("second", drift=True)
    assert second.summary["kind"] == "incremental"
    assert second.summary["drift"] == {"week": "", "cameras": 0, "alerts": []}
    assert figures(second) == (2, 1, 1, 2, 1)
    assert second.summary["quarantine"] == {"decode/not-a-picture": 1}
    assert second.summary["load"]["kind"] == "increment"
    assert site.verified() == (live, 24)
    assert second.summary["before"]["figures"]["embedded"] == 24

    third = site.reindex("third")
    assert (third.summary["kind"], third.summary["state"]) == ("nothing", "finished")
    assert figures(third) == (0, 0, 0, 0, 0)

    site.archive.delete(KEYS[8], KEYS[9])
    assert figures(site.reindex("fourth")) == (0, 0, 2, 0, 0)
    assert site.verified() == (live, 22)

    page = site.store.get("nights/second/summary.html").decode()
    for text in (
        "What changed since",
        "No crop has a camera and a time",
        "decode/not-a-picture",
        live,
        "Recall@10",
    ):
        assert text in page
    assert json.loads(site.store.get("nights/second/summary.json"))["night"] == "second"


@pytest.mark.slow
def test_a_rebuild_keeps_the_transform_of_the_live_generation(site: Site) -> None:
    site.reindex("first")
    (run,) = list_runs(site.store)
    fit_transform(FitRequest((run.run_id,), kind="camera"), site.settings)
    name = load(LoadRequest((run.run_id,), transform="latest"), site.settings).generation.name
    promote_generation(name, site.settings, new_model=False, force="a test")
    site.reindex("second", full=True)
    with open_milvus(site.settings) as milvus:
        live = live_generation(milvus, site.settings.alias)
    assert live is not None
    assert live.name != name
    assert live.transform.startswith("camera-")


@pytest.mark.slow
def test_a_generation_of_tracks_is_built_anew_if_anything_changed(site: Site) -> None:
    pattern = "dt={date}/cam={camera_id}/{track_id}.jpg"
    site.reindex("first", pattern=pattern)
    (run,) = list_runs(site.store)
    name = load(LoadRequest((run.run_id,), unit="track"), site.settings).generation.name
    promote_generation(name, site.settings, new_model=False, force=None)
    site.archive.put("dt=2026-11-23/cam=000/0000.jpg", jpeg(100))  # of the track of the first crop
    site.archive.put("dt=2026-11-23/cam=000/new.jpg", jpeg(101))
    second = site.reindex("second", pattern=pattern)
    assert second.summary["load"]["kind"] == "generation"
    live, rows = site.verified()
    record = records.read(site.store, live)
    assert record is not None and live != name
    assert (record.unit, record.rows, record.crops, rows) == ("track", 25, 26, 25)

    assert site.reindex("third", pattern=pattern).summary["load"]["kind"] == "nothing"
    request = ForgetRequest(reason="x", crops=(site.archive.uri_of(KEYS[0]),), dry_run=False)
    assert forget_crops(request, site.settings).generations[-1].withdrawn == 1
    assert site.verified() == (live, 24)
    assert site.reindex("fourth", pattern=pattern).summary["load"]["kind"] == "generation"
    live, rows = site.verified()
    record = records.read(site.store, live)
    assert record is not None
    assert (record.unit, record.crops, rows) == ("track", 25, 25)


@pytest.mark.slow
def test_large_increment_becomes_a_new_generation(site: Site) -> None:
    first = site.reindex("first")
    for number in range(30, 50):
        site.archive.put(f"dt=2026-11-24/cam=000/{number}.jpg", jpeg(number))
    second = site.reindex("second")
    assert second.summary["load"]["kind"] == "generation"
    live, rows = site.verified()
    assert rows == 44
    assert second.summary["live"]["replaced"] == first.summary["live"]["generation"] != live


@pytest.mark.slow
@pytest.mark.parametrize("step", ["plan", "embed", "load", "gate", "promote", "retention"])
def test_run_killed_right_after_a_step_continues_without_repeating_work(
    site: Site, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = ReindexRun.record

    def killed(run: ReindexRun, finished: Step) -> None:
        if finished.name == step:
            raise SystemExit(137)
        record(run, finished)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(ReindexRun, "record", killed)
        site.reindex(None)
    done = site.reindex(None)
    assert figures(done) == (24, 0, 0, 24, 0)
    assert len(done.summary["attempts"]) == 2
    assert site.verified()[1] == 24
    assert site.states() == ["ready"]
    assert len(list_runs(site.store)) == 1


@pytest.mark.slow
def test_failed_gate_keeps_the_live_generation_and_is_in_the_summary(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.reindex("first")
    live, _ = site.verified()

    def lossy(context: Any) -> dict[str, Any]:
        milvus = open_milvus(site.settings)
        milvus.call("delete", context.outcome("load")["generation"], filter="crop_id > 0", timeout=30)
        return job.gate_step(context)

    monkeypatch.setitem(job.STEP_FUNCTIONS, "gate", lossy)
    with pytest.raises(GateFailed, match="rows are indexed") as failed:
        site.reindex("bad", full=True)
    assert failed.value.exit_code == 8
    assert site.verified() == (live, 24)
    summary = json.loads(site.store.get("nights/bad/summary.json"))
    assert (summary["state"], summary["error"]["step"], summary["error"]["exit_code"]) == (
        "failed",
        "gate",
        8,
    )
    assert "Failed at gate" in site.store.get("nights/bad/summary.html").decode()


@pytest.mark.slow
def test_a_night_does_not_promote_over_a_rollback_during_its_gate(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.reindex("first")
    before, _ = site.verified()
    site.reindex("second", full=True)

    def rolled_back(context: Any) -> dict[str, Any]:
        outcome = job.gate_step(context)
        rollback_generation(site.settings)
        return outcome

    with monkeypatch.context() as patch:
        patch.setitem(job.STEP_FUNCTIONS, "gate", rolled_back)
        with pytest.raises(Locked, match="another process moved"):
            site.reindex("third", full=True)
    assert site.verified()[0] == before
    with pytest.raises(Locked, match="another process moved"):
        site.reindex("third", full=True)
    built = max(record.name for record in records.list_records(site.store))
    promote_generation(built, site.settings, new_model=False, force=None)
    assert site.reindex("third", full=True).summary["live"]["generation"] == built


@pytest.mark.slow
def test_other_model_needs_a_full_reindex(site: Site) -> None:
    site.reindex("first")
    with pytest.raises(FingerprintMismatch, match=r"stub-one.*stub-two"):
        site.reindex("second", Other)
    changed = site.reindex("third", Other, full=True)
    assert changed.summary["live"]["rows"] == 24
    assert changed.summary["live"]["replaced"] is not None
    assert site.verified()[1] == 24


@pytest.mark.slow
def test_lost_prefix_of_the_archive_does_not_empty_the_index(site: Site) -> None:
    site.reindex("first")
    live = site.verified()
    site.archive.delete(*KEYS[:6])
    with pytest.raises(BudgetExceeded, match="6 of 24 known crops are gone"):
        site.reindex("second", max_vanished_rate=0.0)
    site.archive.delete(*KEYS)
    with pytest.raises(EmptyArchive):
        site.reindex("second")
    assert site.verified() == live


@pytest.mark.slow
@pytest.mark.slow
def test_nights_merge_their_small_runs_and_the_next_one_goes_on(site: Site) -> None:
    site.settings = site.settings.model_copy(update={"merge_runs": 1, "merge_rows": 20})
    site.reindex("n0")
    merged: list[list[Any]] = []
    for number in range(1, 6):
        site.archive.put(f"dt=2026-11-23/cam=000/{number}.jpg", jpeg(100 + number))
        if number == 2:
            site.archive.put(KEYS[3], jpeg(200))
            site.archive.delete(KEYS[7])
        done = site.reindex(f"n{number}")
        assert figures(done)[:3] == (1, int(number == 2), int(number == 2))
        step = ReindexRun(site.store, f"n{number}", "", Any).step("retention")  # type: ignore[arg-type]
        assert step is not None and not step.outcome["merged"]["error"]
        merged.append([one["sources"] for one in step.outcome["merged"]["runs"]])
        assert site.verified()[1] == 24 + number - (number >= 2)
    assert merged[:3] == [[], [], []] and merged[3] == [["n1", "n2"]]
    assert merged[4] == [[list_runs(site.store)[1].info.settings["merged_from"][0], "n3"]]
    names = [run.run_id for run in list_runs(site.store)]
    assert len(names) == 4 and [names[0], *names[2:]] == ["n0", "n4", "n5"]
    live = live_generation(open_milvus(site.settings), site.settings.alias)
    assert live is not None
    record = records.read(site.store, live.name)
    assert record is not None and list(record.run_ids) == names
    assert site.reindex("again").summary["kind"] == "nothing"


def test_lost_milvus_is_filled_from_the_shards_without_embedding(site: Site) -> None:
    site.reindex("first")
    site.archive.put("dt=2026-11-23/cam=000/new.jpg", jpeg(100))
    site.reindex("second")
    other = site.settings.model_copy(update={"milvus": site.settings.milvus.replace(".db", "-2.db")})
    site.settings = other
    done = site.reindex("repair")
    assert figures(done) == (0, 0, 0, 0, 0)
    assert site.verified()[1] == 25


@pytest.mark.slow
def test_only_the_crops_of_a_lost_run_are_embedded_again(site: Site) -> None:
    site.reindex("first")
    site.archive.put("dt=2026-11-23/cam=000/new.jpg", jpeg(100))
    before = site.reindex("second").summary["live"]["generation"]
    site.store.delete(*(item.key for item in site.store.list("runs/second")))
    done = site.reindex("third")
    assert figures(done) == (1, 0, 0, 1, 0)
    live, rows = site.verified()
    assert (live != before, rows) == (True, 25)


def test_reindex_runs_of_an_alias_do_not_overlap(site: Site) -> None:
    with (
        acquire(site.store, f"night-{site.settings.alias}", "a reindex run of another archive"),
        pytest.raises(Locked, match="a reindex run of another archive is under way"),
    ):
        site.reindex("second")


def test_error_before_the_first_step_is_in_the_summary(site: Site) -> None:
    site.settings = site.settings.model_copy(update={"milvus": "http://127.0.0.1:9"})
    with pytest.raises(IndexUnreachable):
        site.reindex("dark")
    summary = json.loads(site.store.get("nights/dark/summary.json"))
    assert (summary["state"], summary["error"]["step"]) == ("failed", "plan")


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]], Callable[[int], None]]]:
    received: list[dict[str, Any]] = []
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield (
        f"http://127.0.0.1:{server.server_port}/hook/planted-secret",
        received,
        lambda code: status.insert(0, code),
    )
    server.shutdown()


@pytest.mark.slow
def test_webhook_receives_summaries_and_its_errors_do_not_fail_a_run(
    site: Site, hook: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    url, received, answer = hook
    site.settings = site.settings.model_copy(update={"webhook": SecretStr(url)})
    site.reindex("first")
    assert received[0]["summary"]["night"] == "first"
    assert received[0]["text"].startswith("reindex run first finished: 24 embedded")
    answer(500)
    assert site.reindex("second").summary["state"] == "finished"
    site.settings = site.settings.model_copy(update={"webhook": SecretStr("nonsense://planted-secret")})
    assert site.reindex("third").summary["state"] == "finished"
    output = capfd.readouterr()
    assert "webhook: delivered" in output.err
    assert "not delivered (status 500)" in output.err
    documents = [site.store.get(item.key).decode() for item in site.store.list("nights")]
    assert not any("planted-secret" in text for text in (output.out, output.err, *documents))


def test_an_erased_crop_stays_erased_and_a_night_purges_it(site: Site) -> None:
    site.reindex("n1")
    uri = site.archive.uri_of(KEYS[4])
    request = ForgetRequest("case 17", crops=(uri,), dry_run=False)
    assert forget_crops(request, site.settings).crops == 1
    site.archive.put("moved.jpg", site.archive.get(KEYS[4]))  # the same bytes under another name
    site.archive.put("new.jpg", jpeg(99))

    done = site.reindex("n2", purge=True)

    assert figures(done) == (2, 0, 0, 1, 1)
    assert done.summary["quarantine"] == {"fetch/erased": 1}
    assert site.verified()[1] == len(KEYS) - 1 + 1
    audit = audit_erasure("latest", site.settings)
    assert (audit.found, audit.receipt.purge) == (0, True)
    first = audit_erasure(erasure_ids(site.store)[0], site.settings)
    assert first.found == 0
    assert Run.open(site.store, "n1").summary.causes == {"manifest/erased": 1}

    full = site.reindex("n3", full=True)
    assert full.summary["crops"]["embedded"] == len(KEYS) - 1 + 1
    assert site.verified()[1] == len(KEYS) - 1 + 1


def test_new_crops_of_a_watched_vehicle_are_reported_once(site: Site) -> None:
    site.reindex("first")
    book = Casebook(CaseDatabase(site.settings.case_database()), TombstoneWatch([site.store]))
    case = book.create("26-117", "", "ada")
    for key, verdict in ((KEYS[3], "confirmed"), (KEYS[4], "rejected")):
        uri = site.archive.uri_of(key)
        facts = CropFacts(
            crop_id=crop_id_of(uri),
            uri=uri,
            camera_id="",
            track_id="",
            captured_at=-1,
            generation="",
            fingerprint="",
        )
        book.judge(case.id, verdict, "", "ada", facts)
    book.watch(case.id, "ada", on=True)
    for key, seed in (("again", 3), ("rejected-again", 4), ("other", 300)):
        site.archive.put(f"dt=2026-11-24/cam=001/{key}.jpg", jpeg(seed))
    curve = {"distances": (0.0, 10.0), "likelihoods": (0.9, 0.1)}
    calibration = Calibration(
        fingerprint="stub-one",
        run_id="first",
        false_alarm_rate=0.01,
        threshold=1.0,
        detection_rate=1.0,
        probes=1,
        vehicles=1,
        gallery=1,
        pairs=1,
        brier=0.0,
        brier_base=0.0,
        same_camera=True,
        created="",
        **curve,
    )
    store_calibration(site.store, calibration)

    watched = site.reindex("second").summary["watch"]
    assert (watched["watched"], watched["new"]) == (1, 1)
    assert [(found["case"], found["new"], found["nearest"]) for found in watched["cases"]] == [
        ("26-117", 1, 0.0)
    ]
    (hit,) = book.watch_hits()
    assert hit.uri == site.archive.uri_of("dt=2026-11-24/cam=001/again.jpg")
    assert (hit.run_id, hit.likelihood, hit.judged) == ("second", pytest.approx(0.9), False)
    live = live_generation(open_milvus(site.settings), "vehicles")
    assert live is not None
    assert (search_watched(site.settings, site.store, live, "second") or {})["new"] == 0  # kept once

    site.archive.put("dt=2026-11-25/cam=001/new.jpg", jpeg(301))
    assert site.reindex("third").summary["watch"]["cases"] == []
    forget_crops(ForgetRequest(reason="t", crops=(hit.uri,), dry_run=False, purge=True), site.settings)
    assert book.watch_hits() == []
    assert not [place for place in audit_erasure("latest", site.settings).places if place.found]
