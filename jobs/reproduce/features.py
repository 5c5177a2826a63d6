"""Features of images, embedded once: a run whose name follows from the checkpoint and the list of images."""

import csv
import hashlib
import io
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from index.archive.manifest import crop_id_of
from index.outputs import record_output
from index.runs.run import Run
from index.runs.tombstones import read_tombstones
from infra.errors import BucketMissing, ObjectMissing
from infra.logging import logger
from infra.settings import Settings
from infra.store import Store, open_store
from jobs.embed.job import embed
from jobs.embed.new_run import EmbedRequest


def embed_images(
    folder: Store,
    *,
    checkpoint: str,
    fingerprint: str,
    archive: str,
    uris: Sequence[str],
    settings: Settings,
    max_quarantine_rate: float,
) -> Run:
    """Return the finished run of these images by this checkpoint; what is embedded already stays.

    folder: for the list of the images. uris: below `archive`; erased ones are left out. Raises the errors of
    `clvr embed`.
    """
    runs = open_store(settings.runs)
    kept = not_erased(uris, runs)
    for listed in (uris, kept):  # an erasure after the embedding has purged the run
        run = _finished_run(runs, _run_id(fingerprint, listed))
        if run is not None:
            logger.info(f"run {run.run_id} has these {len(uris):,} images already")
            return run
    run_id, name = _run_id(fingerprint, kept), f"images-{_digest(kept)}.csv"
    record_output(runs, "page", folder.uri_of(name), map(crop_id_of, kept))
    folder.put(name, _table(kept))
    embed(
        EmbedRequest(
            archive,
            manifest=folder.uri_of(name),
            model=checkpoint,
            run_id=run_id,
            max_quarantine_rate=max_quarantine_rate,
        ),
        settings,
    )
    return Run.open(runs, run_id)


def not_erased(uris: Sequence[str], runs: Store) -> list[str]:
    """Return the images that were not erased from this folder of runs."""
    erased = read_tombstones(runs)
    if not len(erased):
        return list(uris)
    ids = np.fromiter(map(crop_id_of, uris), np.int64, len(uris))
    return [uri for uri, is_erased in zip(uris, erased.is_erased(ids), strict=True) if not is_erased]


def _run_id(fingerprint: str, uris: Sequence[str]) -> str:
    return f"{fingerprint}-{_digest(uris)}"


def _digest(uris: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(uris).encode()).hexdigest()[:12]


def _finished_run(runs: Store, run_id: str) -> Run | None:
    with suppress(ObjectMissing, BucketMissing):
        run = Run.open(runs, run_id)
        return run if run.finished else None
    return None


def _table(uris: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("uri",), *((uri,) for uri in uris)])
    return text.getvalue().encode()
