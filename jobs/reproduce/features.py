"""Features of images, embedded once: a run whose name follows from the checkpoint and the list of images."""

import csv
import hashlib
import io
from collections.abc import Sequence
from contextlib import suppress

from index.runs.run import Run
from infra.errors import BucketMissing, ObjectMissing
from infra.logging import logger
from infra.settings import Settings
from infra.store import Store, open_store
from jobs.embed.job import EmbedRequest, embed


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

    folder: for the list of the images. uris: below `archive`. Raises the errors of `clvr embed`.
    """
    digest = hashlib.sha256("\n".join(uris).encode()).hexdigest()[:12]
    run_id = f"{fingerprint}-{digest}"
    runs = open_store(settings.runs)
    with suppress(ObjectMissing, BucketMissing):
        run = Run.open(runs, run_id)
        if run.finished:
            logger.info(f"run {run_id} has these {len(uris):,} images already")
            return run
    name = f"images-{digest}.csv"
    folder.put(name, _table(uris))
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


def _table(uris: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("uri",), *((uri,) for uri in uris)])
    return text.getvalue().encode()
