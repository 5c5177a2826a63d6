"""The generation that the page searches: it follows the alias, with its model, archives and caches."""

import hashlib
import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from cachetools import LRUCache, cachedmethod

from index.archive.reader import ArchiveReader
from index.milvus.collection import live_generation
from index.search.probe import Probe
from infra.errors import BadInput, ClvrError, IndexRefused, IndexServerError
from infra.logging import logger
from infra.store import open_store
from jobs.pages.thumbnail import thumbnail
from jobs.search.searcher import Searcher, decode_named
from jobs.serve.images import Box, Viewable, cut_square, viewable
from jobs.serve.slots import decode_slots

CHECK_SECONDS = 1.0
"""How often the alias is looked up, at most."""

REFRESH_SECONDS = 300.0
"""Age at which a view is replaced even if the alias stays: increments and calibrations change its facts."""

RETRY_SECONDS = 30.0
"""How long a view stays after its successor could not be opened."""

CACHED_THUMBNAILS, CACHED_URIS, CACHED_PROBES = 2000, 50_000, 256

Result = TypeVar("Result")


class View:
    """One generation with its searcher, and caches of what depends on the generation or the model."""

    def __init__(self, searcher: Searcher, model_lock: threading.Lock) -> None:
        self.searcher = searcher
        self.name = searcher.source.name
        self.opened = monotonic()
        self._model_lock = model_lock
        self._thumbnails: LRUCache[int, bytes] = LRUCache(CACHED_THUMBNAILS)
        self._uris: LRUCache[int, str] = LRUCache(CACHED_URIS)
        self._probes: LRUCache[tuple[str, Box | None], Probe] = LRUCache(CACHED_PROBES)
        self._cache_lock = threading.Lock()

    def thumbnail(self, crop_id: int) -> bytes:
        """Return the JPEG thumbnail of a crop.

        Raises BadInput for a crop that was erased or is outside the archive, StoreError.
        """
        # Before any cache is asked, which may have it from before the erasure.
        self.searcher.require_kept(f"crop {crop_id}", crop_id)
        return self._thumbnail(crop_id)

    @cachedmethod(lambda self: self._thumbnails, lambda self, crop_id: crop_id, lambda self: self._cache_lock)
    def _thumbnail(self, crop_id: int) -> bytes:
        data = self.fetch(self._uri(crop_id), crop_id)
        with decode_slots.use():
            return thumbnail(data)

    def original(self, crop_id: int) -> tuple[bytes, Viewable]:
        """Return the bytes of a crop in the archive, and an image of it for a browser.

        Raises BadInput for a crop that was erased, is outside the archive or is no usable image, StoreError.
        """
        self.searcher.require_kept(f"crop {crop_id}", crop_id)
        data = self.fetch(self._uri(crop_id), crop_id)
        with decode_slots.use():
            return data, viewable(data)

    def fetch(self, uri: str, crop_id: int) -> bytes:
        """Return the bytes of a crop in an archive of the generation's runs. Raises BadInput, StoreError."""
        for archive in self.searcher.archives:
            reader = ArchiveReader(open_store(archive))
            if reader.holds(uri):
                return reader.fetch(uri).data
        raise BadInput(f"crop {crop_id} is outside the archive")

    @cachedmethod(
        lambda self: self._probes,
        lambda self, data, box=None: (hashlib.sha256(data).hexdigest(), box),
        lambda self: self._cache_lock,
    )
    def probe(self, data: bytes, box: Box | None = None) -> Probe:
        """Return the probe of an encoded image, or of a box of it.

        Raises BadInput with the cause, Locked under a flood.
        """
        size = self.searcher.image_size
        with decode_slots.use():
            image = decode_named(data, "the image", size) if box is None else cut_square(data, box, size)
        with self._model_lock:
            return self.searcher.image_probe("the image", image)

    def remember_uris(self, uris: dict[int, str]) -> None:
        """Keep the URIs of crops whose thumbnails are probably requested next."""
        with self._cache_lock:
            self._uris.update(uris)

    @cachedmethod(lambda self: self._uris, lambda self, crop_id: crop_id, lambda self: self._cache_lock)
    def _uri(self, crop_id: int) -> str:
        return self.searcher.crop(crop_id).uri


class LiveView:
    """The view of the generation that the alias points to. Safe to share between threads.

    Requests in progress end on the view that they began with. A generation of another model replaces the old
    one after its model is loaded, in the background.
    """

    def __init__(self, searcher: Searcher) -> None:
        # OpenVINO runs one request at a time; waiting for this lock keeps the queue in Python. Views share a
        # model, so they share the lock.
        self._model_lock = threading.Lock()
        self._view = View(searcher, self._model_lock)
        self._schedule_lock = threading.Lock()
        self._next_check = monotonic() + CHECK_SECONDS
        self._switch_lock = threading.Lock()
        self._loader: threading.Thread | None = None

    def answer(self, work: Callable[[View], Result]) -> Result:
        """Do the work of one request on the current view.

        If its generation is dropped meanwhile, the work is done once more, on the one that is live then.
        Raises what `work` raises, and IndexRefused if no generation is live.
        """
        view = self.current()
        try:
            return work(view)
        except IndexServerError:
            successor = self._successor_of_dropped(view)
            if successor is None:
                raise
        return work(successor)

    def current(self) -> View:
        """Return the view for a request, after a look at the alias if the last one is a second ago."""
        with self._schedule_lock:
            is_due = monotonic() >= self._next_check
            if is_due:
                self._next_check = monotonic() + CHECK_SECONDS
        if is_due:
            self._follow()
        return self._view

    def _follow(self) -> None:
        view = self._view
        try:
            live = live_generation(view.searcher.source.milvus, view.searcher.settings.alias)
        except ClvrError:
            return  # if Milvus does not answer, the request itself fails with the reason
        is_old = monotonic() - view.opened >= REFRESH_SECONDS
        if live is None or (live.name == view.name and not is_old):
            return
        if live.fingerprint == view.searcher.source.fingerprint:
            self._try_switch(view)
        elif self._loader is None or not self._loader.is_alive():
            self._loader = threading.Thread(
                target=self._try_switch, args=(view,), name=f"open {live.name}", daemon=True
            )
            self._loader.start()

    def _try_switch(self, old: View) -> None:
        """Replace a view; if that fails, log why, and keep it for a while."""
        try:
            self._switch(old)
        except Exception as error:
            with self._schedule_lock:
                self._next_check = monotonic() + RETRY_SECONDS
            reason = error.message if isinstance(error, ClvrError) else repr(error)
            logger.warning(f"the page stays with {old.name}: {reason}")

    def _switch(self, old: View) -> None:
        """Replace a view by that of the live generation, its model loaded. Raises the errors of Searcher."""
        with self._switch_lock:
            if self._view is not old:
                return  # another thread replaced it
            searcher = Searcher(old.searcher.settings, threads=old.searcher.threads, predecessor=old.searcher)
            _ = searcher.embedder, searcher.calibration, searcher.model_names
            self._view = View(searcher, self._model_lock)
        if self._view.name != old.name:
            logger.info(f"the page now searches {self._view.name}, no longer {old.name}")

    def _successor_of_dropped(self, view: View) -> View | None:
        """Return the view that replaced one whose generation is gone; None if the generation exists."""
        if self._view is not view:
            return self._view
        try:
            if view.searcher.source.milvus.call("has_collection", view.name):
                return None
        except ClvrError:
            return None
        try:
            self._switch(view)
        except BadInput as error:  # the state of the index is no mistake of the request
            raise IndexRefused(error.message, remedy=error.remedy) from error
        return self._view
