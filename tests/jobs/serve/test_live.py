"""The page follows the alias: to another generation, to another model, and away from a dropped one."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clvr_model.checkpoint import Card, load_checkpoint, save_checkpoint
from clvr_model.embedder import Embedder
from clvr_model.network import Architecture, Clvr
from index.archive.manifest import crop_id_of
from index.generations.load import load_runs
from index.generations.promotion import promote, retire
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.runs.run import Run
from index.runs.shards import shard_table
from index.schema import MANIFEST_SCHEMA, QUARANTINE_SCHEMA
from infra.errors import BadInput, ClvrError, IndexRefused
from infra.settings import Settings
from infra.store import Store, open_store
from jobs.cases.audit import Purpose
from jobs.search import searcher as searcher_module
from jobs.search.searcher import Searcher
from jobs.serve import live
from jobs.serve.live import LiveView, View
from jobs.serve.schemas import SearchResponse, WebRules
from jobs.serve.service import SearchService
from jobs.serve.users import ROLES, User

CROPS = 12
ADA = User("ada", frozenset(ROLES))


@dataclass(frozen=True, slots=True)
class Site:
    """A folder of runs, a Milvus Lite file and an archive of some drawn crops."""

    settings: Settings
    runs: Store
    archive: Store
    uris: list[str]
    models: dict[str, str]

    def make_run(self, name: str, model: str) -> Run:
        """Make a finished run of all crops, with features that are no model's."""
        count = len(self.uris)
        manifest = {
            "crop_id": [crop_id_of(uri) for uri in self.uris],
            "uri": self.uris,
            "etag": [""] * count,
            "size": [1] * count,
            "last_modified": [0] * count,
            "camera_id": [f"{number % 3:03d}" for number in range(count)],
            "captured_at": [1_767_600_000_000 + number for number in range(count)],
            "track_id": [""] * count,
            "vehicle_id": [None] * count,
            "model_id": [None] * count,
        }
        run = Run.create(
            self.runs,
            name,
            manifest=pa.table(manifest, schema=MANIFEST_SCHEMA),
            archive=self.archive.uri,
            fingerprint=load_checkpoint(self.models[model]).fingerprint,
            model=self.models[model],
            settings={},
        )
        features = np.random.default_rng(len(name)).normal(size=(count, 1024)).astype(np.float32)
        for part in run.pending_parts():
            shard = shard_table(
                run.part_manifest(part), features, np.full(count, 3, np.int32), np.ones(count, np.float32)
            )
            run.write_part(part, shard, QUARANTINE_SCHEMA.empty_table())
        run.finish()
        return run


@pytest.fixture(scope="module")
def models(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    other = tmp_path_factory.mktemp("other")
    card = Card(label_ids=(3, 5, 8, 13), label_names={3: "Renamed"})
    save_checkpoint(str(other), Clvr.of(Architecture(classes=4), seed=2), card)
    return {"first": checkpoint, "other": str(other)}


@pytest.fixture
def site(tmp_path: Path, archive: Path, models: dict[str, str]) -> Site:
    images = open_store(str(archive / "archive"))
    keys = sorted(info.key for info in images.list())[:CROPS]
    runs = open_store(str(tmp_path / "data"))
    runs.create_bucket()
    settings = Settings(runs=runs.uri, milvus=str(tmp_path / "milvus.db"))
    return Site(settings, runs, images, [images.uri_of(key) for key in keys], models)


@pytest.fixture
def first(site: Site) -> Iterator[tuple[Milvus, Generation]]:
    """The connection of the page and the live generation."""
    milvus = searcher_module.open_milvus(site.settings)
    yield milvus, published(milvus, site, site.make_run("r1", "first"))
    milvus.close()


@pytest.fixture
def service(site: Site, first: tuple[Milvus, Generation], monkeypatch: pytest.MonkeyPatch) -> SearchService:
    monkeypatch.setattr(live, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(searcher_module, "open_milvus", lambda settings: first[0])
    searcher = Searcher(site.settings)
    _ = searcher.embedder
    return SearchService(searcher, None)


def published(milvus: Milvus, site: Site, run: Run) -> Generation:
    """Load a run and make its generation live."""
    generation = load_runs(milvus, site.runs, [run], alias=site.settings.alias)
    promote(milvus, site.runs, generation.name, force="test")
    return generation


def found_in(service: SearchService, site: Site) -> str:
    """Search from a crop; return the generation of the answer."""
    answer = search(service, crop_id_of(site.uris[0]), top=3)
    assert len(answer.answers) == 3
    return answer.generation


def search(service: SearchService, crop_id: int, **rules: Any) -> SearchResponse:
    return service.search([], [crop_id], WebRules(**rules), purpose=Purpose(user="ada"))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_requests_use_the_generation_that_the_alias_points_to(
    service: SearchService, site: Site, first: tuple[Milvus, Generation]
) -> None:
    milvus, old = first
    crop_id = crop_id_of(site.uris[1])
    assert found_in(service, site) == service.about(ADA).generation == old.name
    image = site.archive.get(site.uris[0].removeprefix(site.archive.uri_of("")))
    service.search([image], [], WebRules(top=3), purpose=Purpose(user="ada"))
    service.thumbnail(crop_id)
    view, model = service.live.current(), service.live.current().searcher.embedder

    new = published(milvus, site, site.make_run("run-2", "first"))
    assert found_in(service, site) == service.about(ADA).generation == new.name
    assert service.live.current().searcher.embedder is model  # the same model is not loaded again
    assert service.live.current() is not view  # nor are its caches kept
    third = published(milvus, site, Run.open(site.runs, "run-2"))
    assert old.name in retire(milvus, site.runs, site.settings.alias, keep=1).dropped
    assert found_in(service, site) == third.name
    assert service.thumbnail(crop_id)[:2] == b"\xff\xd8"


def test_a_generation_dropped_during_a_search_is_retried_once_on_the_next(
    service: SearchService, site: Site, first: tuple[Milvus, Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    milvus, old = first
    monkeypatch.setattr(live, "CHECK_SECONDS", 3600.0)
    _ = service.live.current()
    names = []

    def work(view: View) -> int:
        names.append(view.name)
        if view.name == old.name:
            published(milvus, site, site.make_run("run-2", "first"))
            milvus.call("drop_collection", old.name)
        return len(view.searcher.source.crops([crop_id_of(site.uris[0])]))

    assert service.live.answer(work) == 1
    assert len(names) == 2
    assert names[0] == old.name != names[1]
    assert found_in(service, site) == names[1]


def test_an_error_of_an_existing_generation_is_not_retried(service: SearchService) -> None:
    calls = []

    def work(view: View) -> None:
        calls.append(view.name)
        raise IndexRefused("quota")

    with pytest.raises(IndexRefused, match="quota"):
        service.live.answer(work)
    assert len(calls) == 1


def test_requests_go_on_while_another_model_is_loaded(
    service: SearchService, site: Site, first: tuple[Milvus, Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    milvus, old = first
    may_load = threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        may_load.wait(60)
        return Embedder(*arguments, **options)

    monkeypatch.setattr("clvr_model.embedder.Embedder", slow)
    new = published(milvus, site, site.make_run("run-2", "other"))
    for _ in range(3):
        assert found_in(service, site) == old.name
    may_load.set()
    until(lambda: found_in(service, site) == new.name)
    about = service.about(ADA)
    assert about.fingerprint == load_checkpoint(site.models["other"]).fingerprint != old.fingerprint
    assert about.models[3] == "Renamed"
    assert service.live.current().searcher.embedder.fingerprint == new.fingerprint


def test_a_dropped_generation_waits_for_the_model_of_the_next(
    service: SearchService, site: Site, first: tuple[Milvus, Generation]
) -> None:
    milvus, old = first
    new = published(milvus, site, site.make_run("run-2", "other"))
    milvus.call("drop_collection", old.name)
    assert found_in(service, site) == new.name


def test_a_generation_that_cannot_be_opened_leaves_the_old_one(
    service: SearchService, site: Site, first: tuple[Milvus, Generation], tmp_path: Path
) -> None:
    milvus, old = first
    site.models["lost"] = str(tmp_path / "lost")
    save_checkpoint(
        site.models["lost"], Clvr.of(Architecture(classes=4), seed=3), Card(label_ids=(3, 5, 8, 13))
    )
    published(milvus, site, site.make_run("run-2", "lost"))
    shutil.rmtree(site.models.pop("lost"))
    for _ in range(3):
        assert found_in(service, site) == old.name
    milvus.call("drop_collection", old.name)
    with pytest.raises(ClvrError, match="lost"):
        found_in(service, site)


def test_without_a_live_generation_the_error_names_the_remedy(
    service: SearchService, site: Site, first: tuple[Milvus, Generation]
) -> None:
    milvus, old = first
    milvus.call("drop_alias", site.settings.alias)
    assert found_in(service, site) == old.name
    milvus.call("drop_collection", old.name)
    with pytest.raises(IndexRefused, match="points to nothing") as refused:
        found_in(service, site)
    assert "clvr" in refused.value.remedy


def test_an_old_view_is_replaced_although_the_alias_stays(
    service: SearchService, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = service.live.current()
    assert service.live.current() is before
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.0)
    assert service.live.current() is not before
    assert found_in(service, site) == before.name


def test_the_alias_is_looked_up_once_a_second(
    service: SearchService, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "CHECK_SECONDS", 1.0)
    following = LiveView(Searcher(site.settings, predecessor=service.live.current().searcher))
    calls: list[str] = []
    look_up, now = live.live_generation, time.monotonic()

    def counted(milvus: Milvus, alias: str) -> Generation | None:
        calls.append(alias)
        return look_up(milvus, alias)

    monkeypatch.setattr(live, "live_generation", counted)
    with monkeypatch.context() as clock:
        clock.setattr(live, "monotonic", lambda: now)
        for step in (0.0, 0.5, 2.0, 2.5, 2.9, 3.1):
            clock.setattr(live, "monotonic", lambda step=step: now + step)
            following.current()
    assert len(calls) == 2


def test_an_erased_crop_is_no_match_no_probe_and_no_thumbnail(
    service: SearchService, site: Site, hide: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.runs.tombstones._MAX_AGE_SECONDS", 0.0)
    ids = [crop_id_of(uri) for uri in site.uris]
    before = search(service, ids[0], top=11, every_crop=True, same_camera=True)
    nearest = [answer.crop_id for answer in before.answers]
    assert service.thumbnail(nearest[0])[:2] == b"\xff\xd8"  # now it is in the page's memory

    # Their rows are still in Milvus, as in the middle of an erasure, and others take their places.
    hide(site.runs, nearest[:3])
    after = search(service, ids[0], top=8, every_crop=True, same_camera=True)
    assert [answer.crop_id for answer in after.answers] == nearest[3:]
    for crop_id in nearest[:2]:
        with pytest.raises(BadInput, match=f"crop {crop_id} was erased"):
            service.thumbnail(crop_id)
        with pytest.raises(BadInput, match="was erased"):
            search(service, crop_id, top=3)
    with pytest.raises(BadInput, match="was erased"):
        service.live.current().searcher.probe(site.uris[ids.index(nearest[0])])
