"""One part of a run: fetch, decode, embed, write. Without Ray, so that it can be measured alone."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clvr_model.embedder import Embedder
from index.quarantine import QuarantinedCrop, quarantine_table
from index.runs import Run
from index.shards import shard_table
from infra.store import Store
from jobs.pictures import Failure, stream_pictures


@dataclass(slots=True)
class PartReport:
    """What became of one part. Seconds are wall time of this part, split by what the model waited for."""

    part: int
    embedded: int = 0
    quarantined: int = 0
    waiting_seconds: float = 0.0
    model_seconds: float = 0.0
    writing_seconds: float = 0.0
    causes: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Batch:
    pictures: NDArray[np.uint8]
    rows: list[int] = field(default_factory=list)


def embed_part(
    run: Run,
    part: int,
    embedder: Embedder,
    archive: Store,
    *,
    decoders: int = 1,
    on_rows: Callable[[int, int], object] = lambda embedded, quarantined: None,
) -> PartReport:
    """Embed the crops of one part and write its shard and quarantine rows; repeatable, same result each time.

    archive: the store that the manifest's URIs lie under. on_rows is told how many more rows were embedded
    and quarantined. Raises StoreUnreachable when the archive or the run folder is out of reach for longer
    than all retries.
    """
    manifest = run.part_manifest(part)
    report = PartReport(part)
    features = np.zeros((manifest.num_rows, embedder.feature_dim), np.float32)
    model_ids = np.zeros(manifest.num_rows, np.int32)
    confidences = np.zeros(manifest.num_rows, np.float32)
    failures: dict[int, Failure] = {}

    def tell() -> None:
        on_rows(finite - report.embedded, len(failures) - report.quarantined)
        report.embedded, report.quarantined = finite, len(failures)

    finite = 0
    clock = time.perf_counter()
    for batch in _batches(manifest, archive, embedder.batch_size, decoders, failures):
        report.waiting_seconds += (ready := time.perf_counter()) - clock
        embedded = embedder(batch.pictures[: len(batch.rows)])
        features[batch.rows] = embedded.features
        model_ids[batch.rows] = embedded.model_id
        confidences[batch.rows] = embedded.confidence
        strange = np.flatnonzero(~np.isfinite(embedded.features).all(axis=1))
        for row in strange:
            failures[batch.rows[row]] = Failure(
                "embed", "not-finite", "a feature of it is not a finite number"
            )
        report.model_seconds += (clock := time.perf_counter()) - ready
        finite += len(batch.rows) - len(strange)
        tell()
    report.waiting_seconds += (ready := time.perf_counter()) - clock

    good = np.array([row for row in range(manifest.num_rows) if row not in failures], np.int64)
    run.write_part(
        part,
        shard_table(manifest.take(good), features[good], model_ids[good], confidences[good]),
        _quarantine(manifest, failures),
    )
    report.writing_seconds = time.perf_counter() - ready
    tell()
    report.causes = dict(Counter(f"{failure.stage}/{failure.cause}" for failure in failures.values()))
    return report


def _batches(
    manifest: pa.Table, archive: Store, size: int, decoders: int, failures: dict[int, Failure]
) -> Iterator[_Batch]:
    root = archive.uri_of("")
    keys = [uri.removeprefix(root) for uri in manifest["uri"].to_pylist()]
    batch: _Batch | None = None
    for row, picture in stream_pictures(
        archive, keys, etags=manifest["etag"].to_pylist(), decoders=decoders, ahead=2 * size
    ):
        if isinstance(picture, Failure):
            failures[row] = picture
            continue
        batch = batch or _Batch(np.empty((size, *picture.shape), np.uint8))
        batch.pictures[len(batch.rows)] = picture
        batch.rows.append(row)
        if len(batch.rows) == size:
            yield batch
            batch = None
    if batch:
        yield batch


def _quarantine(manifest: pa.Table, failures: dict[int, Failure]) -> pa.Table:
    rows = sorted(failures)
    taken = manifest.take(pa.array(rows, pa.int64()))
    return quarantine_table(
        QuarantinedCrop(crop_id, uri, failure.stage, failure.cause, failure.detail)
        for crop_id, uri, failure in zip(
            taken["crop_id"].to_pylist(),
            taken["uri"].to_pylist(),
            (failures[row] for row in rows),
            strict=True,
        )
    )
