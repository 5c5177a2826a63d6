"""What a kind of container answers: which crops a file holds, and how they are read.

A further kind is one module with an object of these methods, its suffix in `members`, and its entry in
`containers`. Listing, reading, choice of keys, incremental runs and erasure know no kind.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from infra.errors import ClvrError
from infra.store import ObjectBody, ObjectInfo, Store

Body = ObjectBody | ClvrError
"""The bytes of a crop, or why they cannot be read."""


class Place(Protocol):
    """Where a crop is in a file of one etag."""

    @property
    def file_etag(self) -> str:
        """The etag of the file."""

    @property
    def etag(self) -> str:
        """The etag of the crop: that of the file with the place, all that a later read needs."""

    @property
    def size(self) -> int:
        """The bytes of the crop; -1 where only a read tells."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The members of a container, by name.

    columns: what the file itself states of its members, as columns (n) of MANIFEST_SCHEMA in their order; a
    null is unknown. skipped: (cause, name) of members that are left out. truncated: whether members are lost
    because the file is damaged or cut short. bytes_read: of a file that had to be read whole; else 0.
    """

    members: Mapping[str, Place]
    columns: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[tuple[str, str], ...] = ()
    truncated: bool = False
    bytes_read: int = 0


@dataclass(slots=True)
class Span:
    """Members of one file that are read together, and their positions in a caller's list."""

    file: str
    positions: list[int] = field(default_factory=list)
    places: list[Any] = field(default_factory=list)
    """Of the file's kind, in the order of the file."""

    def add(self, position: int, place: Place) -> "Span":
        """Add a member, and return the span."""
        self.positions.append(position)
        self.places.append(place)
        return self


class ContainerKind(Protocol):
    """Reads one kind of container."""

    noun: str
    """Of several files, for messages: 'tar files'."""

    images_by_suffix: bool
    """Whether only members whose names end as those of images are crops."""

    def contents(self, store: Store, file: ObjectInfo) -> Contents | None:
        """List a file; None for one that is of this kind but holds no crops.

        Raises CorruptObject for a file that is not of the kind, ObjectChanged, StoreError.
        """

    def place_of(self, etag: str) -> Place | None:
        """Read the etag of a member; None for another one."""

    def spans(self, wanted: Sequence[tuple[int, str, Any]]) -> list[Span]:
        """Group (position, file, place) of members into few reads."""

    def read(self, store: Store, span: Span, names: Sequence[str]) -> Iterator[Body]:
        """Yield the members of a span, of these names, in its order, in bounded memory.

        Raises ObjectChanged where the file is another one now, ObjectMissing, StoreError. A member that
        cannot be read is an error in its place.
        """
