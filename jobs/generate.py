"""`clvr generate`: a made-up archive of any size, drawn on all cores of the cluster."""

from dataclasses import dataclass

import ray

from clvr_model.synthetic.archive import generate, write_labels
from clvr_model.synthetic.trips import ArchiveSpec
from infra.settings import Settings
from infra.store import open_store
from jobs.runtime.progress import ProgressState, progress
from jobs.runtime.ray_cluster import connect

PICTURES_A_TASK = 500
# Each draws its range again from the seed alone, so a lost task is simply drawn anew.
KEY_PATTERN = "dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg"


@dataclass(frozen=True, slots=True)
class GeneratedArchive:
    """What was drawn; `labels` is a table for `clvr train` and `clvr embed --labels`."""

    archive: str
    labels: str
    pictures: int
    spoiled: int
    bytes: int


def generate_archive(archive: str, labels: str, spec: ArchiveSpec, settings: Settings) -> GeneratedArchive:
    """Draw a whole archive and its labels; the same spec gives the same bytes, so a repetition is harmless.

    archive, labels: URIs of the folders for the crops and for the label files, of which neither may hold
    the other: an archive holds crops only. Raises StoreError.
    """
    open_store(archive).create_bucket()
    connect(settings)
    draw = ray.remote(_draw)
    starts = range(0, spec.images, PICTURES_A_TASK)
    waiting = [
        draw.remote(archive, spec, start, min(start + PICTURES_A_TASK, spec.images)) for start in starts
    ]
    done = spoiled = size = 0
    with progress("generate", "pictures", lambda: ProgressState(done, spec.images)):
        while waiting:
            ready, waiting = ray.wait(waiting)
            for summary in ray.get(ready):
                done += summary.images
                spoiled += summary.spoiled
                size += summary.bytes
    label_store = open_store(labels)
    write_labels(label_store, spec)
    return GeneratedArchive(archive, label_store.uri_of("labels.parquet"), done, spoiled, size)


def _draw(archive: str, spec: ArchiveSpec, start: int, stop: int) -> object:
    return generate(open_store(archive), spec, start=start, stop=stop)
