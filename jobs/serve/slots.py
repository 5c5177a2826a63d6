"""A bounded number of workers for costly work, and a bounded queue before them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from infra.errors import Locked

DECODES = 2
"""Images that are decoded at the same time: each may take 640 MiB (`clvr_model.image_headers`)."""

WAITING_DECODES = 16


class Slots:
    """At most `active` threads do the work and `waiting` threads wait for it; others are refused."""

    def __init__(self, active: int, waiting: int) -> None:
        self._admitted = threading.BoundedSemaphore(active + waiting)
        self._active = threading.BoundedSemaphore(active)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Hold a slot, after a wait if all are in use. Raises Locked if too many threads wait already."""
        if not self._admitted.acquire(blocking=False):
            raise Locked(
                "the page decodes many other images now", remedy="repeat the search in a few seconds"
            )
        try:
            with self._active:
                yield
        finally:
            self._admitted.release()


decode_slots = Slots(DECODES, WAITING_DECODES)
"""Those of this process."""
