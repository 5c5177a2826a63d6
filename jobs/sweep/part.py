"""One part of a sweep: fetch, embed, answer, write. Without Ray, so that it can be measured alone."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from clvr_model.embedder import Embedder
from clvr_model.preprocessing import decode
from index.archive.reader import crop_id_at
from index.search.calibration import Calibration
from index.search.probe import Probe, Sighting
from index.search.retrieval import CropSource, Match, Rules, retrieve
from infra.errors import BadInput, BadSetting, ClvrError, StoreDenied, StoreUnreachable, UnreadablePicture
from infra.store import open_store, split_uri
from jobs.search.search import verdict
from jobs.search.searcher import CROP, crop_number
from jobs.sweep.state import PROBE_SCHEMA, RESULT_SCHEMA, Sweep

EMBED_BATCH = 16


@dataclass(slots=True)
class _Row:
    """One probe on its way: named, then made, then answered, or failed with a cause."""

    probe_id: str
    uri: str
    crop_id: int | None = None
    probe: Probe | None = None
    answers: list[Match] = field(default_factory=list)
    cause: str = ""
    detail: str = ""

    def fail(self, cause: str, detail: str) -> None:
        self.cause, self.detail = cause, detail


class SweepWorker:
    """Answers parts of one sweep. embedder: makes the model when the first picture needs it."""

    def __init__(
        self,
        sweep: Sweep,
        source: CropSource,
        rules: Rules,
        embedder: Callable[[], Embedder],
        calibration: Calibration | None,
    ) -> None:
        self.sweep = sweep
        self.source = source
        self.rules = rules
        self.calibration = calibration
        self._make_embedder = embedder
        self._embedder: Embedder | None = None

    def do(self, part: int) -> tuple[int, int]:
        """Answer a part and write it; return how many probes were answered and how many failed.

        A probe that cannot be had is a row with its cause. Raises StoreUnreachable and Milvus' errors: a
        server that is away is not a fault of one probe.
        """
        rows = [_Row(**row) for row in self.sweep.probes(part).to_pylist()]
        self._take_archived(rows)
        self._take_pictures([row for row in rows if row.probe is None and not row.cause])
        ready = [row for row in rows if row.probe is not None]
        probes = [row.probe for row in ready if row.probe is not None]
        if probes:
            for row, answers in zip(
                ready, retrieve(self.source, probes, self.rules, self.calibration), strict=True
            ):
                row.answers = answers
        self.sweep.write_part(part, self._results(rows), self._outcomes(rows))
        return len(ready), len(rows) - len(ready)

    def _take_archived(self, rows: list[_Row]) -> None:
        """Probes that are crops of the archive: their features are known already."""
        for row in rows:
            try:
                row.crop_id = crop_number(row.uri) if row.uri.startswith(CROP) else crop_id_at(row.uri)
            except (BadInput, BadSetting) as error:
                row.fail("bad-uri", error.message)
        ids = sorted({row.crop_id for row in rows if row.crop_id is not None})
        vectors = self.source.vectors(ids)
        sightings = self.source.sightings(list(vectors))
        for row in rows:
            if row.crop_id in vectors:
                row.probe = Probe(row.probe_id, vectors[row.crop_id], (sightings[row.crop_id],))
            elif row.uri.startswith(CROP) and not row.cause:
                row.fail("unknown-crop", f"{row.uri} is not in {self.source.name}")

    def _take_pictures(self, rows: list[_Row]) -> None:
        by_root: dict[str, list[tuple[_Row, str]]] = defaultdict(list)
        for row in rows:
            root, key = split_uri(row.uri)
            by_root[root].append((row, key))
        batch: list[tuple[_Row, np.ndarray]] = []
        for root, members in by_root.items():
            for position, fetched in open_store(root).get_many([key for _, key in members], in_flight=32):
                row = members[position][0]
                if isinstance(fetched, StoreUnreachable):
                    raise fetched
                if isinstance(fetched, ClvrError):
                    row.fail("denied" if isinstance(fetched, StoreDenied) else "missing", fetched.message)
                    continue
                try:
                    batch.append((row, decode(fetched.data)))
                except UnreadablePicture as error:
                    row.fail(error.cause, error.message)
                if len(batch) == EMBED_BATCH:
                    self._embed(batch)
                    batch = []
        self._embed(batch)

    def _embed(self, batch: list[tuple[_Row, np.ndarray]]) -> None:
        if not batch:
            return
        self._embedder = self._embedder or self._make_embedder()
        features = self._embedder(np.stack([picture for _, picture in batch])).features
        for (row, _), vector in zip(batch, features, strict=True):
            if np.isfinite(vector).all():
                row.probe = Probe(row.probe_id, vector, (Sighting(crop_id=row.crop_id),))
            else:
                row.fail("not-finite", "a feature of it is not a finite number")

    def _results(self, rows: list[_Row]) -> pa.Table:
        return pa.Table.from_pylist(
            [
                {
                    "probe_id": row.probe_id,
                    "rank": each.rank,
                    "crop_id": each.hit.crop_id,
                    "distance": each.hit.distance,
                    "likelihood": each.likelihood,
                    "camera_id": each.hit.camera_id,
                    "captured_at": each.hit.captured_at,
                    "track_id": each.hit.track_id,
                    "generation": self.source.name,
                }
                for row in rows
                for each in row.answers
            ],
            schema=RESULT_SCHEMA,
        )

    def _outcomes(self, rows: list[_Row]) -> pa.Table:
        return pa.Table.from_pylist(
            [
                {
                    "probe_id": row.probe_id,
                    "uri": row.uri,
                    "verdict": "failed" if row.cause else verdict(row.answers, self.calibration),
                    "answers": len(row.answers),
                    "best_distance": row.answers[0].hit.distance if row.answers else None,
                    "best_likelihood": row.answers[0].likelihood if row.answers else None,
                    "cause": row.cause,
                    "detail": row.detail,
                }
                for row in rows
            ],
            schema=PROBE_SCHEMA,
        )
