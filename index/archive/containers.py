"""Crops in containers, of whatever kind: from a key to the kind, and from wanted crops to reads."""

import threading
from collections.abc import Iterator, Sequence

from cachetools import LRUCache

from index.archive.container_kind import Body, ContainerKind, Contents, Place, Span
from index.archive.members import (
    PARQUET_SUFFIX,
    TAR_SUFFIX,
    container_suffix,
    member_key,
    split_member,
)
from index.archive.parquet_files import PARQUET_FILES
from index.archive.tar_files import TAR_FILES
from infra.errors import ClvrError, ObjectMissing
from infra.store import ObjectInfo, Store

KINDS: dict[str, ContainerKind] = {TAR_SUFFIX: TAR_FILES, PARQUET_SUFFIX: PARQUET_FILES}
"""The kind of the files whose names end in a suffix."""

_kept_contents: LRUCache[tuple[str, str], Contents | None] = LRUCache(16)
"""Contents of files of which single crops were read, by URI and etag: pages show several of one."""
_lock = threading.Lock()


def kind_of(file: str) -> ContainerKind:
    """Return the kind of a container, by its key."""
    return KINDS[container_suffix(file)]


def place_of(file: str, etag: str) -> Place | None:
    """Read the etag of a member of a file; None for another one."""
    return kind_of(file).place_of(etag)


def locate(store: Store, file: str, name: str) -> tuple[ObjectInfo, Place]:
    """Return the present description of a container, and the place of a member. Raises ObjectMissing."""
    info = store.head(file)
    place = None
    if info is not None:
        kept = (store.uri_of(file), info.etag)
        with _lock:
            known, contents = kept in _kept_contents, _kept_contents.get(kept)
        if not known:
            contents = kind_of(file).contents(store, info)
            with _lock:
                _kept_contents[kept] = contents
        place = contents.members.get(name) if contents else None
    if info is None or place is None:
        raise ObjectMissing(f"no object {store.uri_of(member_key(file, name))}", remedy="List the file.")
    return info, place


def spans_of(wanted: Sequence[tuple[int, str, Place]]) -> list[Span]:
    """Group (position, file, place) of members into few reads, kind by kind."""
    by_suffix: dict[str, list[tuple[int, str, Place]]] = {}
    for one in wanted:
        by_suffix.setdefault(container_suffix(one[1]), []).append(one)
    return [span for suffix, some in by_suffix.items() for span in KINDS[suffix].spans(some)]


def read_span(store: Store, span: Span, uris: Sequence[str]) -> Iterator[Body]:
    """Yield the members of a span, an error where one fails. uris: of the caller's whole list."""
    names = [(split_member(uris[position]) or ("", ""))[1] for position in span.positions]
    num_read = 0
    try:
        for body in kind_of(span.file).read(store, span, names):
            num_read += 1
            yield body
    except ClvrError as error:
        for _ in range(len(names) - num_read):
            yield error
