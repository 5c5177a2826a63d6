"""`clvr generate`: a synthetic archive of any size, rendered on all CPUs of the cluster."""

from dataclasses import asdict, dataclass
from typing import Any

import ray

from clvr_model.synthetic.archive import generate, write_labels
from clvr_model.synthetic.trips import ArchiveSpec
from infra.settings import Settings
from infra.store import open_store
from jobs.runtime.progress import ProgressState, progress
from jobs.runtime.ray_cluster import connect

# A task renders its range from the seed alone, so a lost task is simply repeated.
TASK_IMAGES = 500
KEY_PATTERN = "dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg"


@dataclass(frozen=True, slots=True)
class GeneratedArchive:
    """The result of `clvr generate`; `labels` is a table for `clvr train` and `clvr embed --labels`.

    The names of the fields are keys of the command's JSON.
    """

    archive: str
    labels: str
    pictures: int
    spoiled: int
    bytes: int

    def to_text(self) -> str:
        """Return the number of images and the folders as one line."""
        return f"{self.pictures:,} images in {self.archive}, labels in {self.labels}"

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return asdict(self)


def generate_archive(archive: str, labels: str, spec: ArchiveSpec, settings: Settings) -> GeneratedArchive:
    """Render an archive and write its labels; equal specs give equal bytes, so it can be repeated.

    archive, labels: URIs of the folders of crops and of label files. The label folder must be outside of the
    archive, which contains crops only. Raises StoreError.
    """
    open_store(archive).create_bucket()
    connect(settings)
    render = ray.remote(_render)
    starts = range(0, spec.images, TASK_IMAGES)
    pending = [render.remote(archive, spec, start, min(start + TASK_IMAGES, spec.images)) for start in starts]
    done = spoiled = size = 0
    with progress("generate", "images", lambda: ProgressState(done, spec.images)):
        while pending:
            ready, pending = ray.wait(pending)
            for summary in ray.get(ready):
                done += summary.images
                spoiled += summary.spoiled
                size += summary.bytes
    label_store = open_store(labels)
    write_labels(label_store, spec)
    return GeneratedArchive(archive, label_store.uri_of("labels.parquet"), done, spoiled, size)


def _render(archive: str, spec: ArchiveSpec, start: int, stop: int) -> object:
    return generate(open_store(archive), spec, start=start, stop=stop)
