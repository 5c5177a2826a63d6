"""The live generation with its model, opened for searches: shared by search, sweep and serve."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clvr_model.card import CARD_FILE, Card, read_card, verified_fingerprint
from clvr_model.preprocessing import IMAGE_SIZE, decode
from index.archive.reader import read_uri
from index.filters import Filters
from index.generations.units import members_of
from index.milvus.client import Milvus
from index.milvus.collection import Generation, live_generation, require_live
from index.milvus.search import Hit
from index.runs.tombstones import TombstoneWatch
from index.search.calibration import Calibration, calibration_for
from index.search.milvus_source import MilvusSource
from index.search.probe import Probe, Sighting, image_probe
from index.search.retrieval import Match, Rules, retrieve
from index.search.track_probe import TRACK, parse_track, track_probe
from index.transforms.stored import read_transform
from infra.errors import BadInput, FingerprintMismatch, UnreadableImage
from infra.settings import Settings
from infra.store import open_store
from jobs.runtime.resolve import available_runs_of, open_milvus

if TYPE_CHECKING:
    from clvr_model.embedder import Embedder

# The network is imported where it is used: a search of an archived crop needs no torch.
CROP = "crop:"
_SAMPLE_ROWS = 5000


class Searcher:
    """One generation, resolved once: all matches are from it, even if the alias moves meanwhile.

    checkpoint: the model that embeds probes; by default the one that the generation's runs name.
    predecessor: a searcher of the same settings whose connection, and whose model if it is the same one, are
    used again. Safe to share between threads. Raises BadInput if no generation is live, FingerprintMismatch
    for another model.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        checkpoint: str | None = None,
        threads: int = 1,
        predecessor: "Searcher | None" = None,
    ) -> None:
        self.settings = settings
        self.threads = threads
        milvus = predecessor.source.milvus if predecessor else open_milvus(settings)
        # Without a live generation `require_live` raises BadInput, for any fingerprint.
        target = live_generation(milvus, settings.alias) or require_live(milvus, settings.alias, "")
        runs = available_runs_of(target, settings)
        self.run = runs[-1]
        self.archives = {run.info.archive for run in runs}
        self.checkpoint_uri = checkpoint or self.run.info.model
        if checkpoint is not None:
            target = require_live(milvus, settings.alias, self.model_fingerprint)
        self.source: MilvusSource = open_source(milvus, target, settings)
        if predecessor and predecessor.source.fingerprint == target.fingerprint:
            self.embedder = predecessor.embedder

    def close(self) -> None:
        """Close the connection: only one process can open a Milvus Lite file."""
        self.source.milvus.close()

    @cached_property
    def card(self) -> Card:
        """The card of the model that embeds probes."""
        return read_card(self.checkpoint_uri)

    @property
    def model_fingerprint(self) -> str:
        """The fingerprint of that model. Raises BadCheckpoint for a card that was edited."""
        return verified_fingerprint(self.card, f"{self.checkpoint_uri}/{CARD_FILE}")

    @cached_property
    def embedder(self) -> "Embedder":
        """The model, compiled for this machine. Raises FingerprintMismatch if it is not the archive's."""
        from clvr_model.embedder import Embedder
        from clvr_model.engines import default_cache

        if self.model_fingerprint != self.source.fingerprint:
            raise FingerprintMismatch(
                f"{self.source.name} holds embeddings of model {self.source.fingerprint}, "
                f"{self.checkpoint_uri} is model {self.model_fingerprint}",
                remedy=f"Restore the archive's model at {self.checkpoint_uri}.",
            )
        return Embedder(self.checkpoint_uri, batch_size=1, threads=self.threads, cache=default_cache())

    @cached_property
    def image_size(self) -> int:
        """Height and width of the model's input, in pixels."""
        return self.embedder.image_size

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration of this model, or None."""
        store, source = open_store(self.settings.runs), self.source
        return calibration_for(store, source.name, source.fingerprint, source.generation.transform)

    def require_models(self, numbers: Sequence[int]) -> None:
        """Raise BadInput for a vehicle model that the checkpoint does not predict."""
        if not numbers:
            return
        known = set(self.card.label_ids)
        if not known:
            raise BadInput(
                "the archive's model has no classifier and predicts no vehicle model",
                remedy="search without the filter by vehicle model",
            )
        if unknown := sorted(set(numbers) - known):
            raise BadInput(
                f"the checkpoint knows no vehicle model {', '.join(map(str, unknown))}",
                remedy=f"it has {len(known)} vehicle models, numbered from {min(known)} to {max(known)}",
            )

    @cached_property
    def model_names(self) -> dict[int, str]:
        """Names of the predicted vehicle models."""
        return dict(self.card.label_names)

    def probe(self, uri: str, sighting: Sighting | None = None) -> Probe:
        """Return the probe of `crop:ID`, `track:CAMERA/TRACK`, a path or an s3:// URI.

        Archived crops have a camera and a time; those of a track form one probe.

        sighting: the camera and time of an image that is not in the archive, if they are known.
        Raises BadInput for an unreadable image and for a crop that is not in the generation, StoreError.
        """
        if uri.startswith(CROP):
            return self._archived(uri, crop_number(uri))
        if uri.startswith(TRACK):
            return self._track(uri)
        crop_id = self.source.reassigned().id_at(uri)
        self.require_kept(uri, crop_id)
        sighting = self.source.sightings([crop_id]).get(crop_id)
        if sighting:
            return self._archived(uri, crop_id)
        return self.image_probe(uri, read_image(uri, self.image_size), sighting)

    def image_probe(self, name: str, image: NDArray[np.uint8], sighting: Sighting | None = None) -> Probe:
        """Return the probe of an image (h, w, 3) of the model's size, with the generation's transform."""
        return image_probe(name, self.embedder(image[None]).features[0], self.source.transform, sighting)

    def search(self, probes: Sequence[Probe], rules: Rules) -> list[list[Match]]:
        """Return the matches of each probe; see `index.search.retrieval.retrieve`."""
        return retrieve(self.source, probes, rules, self.calibration)

    def crop(self, crop_id: int) -> Hit:
        """Return the fields of a crop. Raises BadInput if the generation does not contain it."""
        self.require_kept(f"crop {crop_id}", crop_id)
        crops = self.source.crops([crop_id])
        if crop_id not in crops:
            raise BadInput(f"crop {crop_id} is not in {self.source.name}")
        return crops[crop_id]

    def require_cameras(self, names: Sequence[str]) -> None:
        """Raise BadInput, with known cameras, for a camera that no crop of the generation has."""
        unknown = [name for name in names if name and not self._has_camera(name)]
        if unknown:
            known = self.known_cameras()
            raise BadInput(
                f"no crop of {self.source.name} is from camera {', '.join(unknown)}",
                remedy="known cameras: " + ", ".join(known[:20]) + (", …" if len(known) > 20 else ""),
            )

    def known_cameras(self) -> list[str]:
        """Return the cameras of a sample of the generation, which is all of a small generation."""
        return sorted({str(row["camera_id"]) for row in self._sample if row["camera_id"]})

    def time_range(self) -> tuple[int, int] | None:
        """Return the first and the last time, in ms, of the same sample."""
        times = [int(row["captured_at"]) for row in self._sample if row["captured_at"] >= 0]
        return (min(times), max(times)) if times else None

    @cached_property
    def _sample(self) -> list[dict[str, Any]]:
        return self.source.sample(_SAMPLE_ROWS)

    def _has_camera(self, name: str) -> bool:
        expression = Filters(cameras=(name,)).expression()
        rows = self.source.milvus.call(
            "query", self.source.name, filter=expression, output_fields=["crop_id"], limit=1, timeout=60
        )
        return bool(rows)

    def require_kept(self, name: str, crop_id: int) -> None:
        """Raise BadInput if a crop was erased."""
        if self.source.erased_ids([crop_id]):
            raise BadInput(f"{name} was erased", remedy="Search by another crop or image.")

    def _track(self, uri: str) -> Probe:
        camera, track = parse_track(uri)
        probe = track_probe(self.source, uri, camera, track)
        if probe is None:
            raise BadInput(
                f"{self.source.name} has no track {track!r} of camera {camera!r}",
                remedy="take camera and track from a match: clvr search --json shows both",
            )
        return probe

    def _archived(self, name: str, crop_id: int) -> Probe:
        self.require_kept(name, crop_id)
        vectors = self.source.vectors([crop_id])
        if crop_id not in vectors:
            raise BadInput(
                f"crop {crop_id} is not in {self.source.name}",
                remedy="use the id of a match, or search with the image itself",
            )
        sightings = (self.source.sightings([crop_id])[crop_id],)
        return Probe(name, vectors[crop_id], sightings, self.source.generation.transform)


def open_source(milvus: Milvus, generation: Generation, settings: Settings) -> MilvusSource:
    """Open a generation for searches, with its transform, its tracks and the tombstones of the runs."""
    store = open_store(settings.runs)
    members = members_of(store, generation.name)
    transform = read_transform(store, generation.fingerprint, generation.transform)
    return MilvusSource(milvus, generation, TombstoneWatch([store]), transform, members)


def read_image(uri: str, size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """Read and decode an image: uint8 (size, size, 3). Raises BadInput with the cause, StoreError."""
    return decode_named(read_uri(uri), uri, size)


def decode_named(data: bytes, name: str, size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """Decode an image: uint8 (size, size, 3). Raises BadInput with its name and the cause."""
    try:
        return decode(data, size)
    except UnreadableImage as error:
        raise BadInput(f"{name} is not a usable image ({error.cause}): {error.message}") from error


def crop_number(uri: str) -> int:
    """Return the number in `crop:NUMBER`. Raises BadInput."""
    text = uri.removeprefix(CROP)
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) < 2**63):
        raise BadInput(f"{uri[:40]!r} is not a crop", remedy="write crop: and the number of a match")
    return int(text)
