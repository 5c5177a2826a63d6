"""Crops by the URI that manifests, shards and hits carry: the one way from a URI to a key to bytes."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from index.archive.manifest import crop_id_of
from index.archive.members import split_member
from index.archive.tar_files import Place, Span, locate, place_of, read_span, spans_of
from infra.errors import BadInput, ClvrError, ObjectChanged, ObjectMissing
from infra.store import ObjectBody, ObjectInfo, Store, open_store, split_uri

Fetched = ObjectBody | ClvrError

_SPANS_IN_FLIGHT = 4


@dataclass(frozen=True, slots=True)
class ArchiveReader:
    """Reads the crops below one root. It refuses a URI of another archive instead of not finding it.

    A crop is an object, or a member of a tar file (see `tar_files`).
    """

    store: Store

    @property
    def uri(self) -> str:
        """The URI of the root."""
        return self.store.uri

    def holds(self, uri: str) -> bool:
        """Whether a URI is below the root; the crop itself may be gone."""
        return uri.startswith(self.store.uri_of(""))

    def key_of(self, uri: str) -> str:
        """Return the key of a crop, relative to the root. Raises BadInput for a URI of another archive."""
        if not self.holds(uri):
            raise BadInput(f"{uri} is not below {self.uri}", remedy="Name the archive that holds it.")
        return uri.removeprefix(self.store.uri_of(""))

    def fetch(self, uri: str, etag: str = "") -> ObjectBody:
        """Return the bytes of a crop and their etag.

        etag: that of the manifest, '' for any. Raises ObjectChanged for another one, BadInput, ObjectMissing,
        CorruptObject, StoreError.
        """
        key = self.key_of(uri)
        member = split_member(key)
        if member is None:
            return _with_etag(self.store.fetch(key), etag)
        tar, name = member
        place = place_of(etag)
        if place is None:
            place = locate(self.store, tar, name)[1]
            if etag:
                raise _changed(place.etag, etag)
        (body,) = read_span(self.store, Span(tar).add(0, place), [name])
        if isinstance(body, ClvrError):
            raise body
        return body

    def fetch_many(self, uris: Sequence[str], *, in_flight: int = 64) -> Iterator[tuple[int, Fetched]]:
        """Yield (position in `uris`, object or error), in any order.

        At most `in_flight` requests and unread objects exist at any time; of tar files, four requests.
        Raises BadInput.
        """
        keys = [self.key_of(uri) for uri in uris]
        members = [position for position, key in enumerate(keys) if split_member(key)]
        plain = [position for position, key in enumerate(keys) if not split_member(key)]
        for at, found in self.store.get_many([keys[position] for position in plain], in_flight=in_flight):
            yield plain[at], found
        if members:
            yield from self._members(members, uris)

    def spans(self, uris: Sequence[str], etags: Sequence[str] | None) -> list[Span]:
        """Group the positions of crops that are members of tar files, as their etags state, into requests."""
        wanted: list[tuple[int, str, Place]] = []
        for position, etag in enumerate(etags or ()):
            place = place_of(etag)
            member = split_member(self.key_of(uris[position])) if place else None
            if place and member:
                wanted.append((position, member[0], place))
        return spans_of(wanted)

    def fetch_span(self, span: Span, uris: Sequence[str]) -> list[Fetched]:
        """Return the members of a span by one request, an error where one fails."""
        names = [(split_member(uris[position]) or ("", ""))[1] for position in span.positions]
        try:
            return read_span(self.store, span, names)
        except ClvrError as error:
            return [error] * len(names)

    def head(self, uri: str) -> ObjectInfo | None:
        """Return etag, size and time of a crop, or None where it is gone. Raises BadInput, StoreError."""
        key = self.key_of(uri)
        member = split_member(key)
        if member is None:
            return self.store.head(key)
        try:
            tar, place = locate(self.store, *member)
        except ObjectMissing:
            return None
        return replace(tar, key=key, size=place.size, etag=place.etag)

    def _members(self, positions: Sequence[int], uris: Sequence[str]) -> Iterator[tuple[int, Fetched]]:
        wanted: list[tuple[int, str, Place]] = []
        for position in positions:
            tar, name = split_member(self.key_of(uris[position])) or ("", "")
            try:
                wanted.append((position, tar, locate(self.store, tar, name)[1]))
            except ClvrError as error:
                yield position, error
        spans = spans_of(wanted)
        with ThreadPoolExecutor(_SPANS_IN_FLIGHT, thread_name_prefix="read-tar") as pool:
            for first in range(0, len(spans), _SPANS_IN_FLIGHT):
                some = spans[first : first + _SPANS_IN_FLIGHT]
                for span, bodies in zip(
                    some, pool.map(lambda one: self.fetch_span(one, uris), some), strict=True
                ):
                    yield from zip(span.positions, bodies, strict=True)


def reader_of(uris: Sequence[str]) -> ArchiveReader:
    """Open the deepest folder that holds all the URIs. Raises BadInput where they share none."""
    folder = os.path.commonpath([_folder_of(uri) for uri in uris]).replace("s3:/", "s3://", 1)
    if folder in ("", "/", "s3://", "s3:"):
        raise BadInput("the images are in several buckets or disks", remedy="Put them below one folder.")
    return ArchiveReader(open_store(folder))


def open_uri(uri: str) -> tuple[ArchiveReader, str]:
    """Open the folder of one image, given by any path or URI, and return it with the image's full URI."""
    member = split_member(uri)
    root, key = split_uri(member[0] if member else uri)
    store = open_store(root)
    full_uri = store.uri_of(key)
    return ArchiveReader(store), f"{full_uri}#{member[1]}" if member else full_uri


def read_uri(uri: str) -> bytes:
    """Return the bytes behind any path or URI. Raises ObjectMissing, StoreError."""
    reader, full_uri = open_uri(uri)
    return reader.fetch(full_uri).data


def crop_id_at(uri: str) -> int:
    """Return the crop_id of the crop at any path or URI, whether it exists or not."""
    return crop_id_of(open_uri(uri)[1])


def _folder_of(uri: str) -> str:
    member = split_member(uri)
    return (member[0] if member else uri).rpartition("/")[0]


def _with_etag(body: ObjectBody, etag: str) -> ObjectBody:
    if etag and body.etag != etag:
        raise _changed(body.etag, etag)
    return body


def _changed(found: str, etag: str) -> ObjectChanged:
    return ObjectChanged(f"the etag is {found}; it was {etag} when the object was listed")
