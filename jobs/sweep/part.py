"""One part of a sweep: fetch and embed its probes, search, write. Independent of Ray."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from clvr_model.embedder import Embedder
from clvr_model.preprocessing import decode
from index.archive.reader import ArchiveReader, open_uri
from index.generations.traces import REDACTED
from index.search.calibration import Calibration
from index.search.probe import Probe, Sighting, image_probe
from index.search.retrieval import CropSource, Match, Rules, retrieve
from index.search.track_probe import TRACK, track_probe
from infra.errors import BadInput, BadSetting, ClvrError, StoreUnreachable, UnreadableImage
from jobs.runtime.image_stream import quarantine_cause
from jobs.search.search import verdict
from jobs.search.searcher import CROP, crop_number
from jobs.sweep.state import PROBE_SCHEMA, RESULT_SCHEMA, Sweep

EMBED_BATCH = 16
ERASED_DETAIL = "the crop was erased"


@dataclass(slots=True)
class _Row:
    """One probe of the list, and then its features and matches, or the cause of its failure."""

    probe_id: str
    uri: str
    crop_id: int | None = None
    probe: Probe | None = None
    matches: list[Match] = field(default_factory=list)
    cause: str = ""
    detail: str = ""

    def fail(self, cause: str, detail: str) -> None:
        self.cause, self.detail = cause, detail


class SweepWorker:
    """Searches parts of one sweep. embedder: opens the model, for the first image that needs it.

    by_track: the probe of an archived crop on a track is the mean of all crops of this track.
    """

    def __init__(
        self,
        sweep: Sweep,
        source: CropSource,
        rules: Rules,
        embedder: Callable[[], Embedder],
        calibration: Calibration | None,
        *,
        by_track: bool = False,
    ) -> None:
        self.sweep = sweep
        self.source = source
        self.rules = rules
        self.calibration = calibration
        self.by_track = by_track
        self._open_embedder = embedder
        self._embedder: Embedder | None = None

    def search_part(self, part: int) -> tuple[int, int]:
        """Search a part and write it; return how many probes were searched and how many failed.

        A probe that cannot be read becomes a row with its cause. Raises StoreUnreachable and the errors of
        Milvus, because an unreachable server is not the fault of one probe.
        """
        while True:
            rows = self._search(part)
            self.sweep.write_part(part, self._results(rows), self._outcomes(rows))
            # Asked after the write: a purge has either not begun, and will see the part, or is seen here.
            if not self.source.erased_ids(_crops_of(rows), now=True):
                failed = sum(bool(row.cause) for row in rows)
                return len(rows) - failed, failed

    def _search(self, part: int) -> list[_Row]:
        rows = [_Row(**row) for row in self.sweep.probes(part).to_pylist()]
        self._fetch_archived(rows)
        self._embed_images([row for row in rows if row.probe is None and not row.cause])
        ready = [row for row in rows if row.probe is not None]
        probes = [row.probe for row in ready if row.probe is not None]
        if probes:
            results = retrieve(self.source, probes, self.rules, self.calibration)
            for row, matches in zip(ready, results, strict=True):
                row.matches = matches
        return rows

    def _fetch_archived(self, rows: list[_Row]) -> None:
        """Take the features of probes that are crops of the archive from the source."""
        reassigned = self.source.reassigned()
        for row in rows:
            if row.uri == REDACTED:
                row.fail("erased", ERASED_DETAIL)
                continue
            if row.uri.startswith(TRACK):
                row.fail("bad-uri", "a sweep lists crops: name one of the track, with --unit track")
                continue
            try:
                row.crop_id = crop_number(row.uri) if row.uri.startswith(CROP) else reassigned.id_at(row.uri)
            except (BadInput, BadSetting) as error:
                row.fail("bad-uri", error.message)
        ids = sorted({row.crop_id for row in rows if row.crop_id is not None})
        erased = self.source.erased_ids(ids)
        for row in rows:
            if row.crop_id in erased:
                row.fail("erased", ERASED_DETAIL)
        vectors = self.source.vectors(ids)
        sightings = self.source.sightings(list(vectors))
        for row in rows:
            if row.crop_id in vectors:
                row.probe = Probe(
                    row.probe_id, vectors[row.crop_id], (sightings[row.crop_id],), self._transform_id
                )
                if self.by_track and (key := sightings[row.crop_id].track_key):
                    row.probe = track_probe(self.source, row.probe_id, *key) or row.probe
            elif row.uri.startswith(CROP) and not row.cause:
                row.fail("unknown-crop", f"{row.uri} is not in {self.source.name}")

    def _embed_images(self, rows: list[_Row]) -> None:
        by_folder: dict[str, list[tuple[_Row, str]]] = defaultdict(list)
        readers: dict[str, ArchiveReader] = {}
        for row in rows:
            reader, uri = open_uri(row.uri)
            readers.setdefault(reader.uri, reader)
            by_folder[reader.uri].append((row, uri))
        batch: list[tuple[_Row, np.ndarray]] = []
        for folder, members in by_folder.items():
            for position, fetched in readers[folder].fetch_many([uri for _, uri in members], in_flight=32):
                row = members[position][0]
                if isinstance(fetched, StoreUnreachable):
                    raise fetched
                if isinstance(fetched, ClvrError):
                    row.fail(quarantine_cause(fetched) or "missing", fetched.message)
                    continue
                try:
                    batch.append((row, decode(fetched.data, self._loaded_embedder().image_size)))
                except UnreadableImage as error:
                    row.fail(error.cause, error.message)
                if len(batch) == EMBED_BATCH:
                    self._embed(batch)
                    batch = []
        self._embed(batch)

    def _loaded_embedder(self) -> Embedder:
        self._embedder = self._embedder or self._open_embedder()
        return self._embedder

    def _embed(self, batch: list[tuple[_Row, np.ndarray]]) -> None:
        if not batch:
            return
        features = self._loaded_embedder()(np.stack([image for _, image in batch])).features
        for (row, _), vector in zip(batch, features, strict=True):
            if np.isfinite(vector).all():
                sighting = Sighting(crop_id=row.crop_id)
                row.probe = image_probe(row.probe_id, vector, self.source.transform, sighting)
            else:
                row.fail("not-finite", "a feature is not a finite number")

    @property
    def _transform_id(self) -> str:
        return self.source.transform.transform_id if self.source.transform else ""

    def _results(self, rows: list[_Row]) -> pa.Table:
        return pa.Table.from_pylist(
            [
                {
                    "probe_id": row.probe_id,
                    "rank": match.rank,
                    "crop_id": match.hit.crop_id,
                    "distance": match.hit.distance,
                    "likelihood": match.likelihood,
                    "camera_id": match.hit.camera_id,
                    "captured_at": match.hit.captured_at,
                    "track_id": match.hit.track_id,
                    "generation": self.source.name,
                }
                for row in rows
                for match in row.matches
            ],
            schema=RESULT_SCHEMA,
        )

    def _outcomes(self, rows: list[_Row]) -> pa.Table:
        return pa.Table.from_pylist(
            [
                {
                    "probe_id": row.probe_id,
                    "uri": row.uri,
                    "verdict": "failed" if row.cause else verdict(row.matches, self.calibration),
                    "answers": len(row.matches),
                    "best_distance": row.matches[0].hit.distance if row.matches else None,
                    "best_likelihood": row.matches[0].likelihood if row.matches else None,
                    "cause": row.cause,
                    "detail": row.detail,
                }
                for row in rows
            ],
            schema=PROBE_SCHEMA,
        )


def _crops_of(rows: list[_Row]) -> list[int]:
    """Return the crops that rows show: probes that were searched, with their tracks, and matches."""
    probes = [row.crop_id for row in rows if row.crop_id is not None and not row.cause]
    probes += [crop_id for row in rows if row.probe for crop_id in row.probe.crop_ids]
    return [*probes, *(match.hit.crop_id for row in rows for match in row.matches)]
