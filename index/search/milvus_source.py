"""Search in a generation: nearest crops, and crops by their ids."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.archive.reassigned import ReassignedIds, read_reassigned
from index.filters import Filters
from index.generations.units import Members, TrackOfCrop
from index.milvus.client import Milvus
from index.milvus.collection import Generation, ensure_loaded, fetch_rows
from index.milvus.index_types import MAX_TOP
from index.milvus.search import Hit, search_generation
from index.runs.tombstones import ErasedCrops, TombstoneWatch
from index.schema import scalar_names
from index.search.probe import Sighting
from index.transforms.transform import FeatureTransform, require_transform


class MilvusSource:
    """A loaded generation as a `CropSource`.

    tombstones: those of the folder of runs. Rows that an erasure has not deleted yet are left out.
    transform: the one of the generation, for its probes. members: of a generation of tracks; a crop then
    stands for the row of its track. Raises TransformMismatch for another transform.
    """

    def __init__(
        self,
        milvus: Milvus,
        generation: Generation,
        tombstones: TombstoneWatch,
        transform: FeatureTransform | None = None,
        members: Members | None = None,
    ) -> None:
        require_transform(generation.transform, transform, generation.name)
        ensure_loaded(milvus, generation)
        self.milvus = milvus
        self.generation = generation
        self.name = generation.name
        self.fingerprint = generation.fingerprint
        self.tombstones = tombstones
        self.transform = transform
        self.members = members
        # The rows that erasures took out, and the tombstones that were read before them.
        self._withdrawn: tuple[ErasedCrops | None, set[int]] = (None, set())

    def nearest(self, features: NDArray[np.float32], top: int, filters: Filters) -> list[list[Hit]]:
        """Return the nearest crops of each row of features (q, d), nearest first."""
        depth = top
        while True:
            batches = search_generation(self.milvus, self.generation, features, depth, filters)
            results = [hits for batch in batches for hits in batch]
            hidden = self._hidden([hit.crop_id for hits in results for hit in hits])
            if not hidden:
                return [hits[:top] for hits in results]
            kept = [[hit for hit in hits if hit.crop_id not in hidden] for hits in results]
            pairs = zip(kept, results, strict=True)
            is_full = all(len(hits) >= top or len(found) < depth for hits, found in pairs)
            if is_full or depth >= MAX_TOP:
                return [_ranked(hits[:top]) for hits in kept]
            # In the middle of an erasure: other crops take the places of those that are about to go.
            depth = min(MAX_TOP, depth * 8)

    def reassigned(self) -> ReassignedIds:
        """Return the crops that have another crop_id than the hash of their URI."""
        return read_reassigned(*self.tombstones.stores)

    def erased_ids(self, crop_ids: Sequence[int], *, now: bool = False) -> set[int]:
        """Return those of the crop_ids that were erased; `now`: also within the last half second."""
        return self.tombstones.current(now=now).erased_ids(crop_ids)

    def vectors(self, crop_ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """Return the vectors (d,) of those crops that are in the generation."""
        rows = self._rows(crop_ids, ["crop_id", "embedding"])
        return {crop_id: np.asarray(row["embedding"], np.float32) for crop_id, row in rows.items()}

    def sightings(self, crop_ids: Sequence[int]) -> dict[int, Sighting]:
        """Return the sightings of those crops that are in the generation."""
        return {
            crop_id: Sighting(hit.camera_id, hit.track_id, hit.captured_at, crop_id)
            for crop_id, hit in self.crops(crop_ids).items()
        }

    def track_crops(self, camera_id: str, track_id: str) -> list[int]:
        """Return the crop_ids of a camera's track, up to MAX_TOP, in no particular order."""
        rows = self.milvus.call(
            "query",
            self.name,
            filter=Filters(tracks=((camera_id, track_id),)).expression(),
            output_fields=["crop_id"],
            limit=MAX_TOP,
            timeout=60,
        )
        return self._visible([int(row["crop_id"]) for row in rows])

    def crops(self, crop_ids: Sequence[int]) -> dict[int, Hit]:
        """Return the fields of those crops that are in the generation, as hits at rank and distance 0.

        In a generation of tracks they are those of the crop that stands for the track.
        """
        names = scalar_names(self.generation.schema_version)
        return {
            crop_id: Hit(rank=0, distance=0.0, **{name: row[name] for name in names})
            for crop_id, row in self._rows(crop_ids, names).items()
        }

    def select(self, filters: Filters, limit: int) -> list[Hit]:
        """Return at most `limit` crops that pass the filters, in no particular order, as hits at rank 0."""
        names = scalar_names(self.generation.schema_version)
        rows = self.milvus.call(
            "query",
            self.name,
            filter=filters.expression(),
            output_fields=list(names),
            limit=limit,
            timeout=60,
        )
        hidden = self._hidden([int(row["crop_id"]) for row in rows])
        return [
            Hit(rank=0, distance=0.0, **{name: row[name] for name in names})
            for row in rows
            if int(row["crop_id"]) not in hidden
        ]

    def tracks(self, crop_ids: Sequence[int]) -> dict[int, TrackOfCrop]:
        """Return the tracks of those crops that are on one; none in a generation of crops."""
        return self.members.of(crop_ids) if self.members else {}

    def sample(self, rows: int) -> list[dict[str, Any]]:
        """Return camera and time of at most `rows` crops, in no particular order."""
        return list(
            self.milvus.call(
                "query",
                self.name,
                filter="crop_id >= 0",
                output_fields=["camera_id", "captured_at"],
                limit=rows,
                timeout=60,
            )
        )

    def _rows(self, crop_ids: Sequence[int], columns: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Return columns of the rows that hold those crops that were not erased, by the crops."""
        visible = self._visible(crop_ids)
        rows = self._fetch(visible, columns)
        others = [crop_id for crop_id in visible if crop_id not in rows] if self.members else []
        if not others:
            return rows
        row_ids = {crop_id: track.row_id for crop_id, track in self.tracks(others).items()}
        of_tracks = self._fetch(sorted(set(row_ids.values())), columns)
        return rows | {
            crop_id: of_tracks[row_id] for crop_id, row_id in row_ids.items() if row_id in of_tracks
        }

    def _fetch(self, crop_ids: Sequence[int], columns: Sequence[str]) -> dict[int, dict[str, Any]]:
        hidden = self._hidden(crop_ids)
        shown = [crop_id for crop_id in crop_ids if crop_id not in hidden]
        return {int(row["crop_id"]): row for row in fetch_rows(self.milvus, self.name, shown, columns)}

    def _visible(self, crop_ids: Sequence[int]) -> list[int]:
        erased = self.erased_ids(crop_ids)
        return [crop_id for crop_id in crop_ids if crop_id not in erased]

    def _hidden(self, row_ids: Sequence[int]) -> set[int]:
        """Return those of the row_ids that were erased, or that are tracks with an erased crop."""
        current = self.tombstones.current()
        read_at, withdrawn = self._withdrawn
        if self.members is not None and current is not read_at:
            # An erasure writes them before its receipt, so whoever sees its tombstones sees them too.
            withdrawn = set(self.members.withdrawn().tolist())
            self._withdrawn = current, withdrawn
        return current.erased_ids(row_ids) | withdrawn.intersection(row_ids)


def _ranked(hits: Sequence[Hit]) -> list[Hit]:
    return [replace(hit, rank=rank) for rank, hit in enumerate(hits, start=1)]
