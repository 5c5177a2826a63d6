"""Crops in tar files, as those of WebDataset: one request reads hundreds of crops.

A member's key is that of the tar file, '#' and its name: 'dt=2026-11-22/00012.tar#cam=004/17.jpg'. Its etag
has all that a later read needs, 'md5:<MD5 of its bytes>@<offset>+<size>'; so members that keep their place
stay the same crops when others are appended to the file. An index beside the file, NAME.tar.index.json, saves
a listing from reading the file; without one, and with one that is older than the file, the file is read. An
index is a hint: a read checks the header that precedes the member, and its MD5.

With an index without MD5s, of others or of an earlier release, and for members of more than 64 MiB, the etag
of the file takes the place of the MD5.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from index.archive.container_kind import Body, Contents, Span
from index.archive.members import INDEX_SUFFIX, member_key
from infra.errors import CorruptObject, ObjectChanged
from infra.store import ObjectBody, ObjectInfo, Store, is_usable_key

HEADER_BYTES = tarfile.BLOCKSIZE

READ_BYTES = 8 << 20
"""Bytes of one request that reads members which follow each other: 700 crops of 11 KB."""

_GAP_BYTES = 64 << 10  # that is read rather than asked around
_SCAN_BYTES = 4 << 20
_MAX_HEADER_BYTES = 1 << 20  # of one extended header, whose length the file states
_PLACE = re.compile(r"(.*)@(\d{1,18})\+(\d{1,12})", re.DOTALL)
_BY_MD5 = "md5:"
_MD5 = re.compile(r"[0-9a-f]{32}")
_MAX_DIGESTED = 64 << 20
_MAX_INDEX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a member are, and their MD5, '' if it is not known.

    file_etag: of the file, '' for any that has these bytes there. Offsets are of the data, not its header.
    """

    file_etag: str
    offset: int
    size: int
    md5: str = ""

    @property
    def etag(self) -> str:
        """The etag of the member."""
        content = f"{_BY_MD5}{self.md5}" if self.md5 else self.file_etag
        return f"{content}@{self.offset}+{self.size}"

    @property
    def end(self) -> int:
        """The offset behind the data."""
        return self.offset + self.size


def place_of(etag: str) -> Place | None:
    """Read the etag of a member; None for another one."""
    parts = _PLACE.fullmatch(etag)
    if parts is None:
        return None
    offset, size = int(parts[2]), int(parts[3])
    if parts[1].startswith(_BY_MD5):
        return Place("", offset, size, parts[1].removeprefix(_BY_MD5))
    return Place(parts[1], offset, size)


def open_tar(store: Store, tar: ObjectInfo) -> Contents:
    """Return the members of a tar file: from the index beside it, or from its headers.

    Raises ObjectChanged, StoreError, and CorruptObject for a file that is no tar file.
    """
    return _stated_index(store, tar) or replace(scan_tar(store, tar), bytes_read=tar.size)


def scan_tar(store: Store, tar: ObjectInfo) -> Contents:
    """Return the members of a tar file from its headers, which takes as many bytes as the file has.

    Only regular files are members; of a repeated name the last one counts.
    """
    members: dict[str, Place] = {}
    skipped: list[tuple[str, str]] = []
    truncated = False
    blocks = _Blocks(store, tar)
    try:
        for member in _headers(blocks):
            name = member.name.removeprefix("./")
            if member.issparse() or not member.isreg():
                if not member.isdir():
                    skipped.append(("a link or a device in a tar file", name))
            elif not is_usable_key(name):
                skipped.append(("a member's name that cannot be addressed", name))
            elif member.offset_data + member.size > tar.size:
                truncated = True
            else:
                if name in members:
                    skipped.append(("an earlier member of the same name", name))
                md5 = blocks.md5_of(member.offset_data, member.size)
                members[name] = Place(tar.etag, member.offset_data, member.size, md5)
    except _NoEnd:
        truncated = True
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        if not members and not skipped:
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            raise CorruptObject(
                f"{store.uri_of(tar.key)} is not a tar file: {reason}",
                remedy="Write it again, or leave it out by --exclude.",
            ) from error
        truncated = True
    return Contents(members, skipped=tuple(skipped), truncated=truncated)


def index_document(members: Mapping[str, Any]) -> bytes:
    """Return the index that is written beside a tar file: name, offset, size and MD5 of each member."""
    rows = [[name, place.offset, place.size, place.md5] for name, place in members.items()]
    return json.dumps({"members": rows}, separators=(",", ":")).encode()


class TarFiles:
    """The kind of tar files, see `ContainerKind`."""

    noun = "tar files"
    images_by_suffix = True

    def contents(self, store: Store, file: ObjectInfo) -> Contents:
        """Return the members: `open_tar`."""
        return open_tar(store, file)

    def place_of(self, etag: str) -> Place | None:
        """Read the etag of a member; None for another one."""
        return place_of(etag)

    def spans(self, wanted: Sequence[tuple[int, str, Place]], max_bytes: int = READ_BYTES) -> list[Span]:
        """Group members into requests of up to `max_bytes`, by file and offset."""
        spans: list[Span] = []
        start = end = 0
        for position, tar, place in sorted(wanted, key=lambda one: (one[1], one[2].file_etag, one[2].offset)):
            last = spans[-1] if spans else None
            if (
                last is None
                or last.file != tar
                or last.places[0].file_etag != place.file_etag
                or place.offset - HEADER_BYTES > end + _GAP_BYTES
                or place.end - start > max_bytes
            ):
                spans.append(last := Span(tar))
                start = end = place.offset - HEADER_BYTES
            last.add(position, place)
            end = max(end, place.end)
        return spans

    def read(self, store: Store, span: Span, names: Sequence[str]) -> Iterator[Body]:
        """Read the members of a span by one request.

        A member whose header is not where it should be is a CorruptObject in its place, or an ObjectChanged
        where the file may be another one; so is one of other bytes.
        """
        start, end = range_of(span)
        data = memoryview(store.fetch_range(span.file, start, end, etag=span.places[0].file_etag))
        for place, name in zip(span.places, names, strict=True):
            first = place.offset - start
            header, content = data[first - HEADER_BYTES : first], bytes(data[first : first + place.size])
            uri = store.uri_of(member_key(span.file, name))
            if len(content) != place.size or not _is_header_of(bytes(header), name, place.size):
                problem = f"{uri} is not at byte {place.offset:,} of its tar file"
                if not place.file_etag:
                    yield ObjectChanged(f"{problem} any more")
                    continue
                yield CorruptObject(
                    problem,
                    remedy=f"Remove {span.file}{INDEX_SUFFIX}: without it the file itself is listed.",
                )
            elif place.md5 and hashlib.md5(content, usedforsecurity=False).hexdigest() != place.md5:
                yield ObjectChanged(f"{uri} does not have the MD5 that it had when it was listed")
            else:
                yield ObjectBody(content, place.etag)


TAR_FILES = TarFiles()


def range_of(span: Span) -> tuple[int, int]:
    """Return the first byte of a span, that of the first header, and the one behind its last member."""
    return span.places[0].offset - HEADER_BYTES, max(place.end for place in span.places)


class _NoEnd(Exception):
    """A tar file ends without the block of zeros that says so."""


class _Blocks(io.RawIOBase):
    """A tar file as a seekable file, read in blocks of which the last one is kept."""

    def __init__(self, store: Store, tar: ObjectInfo) -> None:
        self.store, self.tar = store, tar
        self.position = self.first = 0
        self.block = b""

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.tar.size}[whence]
        self.position = start + offset
        return self.position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        parts, missing = [], min(size, max(0, self.tar.size - self.position))
        while missing:
            part = self._at(self.position)[:missing]
            if not part:
                break
            parts.append(part)
            self.position += len(part)
            missing -= len(part)
        return b"".join(parts)

    def md5_of(self, offset: int, size: int) -> str:
        """Return the MD5 (hex) of some bytes; '' of too many."""
        if size > _MAX_DIGESTED:
            return ""
        digest, end = hashlib.md5(usedforsecurity=False), offset + size
        while offset < end:
            part = self._at(offset)[: end - offset]
            if not part:
                return ""
            digest.update(part)
            offset += len(part)
        return digest.hexdigest()

    def _at(self, position: int) -> bytes:
        if not self.first <= position < self.first + len(self.block):
            end = min(position + _SCAN_BYTES, self.tar.size)
            self.first = position
            self.block = self.store.fetch_range(self.tar.key, position, end, etag=self.tar.etag)
        return self.block[position - self.first :]


def _headers(blocks: _Blocks) -> Iterator[tarfile.TarInfo]:
    # "r:" refuses compressed files, in which no member has an offset.
    with tarfile.open(fileobj=blocks, mode="r:") as file:
        while (member := file.next()) is not None:
            vars(file)["members"].clear()  # tarfile keeps all of them
            yield member
            if member.offset_data + member.size > blocks.tar.size:
                return
        # tarfile takes any damaged header but the first for the end.
        blocks.seek(file.offset)
        if blocks.read(HEADER_BYTES) != bytes(HEADER_BYTES):
            raise _NoEnd


def _is_header_of(header: bytes, name: str, size: int) -> bool:
    """Whether 512 bytes are the header of a file of this size, and of this name if they can hold it."""
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    if not found.isreg():
        return False
    stated = found.name.removeprefix("./")
    # A long name, or one outside of ASCII, is in an extended header before this one, and so is a large size.
    return (stated == name or len(name.encode()) > tarfile.LENGTH_NAME or not name.isascii()) and (
        found.size in (size, 0)
    )


def _stated_index(store: Store, tar: ObjectInfo) -> Contents | None:
    """Read the index beside a tar file; None without a usable one."""
    key = f"{tar.key}{INDEX_SUFFIX}"
    info = store.head(key)
    if info is None or info.last_modified < tar.last_modified:
        return None
    if info.size > _MAX_INDEX_BYTES:
        return None
    members = {}
    try:
        for name, offset, size, *md5 in json.loads(store.get(key))["members"]:
            place = Place(tar.etag, int(offset), int(size), md5[0] if md5 else "")
            if not is_usable_key(name) or offset < HEADER_BYTES or size < 0 or place.end > tar.size:
                return None
            if place.md5 and not _MD5.fullmatch(place.md5):
                return None
            members[name] = place
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return Contents(members)
