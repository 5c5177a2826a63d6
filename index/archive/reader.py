"""Crops by the URI that manifests, shards and hits carry: the one way from a URI to a key to bytes."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Full, Queue

from index.archive.container_kind import Place, Span
from index.archive.containers import locate, place_of, read_span, spans_of
from index.archive.manifest import crop_id_of
from index.archive.members import split_member
from infra.errors import BadInput, ClvrError, ObjectChanged, ObjectMissing
from infra.store import ObjectBody, ObjectInfo, Store, open_store, split_uri

Fetched = ObjectBody | ClvrError

_SPANS_IN_FLIGHT = 4
_UNREAD = 64


@dataclass(frozen=True, slots=True)
class ArchiveReader:
    """Reads the crops below one root. It refuses a URI of another archive instead of not finding it.

    A crop is an object, or a member of a container (see `containers`).
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
        file, name = member
        place = place_of(file, etag)
        if place is None:
            place = locate(self.store, file, name)[1]
            if etag:
                raise _changed(place.etag, etag)
        (body,) = read_span(self.store, Span(file).add(0, place), [uri])
        if isinstance(body, ClvrError):
            raise body
        return body

    def fetch_many(self, uris: Sequence[str], *, in_flight: int = 64) -> Iterator[tuple[int, Fetched]]:
        """Yield (position in `uris`, object or error), in any order.

        At most `in_flight` requests and unread objects exist at any time; of containers, four requests.
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
        """Group the positions of crops that are members of containers, as their etags state, into reads."""
        wanted: list[tuple[int, str, Place]] = []
        for position, etag in enumerate(etags or ()):
            member = split_member(self.key_of(uris[position])) if etag else None
            place = place_of(member[0], etag) if member else None
            if place and member:
                wanted.append((position, member[0], place))
        return spans_of(wanted)

    def fetch_span(self, span: Span, uris: Sequence[str]) -> Iterator[Fetched]:
        """Yield the members of a span, read together, an error where one fails. uris: the whole list."""
        return read_span(self.store, span, uris)

    def head(self, uri: str) -> ObjectInfo | None:
        """Return etag, size and time of a crop, or None where it is gone. Raises BadInput, StoreError."""
        key = self.key_of(uri)
        member = split_member(key)
        if member is None:
            return self.store.head(key)
        try:
            file, place = locate(self.store, *member)
        except ObjectMissing:
            return None
        return replace(file, key=key, size=place.size, etag=place.etag)

    def _members(self, positions: Sequence[int], uris: Sequence[str]) -> Iterator[tuple[int, Fetched]]:
        wanted: list[tuple[int, str, Place]] = []
        for position in positions:
            file, name = split_member(self.key_of(uris[position])) or ("", "")
            try:
                wanted.append((position, file, locate(self.store, file, name)[1]))
            except ClvrError as error:
                yield position, error

        def read(span: Span) -> Iterator[tuple[int, Fetched]]:
            return zip(span.positions, self.fetch_span(span, uris), strict=True)

        yield from _in_threads(read, spans_of(wanted))


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


def _in_threads(
    read: Callable[[Span], Iterable[tuple[int, Fetched]]], spans: Sequence[Span]
) -> Iterator[tuple[int, Fetched]]:
    """Yield what some threads read of spans; few crops wait for the caller."""
    found: Queue[tuple[int, Fetched] | BaseException | None] = Queue(_UNREAD)
    stopped = threading.Event()
    waiting = iter(spans)
    lock = threading.Lock()

    def put(item: tuple[int, Fetched] | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(Full):
                found.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            while not stopped.is_set():
                with lock:
                    span = next(waiting, None)
                if span is None:
                    break
                for one in read(span):
                    put(one)
                    if stopped.is_set():
                        break
        except BaseException as error:  # the caller waits for the end of each thread
            put(error)
        put(None)

    working = min(_SPANS_IN_FLIGHT, len(spans))
    for number in range(working):
        threading.Thread(target=work, name=f"read-container-{number}", daemon=True).start()
    try:
        while working:
            one = found.get()
            if isinstance(one, BaseException):
                raise one
            if one is None:
                working -= 1
            else:
                yield one
    finally:
        stopped.set()


def _folder_of(uri: str) -> str:
    member = split_member(uri)
    return (member[0] if member else uri).rpartition("/")[0]


def _with_etag(body: ObjectBody, etag: str) -> ObjectBody:
    if etag and body.etag != etag:
        raise _changed(body.etag, etag)
    return body


def _changed(found: str, etag: str) -> ObjectChanged:
    return ObjectChanged(f"the etag is {found}; it was {etag} when the object was listed")
