"""A night: planned, embedded, loaded, measured, promoted; killed anywhere, and continued by the same call.

The job is the real one, on Ray and Milvus Lite; only the network is a stub, whose features are a picture's
own small copy.
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

from clvr_model.embedder import Embeddings
from index.generations import records
from index.lock import acquire
from index.runs.run import list_runs
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
from jobs.generations.load import verify_generation
from jobs.reindex import job as job
from jobs.reindex.plan import NightRequest
from jobs.reindex.state import ReindexRun, Step
from jobs.runtime.resolve import open_milvus

KEYS = [f"dt=2026-11-{20 + n % 3}/cam=00{n % 2}/{n:04d}.jpg" for n in range(24)]


class Stub:
    """Stands for a network."""

    batch_size, feature_dim, fingerprint = 8, 1024, "stub-one"

    def __call__(self, pictures: np.ndarray) -> Embeddings:
        count = len(pictures)
        features = pictures[:, ::10, ::10].reshape(count, -1)[:, :1024].astype(np.float32) / 255
        return Embeddings(features, np.zeros(count, np.int32), np.ones(count, np.float32))


class Other(Stub):
    """Stands for another network."""

    fingerprint = "stub-two"


def picture(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


class Place:
    """An archive of 24 crops, an empty Milvus, and the nights between them."""

    def __init__(self, folder: Path) -> None:
        self.archive = open_store(str(folder / "archive"))
        for number, key in enumerate(KEYS):
            self.archive.put(key, picture(number))
        self.settings = Settings(runs=str(folder / "data"), milvus=str(folder / "milvus.db"))

    @property
    def store(self) -> Store:
        return open_store(self.settings.runs)

    def night(self, name: str | None, model: type[Stub] = Stub, **asked: Any) -> job.ReindexResult:
        request = NightRequest(archive=self.archive.uri, model="stub", night=name, actors=2, **asked)
        return job.reindex(request, self.settings, open_embedder=model)

    def proven(self) -> tuple[str, int]:
        """Name and rows of the live generation, each row held against the runs."""
        found = verify_generation("live", self.settings)
        assert found.differences == ()
        return found.generation, found.indexed

    def states(self) -> list[str]:
        return sorted(entry.state for entry in records.list_records(self.store))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def figures(done: job.ReindexResult) -> tuple[Any, ...]:
    crops = done.summary["crops"]
    return tuple(crops.get(name) for name in ("new", "changed", "vanished", "embedded", "quarantined"))


def test_nights_bring_what_is_new_replace_what_changed_and_remove_what_vanished(place: Place) -> None:
    first = place.night(None)
    assert first.summary["kind"] == "full"
    assert figures(first) == (24, 0, 0, 24, 0)
    live, rows = place.proven()
    assert (live, rows) == (first.summary["live"]["generation"], 24)

    again = place.night(None)
    assert again.already
    assert len(list_runs(place.store)) == 1

    place.archive.put("dt=2026-11-23/cam=000/new.jpg", picture(100))
    place.archive.put("dt=2026-11-23/cam=000/broken.jpg", b"no picture")
    place.archive.put(KEYS[3], picture(101))
    place.archive.delete(KEYS[7])
    second = place.night("second")
    assert second.summary["kind"] == "incremental"
    assert figures(second) == (2, 1, 1, 2, 1)
    assert second.summary["quarantine"] == {"decode/not-a-picture": 1}
    assert second.summary["load"]["kind"] == "increment"
    assert place.proven() == (live, 24)
    assert second.summary["before"]["figures"]["embedded"] == 24

    third = place.night("third")
    assert (third.summary["kind"], third.summary["state"]) == ("nothing", "finished")
    assert figures(third) == (0, 0, 0, 0, 0)

    place.archive.delete(KEYS[8], KEYS[9])
    assert figures(place.night("fourth")) == (0, 0, 2, 0, 0)
    assert place.proven() == (live, 22)

    page = place.store.get("nights/second/summary.html").decode()
    for said in ("What changed since", "decode/not-a-picture", live, "Recall@10"):
        assert said in page
    assert json.loads(place.store.get("nights/second/summary.json"))["night"] == "second"


@pytest.mark.slow
def test_a_large_increment_is_built_beside_and_promoted(place: Place) -> None:
    first = place.night("first")
    for number in range(30, 50):
        place.archive.put(f"dt=2026-11-24/cam=000/{number}.jpg", picture(number))
    second = place.night("second")
    assert second.summary["load"]["kind"] == "generation"
    live, rows = place.proven()
    assert rows == 44
    assert second.summary["live"]["replaced"] == first.summary["live"]["generation"] != live


@pytest.mark.slow
@pytest.mark.parametrize("step", ["plan", "embed", "load", "gate", "promote", "retention"])
def test_a_night_killed_right_after_a_step_continues_and_does_nothing_twice(
    place: Place, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = ReindexRun.record

    def killed(night: ReindexRun, done: Step) -> None:
        if done.name == step:
            raise SystemExit(137)
        record(night, done)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(ReindexRun, "record", killed)
        place.night(None)
    done = place.night(None)
    assert figures(done) == (24, 0, 0, 24, 0)
    assert len(done.summary["attempts"]) == 2
    assert place.proven()[1] == 24
    assert place.states() == ["ready"]
    assert len(list_runs(place.store)) == 1


@pytest.mark.slow
def test_a_failed_gate_leaves_the_live_generation_and_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.night("first")
    live, _ = place.proven()

    def lossy(at: Any) -> dict[str, Any]:
        milvus = open_milvus(place.settings)
        milvus.call("delete", at.outcome("load")["generation"], filter="crop_id > 0", timeout=30)
        return job.gate_step(at)

    monkeypatch.setitem(job.STEP_FUNCTIONS, "gate", lossy)
    with pytest.raises(GateFailed, match="rows are indexed") as failed:
        place.night("bad", full=True)
    assert failed.value.exit_code == 8
    assert place.proven() == (live, 24)
    told = json.loads(place.store.get("nights/bad/summary.json"))
    assert (told["state"], told["error"]["step"], told["error"]["exit_code"]) == ("failed", "gate", 8)
    assert "Failed at gate" in place.store.get("nights/bad/summary.html").decode()


@pytest.mark.slow
def test_another_model_needs_a_full_night(place: Place) -> None:
    place.night("first")
    with pytest.raises(FingerprintMismatch, match=r"stub-one.*stub-two"):
        place.night("second", Other)
    changed = place.night("third", Other, full=True)
    assert changed.summary["live"]["rows"] == 24
    assert changed.summary["live"]["replaced"] is not None
    assert place.proven()[1] == 24


@pytest.mark.slow
def test_a_lost_prefix_of_the_archive_does_not_empty_the_index(place: Place) -> None:
    place.night("first")
    live = place.proven()
    place.archive.delete(*KEYS[:6])
    with pytest.raises(BudgetExceeded, match="6 of 24 known crops are gone"):
        place.night("second", max_vanished_rate=0.0)
    place.archive.delete(*KEYS)
    with pytest.raises(EmptyArchive):
        place.night("second")
    assert place.proven() == live


@pytest.mark.slow
def test_a_lost_milvus_is_filled_from_the_shards_without_embedding_anything(place: Place) -> None:
    place.night("first")
    place.archive.put("dt=2026-11-23/cam=000/new.jpg", picture(100))
    place.night("second")
    other = place.settings.model_copy(update={"milvus": place.settings.milvus.replace(".db", "-2.db")})
    place.settings = other
    done = place.night("repair")
    assert figures(done) == (0, 0, 0, 0, 0)
    assert place.proven()[1] == 25


@pytest.mark.slow
def test_the_crops_of_a_run_that_was_lost_are_embedded_again_and_no_others(place: Place) -> None:
    place.night("first")
    place.archive.put("dt=2026-11-23/cam=000/new.jpg", picture(100))
    before = place.night("second").summary["live"]["generation"]
    place.store.delete(*(one.key for one in place.store.list("runs/second")))
    done = place.night("third")
    assert figures(done) == (1, 0, 0, 1, 0)
    live, rows = place.proven()
    assert (live != before, rows) == (True, 25)


def test_nights_do_not_overlap(place: Place) -> None:
    with (
        acquire(place.store, f"night-{place.settings.alias}", "a night of somewhere"),
        pytest.raises(Locked, match="a night of somewhere is under way"),
    ):
        place.night("second")


def test_a_night_tells_of_an_error_that_comes_before_its_first_step(place: Place) -> None:
    place.settings = place.settings.model_copy(update={"milvus": "http://127.0.0.1:9"})
    with pytest.raises(IndexUnreachable):
        place.night("dark")
    told = json.loads(place.store.get("nights/dark/summary.json"))
    assert (told["state"], told["error"]["step"]) == ("failed", "plan")


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]], Callable[[int], None]]]:
    heard: list[dict[str, Any]] = []
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield (
        f"http://127.0.0.1:{server.server_port}/hook/planted-secret",
        heard,
        lambda code: status.insert(0, code),
    )
    server.shutdown()


@pytest.mark.slow
def test_a_webhook_hears_of_nights_and_its_trouble_is_not_theirs(
    place: Place, hook: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    url, heard, answer = hook
    place.settings = place.settings.model_copy(update={"webhook": SecretStr(url)})
    place.night("first")
    assert heard[0]["summary"]["night"] == "first"
    assert heard[0]["text"].startswith("night first finished: 24 embedded")
    answer(500)
    assert place.night("second").summary["state"] == "finished"
    place.settings = place.settings.model_copy(update={"webhook": SecretStr("nonsense://planted-secret")})
    assert place.night("third").summary["state"] == "finished"
    said = capfd.readouterr()
    assert "webhook: delivered" in said.err
    assert "not delivered (status 500)" in said.err
    kept = [place.store.get(one.key).decode() for one in place.store.list("nights")]
    assert not any("planted-secret" in text for text in (said.out, said.err, *kept))
