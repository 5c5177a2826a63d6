"""A limit of searches of each user: so many at once, and so many a minute."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

MAX_USERS = 10_000


class RateLimit:
    """A token bucket for each user, which holds what a minute allows."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens and the time of it

    def wait(self, user: str) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        with self._lock:
            now = self._clock()
            tokens, since = self._buckets.pop(user, (float(self.per_minute), now))
            tokens = min(self.per_minute, tokens + (now - since) * self.per_minute / 60)
            wait = 0.0 if tokens >= 1 else (1 - tokens) * 60 / self.per_minute
            self._buckets[user] = (tokens if wait else tokens - 1, now)
            while len(self._buckets) > MAX_USERS:
                self._buckets.popitem(last=False)
            return wait
