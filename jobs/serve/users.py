"""Users and roles: one person with a token, or users whom a proxy signed in and names in a header.

The header counts only in requests from the proxy's own addresses; from anywhere else it is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Literal

from index.documents import user_name
from infra.errors import BadSetting
from infra.settings import Settings

Role = Literal["search", "judge", "administer"]
ROLES: tuple[Role, ...] = ("search", "judge", "administer")
EVERYONE = "*"
MAX_USER = 200


@dataclass(frozen=True, slots=True)
class User:
    """A user with the roles that they have: `search`, `judge` (work on cases), `administer` (the audit)."""

    name: str
    roles: frozenset[Role]


@dataclass(frozen=True, slots=True)
class Identity:
    """How a request gets its user.

    user_header: None for one person, who has all roles. members: users and groups of each role.
    """

    user_header: str | None = None
    groups_header: str | None = None
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    members: tuple[tuple[Role, frozenset[str]], ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> "Identity":
        """Return the identity of the settings. Raises BadSetting for an invalid network or header."""
        if settings.user_header is None:
            return cls()
        headers = (settings.user_header, settings.groups_header)
        for header in headers:
            if header is not None and not header.replace("-", "").isalnum():
                raise BadSetting(f"{header!r} is no name of a header", remedy="Try X-Forwarded-Email.")
        try:
            proxies = tuple(ip_network(text, strict=False) for text in _names(settings.proxies))
        except ValueError as error:
            raise BadSetting(
                f"proxies: {error}", remedy="Give addresses such as 10.0.0.7 or 10.0.0.0/24."
            ) from error
        members: tuple[tuple[Role, frozenset[str]], ...] = (
            ("search", _names(settings.searchers)),
            ("judge", _names(settings.judges)),
            ("administer", _names(settings.administrators)),
        )
        return cls(
            settings.user_header.lower(),
            settings.groups_header.lower() if settings.groups_header else None,
            proxies,
            members,
        )

    @property
    def from_proxy(self) -> bool:
        """Whether a proxy names the users."""
        return self.user_header is not None

    def user_of(self, headers: Mapping[str, str], address: str) -> User | str:
        """Return the user of a request from an address, or why it has none."""
        if self.user_header is None:
            return User(user_name(), frozenset(ROLES))
        if not self.is_proxy(address):
            return "this server takes requests from its proxy only"
        # Headers are bytes; proxies send names as UTF-8.
        name = headers.get(self.user_header, "").encode("latin-1").decode("utf-8", "replace").strip()
        if not name or len(name) > MAX_USER or not name.isprintable():
            return f"the proxy sent no user in {self.user_header}"
        groups = headers.get(self.groups_header, "") if self.groups_header else ""
        names = {name, *_names(groups.encode("latin-1").decode("utf-8", "replace"))}
        roles = {role for role, members in self.members if EVERYONE in members or names & members}
        return User(name, frozenset(roles))

    def is_proxy(self, address: str) -> bool:
        """Whether an address is one of the proxy's."""
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network for network in self.proxies)


def _names(text: str) -> frozenset[str]:
    return frozenset(filter(None, (name.strip() for name in text.split(","))))
