"""Test lists of the re-identification datasets: their probes and gallery images."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.errors import BadLabels, ObjectMissing

if TYPE_CHECKING:
    from infra.store import Store


@dataclass(slots=True)
class TestList:
    """A test list: images with their vehicles, cameras and roles. An image may have both roles."""

    protocol: str
    name: str
    uris: list[str] = field(default_factory=list)
    vehicle_ids: list[int] = field(default_factory=list)
    camera_ids: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)  # 'probe' or 'gallery'

    def add(self, uri: str, vehicle: int, camera: str, role: str) -> None:
        """Add an image in a role."""
        self.uris.append(uri)
        self.vehicle_ids.append(vehicle)
        self.camera_ids.append(camera)
        self.roles.append(role)


def lines_of(store: "Store", name: str) -> Iterator[tuple[str, str]]:
    """Yield (location, text) of each nonempty line. Raises BadLabels for a missing or non-UTF-8 file."""
    try:
        text = store.get(name).decode("utf-8-sig")
    except ObjectMissing:
        raise BadLabels(f"{store.uri_of(name)} is missing", remedy="Copy it from the release.") from None
    except UnicodeDecodeError:
        raise BadLabels(f"{store.uri_of(name)}: not UTF-8") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{store.uri_of(name)}, line {number}", line.strip()
