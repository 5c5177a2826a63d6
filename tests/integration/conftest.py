"""A small searchable archive: drawn crops, a random network, a finished run and a live generation."""

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serving import Served, about, until

from clvr_model.checkpoint import Card, save_checkpoint
from clvr_model.embedder import Embedder
from clvr_model.network import Clvr
from clvr_model.preprocessing import decode
from index.archive.manifest import crop_id_of
from index.generations import records
from index.generations.load import load_runs
from index.generations.promotion import promote, rollback
from index.milvus.client import connect
from index.milvus.collection import live_generation
from index.runs.run import Run
from index.runs.shards import shard_table
from index.schema import MANIFEST_SCHEMA, QUARANTINE_SCHEMA
from index.search.travel_time import CameraMap
from infra.settings import Settings
from infra.store import open_store
from jobs.search.searcher import Searcher
from jobs.serve.access import AccessPolicy, Limits
from jobs.serve.request import ServeRequest, make_policy

VEHICLES, SIGHTINGS, CAMERAS = 12, 5, 4
START = 1_767_600_000_000


@dataclass(frozen=True, slots=True)
class SearchableArchive:
    """`crops[v * SIGHTINGS + s]` is the URI of sighting s of vehicle v; `pictures` are not archived."""

    folder: Path
    settings: Settings
    crops: list[str]
    pictures: list[Path]
    run_id: str

    def crop_id(self, vehicle: int, sighting: int) -> int:
        return crop_id_of(self.crops[vehicle * SIGHTINGS + sighting])

    def environment(self) -> dict[str, str]:
        return {"CLVR_RUNS": self.settings.runs, "CLVR_MILVUS": self.settings.milvus}


def drawing(vehicle: int, seed: int) -> bytes:
    """Return a JPEG of two boxes in the colours of the vehicle."""
    rng = np.random.default_rng((vehicle, seed))
    look = np.random.default_rng(vehicle)
    body, roof = (tuple(int(c) for c in look.integers(20, 240, 3)) for _ in range(2))
    noise = rng.integers(90, 130, (120, 160, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    draw = ImageDraw.Draw(image)
    x, y = (int(v) for v in rng.integers(-6, 7, 2))
    draw.rectangle((25 + x, 55 + y, 135 + x, 95 + y), fill=body)
    draw.rectangle((45 + x, 30 + y, 115 + x, 55 + y), fill=roof)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def searchable(tmp_path_factory: pytest.TempPathFactory) -> SearchableArchive:
    folder = tmp_path_factory.mktemp("searchable")
    archive = open_store(str(folder / "archive"))
    (folder / "archive").mkdir()
    (folder / "data").mkdir()
    rows = []
    for vehicle in range(VEHICLES):
        for sighting in range(SIGHTINGS):
            camera = f"{(vehicle + sighting // 2) % CAMERAS:03d}"
            at = START + vehicle * 60_000 + sighting * 3_600_000
            # Two crops a pass: sightings 0 and 1, 2 and 3 are of one track.
            track = f"t{vehicle}-{sighting // 2}"
            key = f"cam={camera}/{at}_{track}_{sighting}.jpg"
            archive.put(key, drawing(vehicle, sighting))
            rows.append((archive.uri_of(key), camera, at, track, vehicle))
    uris, cameras, times, tracks, vehicles = (list(column) for column in zip(*rows, strict=True))
    count = len(uris)
    manifest = pa.table(
        {
            "crop_id": [crop_id_of(uri) for uri in uris],
            "uri": uris,
            "etag": [""] * count,
            "size": [1] * count,
            "last_modified": [0] * count,
            "camera_id": cameras,
            "captured_at": times,
            "track_id": tracks,
            "vehicle_id": vehicles,
            "model_id": [None] * count,
        },
        schema=MANIFEST_SCHEMA,
    )
    card = Card(label_ids=(0, 1), label_names={0: "Hatch", 1: "Van"})
    checkpoint = save_checkpoint(str(folder / "model"), Clvr(2, seed=1).eval(), card)
    embedder = Embedder(checkpoint, threads=0)
    runs = open_store(str(folder / "data"))
    run = Run.create(
        runs,
        "r1",
        manifest=manifest,
        archive=archive.uri,
        fingerprint=checkpoint.fingerprint,
        model=str(folder / "model"),
        settings={},
    )
    for part in run.pending_parts():
        crops = run.part_manifest(part)
        keys = [uri.removeprefix(archive.uri_of("")) for uri in crops["uri"].to_pylist()]
        made = embedder(np.stack([decode(archive.get(key)) for key in keys]))
        shard = shard_table(crops, made.features, made.model_id, made.confidence)
        run.write_part(part, shard, QUARANTINE_SCHEMA.empty_table())
    run.finish()
    settings = Settings(
        runs=str(folder / "data"), milvus=str(folder / "milvus.db"), searches_per_minute=100_000
    )
    with connect(settings.milvus) as milvus:
        generation = load_runs(milvus, runs, [run], alias=settings.alias)
        promote(milvus, runs, generation.name, force="test")
    (folder / "pictures").mkdir()
    pictures = [
        folder / "pictures" / f"v{vehicle:02d}-{seed}.jpg" for vehicle in range(VEHICLES) for seed in (90, 91)
    ]
    for path in pictures:
        vehicle, seed = path.stem[1:].split("-")
        path.write_bytes(drawing(int(vehicle), int(seed)))
    return SearchableArchive(folder, settings, uris, pictures, "r1")


POSITIONS = CameraMap(
    {"000": (52.50, 13.40), "001": (52.51, 13.42), "002": (52.52, 13.40), "003": (52.53, 13.45)}
)


@pytest.fixture(scope="module")
def searcher(searchable: SearchableArchive) -> Iterator[Searcher]:
    searcher = Searcher(searchable.settings, threads=0)
    yield searcher
    searcher.close()


@pytest.fixture(scope="module")
def served(searcher: Searcher) -> Iterator[Served]:
    """The page, for one person."""
    server = Served(searcher, make_policy(ServeRequest()), Limits(1 << 20), cameras=POSITIONS)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def locked(searcher: Searcher) -> Iterator[Served]:
    """The page behind a token."""
    server = Served(searcher, AccessPolicy("a-token-that-is-long-enough"), Limits(1 << 20))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.fail("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        expect.set_options(timeout=30_000)  # the first search of a slow machine takes longer than 5 s
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab of its own; an error in its console fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    page.set_default_timeout(30_000)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    # Chromium logs refused requests, and those that a test lets fail.
    expected = ("401", "400", "net::ERR_FAILED", "net::ERR_CONNECTION", "status of 5")
    assert not [text for text in errors if not any(part in text for part in expected)]


@pytest.fixture
def promoted(
    served: Served, searcher: Searcher, searchable: SearchableArchive
) -> Iterator[tuple[str, Callable[[], str]]]:
    """The live generation, and a function that makes a new one live; afterwards it is rolled back."""
    milvus, runs = searcher.source.milvus, open_store(searchable.settings.runs)
    alias = searchable.settings.alias
    before = live_generation(milvus, alias)
    assert before is not None
    made = []

    def promote_new() -> str:
        generation = load_runs(milvus, runs, [Run.open(runs, searchable.run_id)], alias=alias)
        promote(milvus, runs, generation.name, force="test")
        made.append(generation.name)
        return generation.name

    yield before.name, promote_new
    rollback(milvus, runs, alias, before.name)
    for name in made:
        records.drop(milvus, runs, name, force=True)
    until(lambda: about(served)["generation"] == before.name)
