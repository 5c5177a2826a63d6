"""Slow down guesses of the token: the wait of an address doubles with each wrong one."""

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from time import monotonic

FREE_ATTEMPTS = 5
MAX_WAIT = 60.0
FORGET_SECONDS = 900.0
MAX_ADDRESSES = 4096


class Throttle:
    """Wrong tokens by address, at most `MAX_ADDRESSES`; the one that was quiet for longest is forgotten."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()  # count and time of the last one

    def wait(self, address: str) -> float:
        """Return the seconds before the address may try a token again; 0 if it may now."""
        count, last = self._failures.get(network_of(address), (0, 0.0))
        if count < FREE_ATTEMPTS:
            return 0.0
        penalty = min(MAX_WAIT, 2.0 ** min(count - FREE_ATTEMPTS, 10))
        return max(0.0, last + penalty - self._clock())

    def failed(self, address: str) -> None:
        """Count a wrong token."""
        network, now = network_of(address), self._clock()
        count, last = self._failures.pop(network, (0, now))
        self._failures[network] = (1 if now - last > FORGET_SECONDS else count + 1, now)
        while len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        """Forget the wrong tokens of an address that has the right one."""
        self._failures.pop(network_of(address), None)


def network_of(address: str) -> str:
    """Return the address itself, or for IPv6 its /64 network, which one client may own as a whole."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or IPv6Address(int(parsed) >> 64 << 64))
