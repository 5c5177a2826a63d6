"""A finished run with labelled crops, which is written and not embedded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from index.archive.manifest import crop_id_of
from index.runs.run import Run
from index.runs.shards import shard_table
from index.schema import MANIFEST_SCHEMA, QUARANTINE_SCHEMA
from infra.settings import Settings, load_settings
from infra.store import open_store

VEHICLES = np.repeat(np.arange(12), 5)
Make = Callable[..., Run]


def settings_in(folder: Path) -> Settings:
    """Settings with an empty folder of runs in a folder."""
    (folder / "runs").mkdir()
    return load_settings({"runs": str(folder / "runs"), "milvus": str(folder / "index.db")})


def write_run(
    folder: Path,
    settings: Settings,
    checkpoint: str,
    run_id: str,
    *,
    noise: float = 1.0,
    labelled: bool = True,
    quarantined: int = 0,
    fingerprint: str = "ab" * 8,
    unit_length: bool = False,
) -> Run:
    """A finished run of 60 crops, 12 vehicles, 4 cameras; features cluster by vehicle, less with noise."""
    rows = len(VEHICLES)
    archive = folder / "archive"
    uris = [f"{archive}/image/{number:07d}.jpg" for number in range(rows)]
    manifest = {
        "crop_id": [crop_id_of(uri) for uri in uris],
        "uri": uris,
        "etag": ["e"] * rows,
        "size": list(range(rows)),
        "last_modified": [0] * rows,
        "camera_id": [f"{number % 4:03d}" for number in range(rows)],
        "captured_at": [number * 3_600_000 for number in range(rows)],
        "track_id": [""] * rows,
        "vehicle_id": VEHICLES.tolist() if labelled else [None] * rows,
        "model_id": [(3, 5, 8, 13)[v % 4] for v in VEHICLES] if labelled else [None] * rows,
    }
    run = Run.create(
        open_store(settings.runs),
        run_id,
        manifest=pa.table(manifest, schema=MANIFEST_SCHEMA),
        archive=str(archive),
        fingerprint=fingerprint,
        model=checkpoint,
        settings={},
        rows_per_part=100,
        rows_per_shard=100,
    )
    for part in run.pending_parts():
        whole = run.part_manifest(part)
        crops = whole.slice(quarantined)
        numbers = crops["size"].to_numpy()
        centres = np.random.default_rng(0).standard_normal((12, 1024))[VEHICLES[numbers]]
        own = np.random.default_rng(1).standard_normal((rows, 1024))[numbers]
        features = (centres + noise * 6 * own).astype(np.float32)
        if unit_length:
            features /= np.linalg.norm(features, axis=1, keepdims=True)
        predicted = np.array([(3, 5, 8, 13)[v % 4] for v in VEHICLES[numbers]], np.int32)
        shard = shard_table(crops, features, predicted, np.full(len(numbers), 0.5, np.float32))
        lost = whole.slice(0, quarantined)
        quarantine = {
            "crop_id": lost["crop_id"].to_pylist(),
            "uri": lost["uri"].to_pylist(),
            "stage": ["decode"] * quarantined,
            "cause": ["truncated"] * quarantined,
            "detail": ["cut off"] * quarantined,
        }
        run.write_part(part, shard, pa.table(quarantine, schema=QUARANTINE_SCHEMA))
    run.finish()
    return run
