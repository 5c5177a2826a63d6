"""A small searchable archive: drawn crops, a random network, a finished run and a live generation."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from clvr_model.checkpoint import Card, save_checkpoint
from clvr_model.embedder import Embedder
from clvr_model.network import Clvr
from clvr_model.preprocessing import decode
from index.archive.manifest import crop_id_of
from index.generations.load import load_runs
from index.generations.promotion import promote
from index.milvus.client import connect
from index.runs.run import Run
from index.runs.shards import shard_table
from index.schema import MANIFEST_SCHEMA, QUARANTINE_SCHEMA
from infra.settings import Settings
from infra.store import open_store

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
    settings = Settings(runs=str(folder / "data"), milvus=str(folder / "milvus.db"))
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
