"""Test lists of the re-identification datasets, and the text files that all releases consist of."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from clvr_model.datasets.labelled import NO_ATTRIBUTES, Attributes
from infra.errors import BadLabels, ObjectMissing

if TYPE_CHECKING:
    from infra.store import Store

MAX_FILE_BYTES: Final = 512 * 2**20
"""Largest label file that is read whole; the largest of a release, BoxCars116k's JSON, is a fifth of it."""


@dataclass(slots=True)
class TestList:
    """A test list: images with their vehicles, cameras and roles. An image may have both roles.

    dataset: the release's name. protocol: one of `index.evaluation.protocols.RULES`. roles: 'probe' or
    'gallery'; all empty if the protocol draws them.
    """

    protocol: str
    name: str
    uris: list[str] = field(default_factory=list)
    vehicle_ids: list[int] = field(default_factory=list)
    camera_ids: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    attributes: list[Attributes] = field(default_factory=list)
    dataset: str = ""

    def add(
        self, uri: str, vehicle: int, camera: str, role: str, attributes: Attributes = NO_ATTRIBUTES
    ) -> None:
        """Add an image in a role."""
        self.uris.append(uri)
        self.vehicle_ids.append(vehicle)
        self.camera_ids.append(camera)
        self.roles.append(role)
        self.attributes.append(attributes)


def bytes_of(store: "Store", name: str) -> bytes:
    """Return a label file. Raises BadLabels if it is missing or above MAX_FILE_BYTES."""
    info = store.head(name)
    if info is not None and info.size > MAX_FILE_BYTES:
        raise BadLabels(
            f"{store.uri_of(name)} has {info.size:,} bytes, more than the {MAX_FILE_BYTES:,} of a label file"
        )
    try:
        return store.get(name)
    except ObjectMissing:
        raise BadLabels(f"{store.uri_of(name)} is missing", remedy="Copy it from the release.") from None


def text_of(store: "Store", name: str) -> str:
    """Return a text file in UTF-8, or in GB18030, which includes GBK and GB2312.

    Raises BadLabels, with the line, for another encoding.
    """
    data = bytes_of(store, name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
    try:
        return data.decode("gb18030")
    except UnicodeDecodeError:
        raise BadLabels(f"{store.uri_of(name)}, line {line}: neither UTF-8 nor GB2312, GBK") from None


def lines_of(store: "Store", name: str) -> Iterator[tuple[str, str]]:
    """Yield (location, text) of each nonempty line. Raises BadLabels for a missing or undecodable file."""
    location = store.uri_of(name)
    for number, line in enumerate(text_of(store, name).splitlines(), start=1):
        if text := line.strip():
            yield f"{location}, line {number}", text


def first_line(store: "Store", name: str) -> str:
    """Return the first nonempty line of a file, or '' without one or without the file."""
    if store.head(name) is None:
        return ""
    return next((text for _, text in lines_of(store, name)), "")


def tracks_of(store: "Store", name: str) -> dict[str, str]:
    """Return image -> track of a list with one track a line, or nothing without the file.

    VeRi-776's and AI City's test_track.txt and train_track.txt: the names of a track's images, separated by
    spaces. VeRi's test_track_VeRi.txt has the track's name before them; otherwise it is the line's number.
    An image of two tracks is of the first, because a track only adds to what the other lists say.
    """
    tracks: dict[str, str] = {}
    if store.head(name) is None:
        return tracks
    for number, (_, text) in enumerate(lines_of(store, name), start=1):
        words = text.split()
        images = [word for word in words if word.lower().endswith(".jpg")] or [
            f"{word}.jpg" for word in words
        ]
        has_name = images[0] not in (words[0], f"{words[0]}.jpg")
        for image in images:
            tracks.setdefault(image, words[0] if has_name else str(number))
    return tracks
