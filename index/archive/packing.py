"""Pack the crops of an archive into tar files with indexes, folder by folder."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from index.archive.listing import is_image
from index.archive.manifest import crop_id_of
from index.archive.members import INDEX_SUFFIX, is_tar, split_member
from index.archive.tar_files import Place, index_document, open_tar, scan_tar
from infra.errors import BadInput, ClvrError, ObjectMissing
from infra.store import ObjectBody, ObjectInfo, Store, is_hidden

TAR_BYTES = 128 << 20
_NUMBER_DIGITS = 5


class Erased(Protocol):
    """Tells which crops were erased: `index.runs.tombstones.ErasedCrops`."""

    def is_erased(self, crop_ids: Any, /) -> Any:
        """int64 (n,) -> bool (n,)."""

    def is_erased_content(self, data: bytes, /) -> bool:
        """Whether a crop of these bytes was erased."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Counts of `clvr pack`: crops and bytes that were packed now, tar files and indexes that were written.

    packed_before: crops that earlier tar files have. erased: crops that were erased, and are left out.
    vanished: crops that were deleted between the listing and the reading.
    """

    crops: int = 0
    bytes: int = 0
    tars: int = 0
    indexes: int = 0
    packed_before: int = 0
    erased: int = 0
    vanished: int = 0

    def __add__(self, other: "Packed") -> "Packed":
        return Packed(
            self.crops + other.crops,
            self.bytes + other.bytes,
            self.tars + other.tars,
            self.indexes + other.indexes,
            self.packed_before + other.packed_before,
            self.erased + other.erased,
            self.vanished + other.vanished,
        )


def pack_folder(
    archive: Store, target: Store, folder: str, erased: Erased, *, tar_bytes: int = TAR_BYTES
) -> Packed:
    """Pack the images below a folder of an archive ('' for those right below its root) into the target.

    A tar file has up to `tar_bytes`, which are held in memory with the keys of the folder, and its members
    keep their keys below the folder. Crops that tar files of the target have already are left out, so a
    repetition and a later call pack the rest. The last tar file of the folder, if it is less than half full,
    is written again with new crops behind the others; those keep place and MD5, and so their etags.
    Raises BadInput for an image that is larger than a tar file may be, StoreError.
    """
    before, last, indexes = _packed_before(target, folder)
    images, packed_before = [], 0
    for info in _objects(archive, folder):
        if not is_image(info.key) or is_hidden(info.key) or split_member(info.key):
            continue
        if _name_in(folder, info.key) in before:
            packed_before += 1
        else:
            images.append(info)
    images.sort(key=lambda info: info.key)
    is_erased_mask = erased.is_erased(
        np.fromiter((crop_id_of(archive.uri_of(info.key)) for info in images), np.int64, len(images))
    )
    total = Packed(packed_before=packed_before, indexes=indexes, erased=int(is_erased_mask.sum()))
    images = [info for info, is_erased in zip(images, is_erased_mask.tolist(), strict=True) if not is_erased]
    number, begun = last.number + 1, b""
    if images and last.may_grow and last.size < tar_bytes // 2:
        number, begun = last.number, target.get(last.key)
    for group in _groups(images, tar_bytes, archive, len(begun)):
        counts, data = _tar_of(archive, folder, group, erased, begun)
        if counts.crops:
            key = _key_of(folder, number)
            target.put(key, data)
            written = target.head(key)
            if written is None:
                raise ObjectMissing(f"no object {target.uri_of(key)}", remedy="Another process deletes it.")
            # Read back: the index is of what the store holds.
            target.put(f"{key}{INDEX_SUFFIX}", index_document(scan_tar(target, written).members))
            number, begun = number + 1, b""
        total += counts
    return total


def write_indexes(store: Store, folder: str) -> Packed:
    """Write the index of each tar file below a folder that has none, or one that is older than the file.

    A file that is damaged or cut short gets none: a listing would no longer say so.
    """
    total = Packed()
    for info in _objects(store, folder):
        if not is_tar(info.key):
            continue
        index = open_tar(store, info)
        if index.bytes_read and not index.truncated:
            store.put(f"{info.key}{INDEX_SUFFIX}", index_document(index.members))
            total += Packed(indexes=1, packed_before=len(index.members))
    return total


@dataclass(frozen=True, slots=True)
class _LastTar:
    """The tar file of a folder with the highest number. may_grow: it is whole, and all members have MD5s."""

    number: int = -1
    key: str = ""
    size: int = 0
    may_grow: bool = False


def _packed_before(target: Store, folder: str) -> tuple[set[str], _LastTar, int]:
    """Return names of members and the last of the tar files right below a folder; complete their indexes."""
    names: set[str] = set()
    last = _LastTar()
    indexes = 0
    for info in target.level(folder).objects:
        if not isinstance(info, ObjectInfo) or not is_tar(info.key):
            continue
        stem = info.key.rpartition("/")[2].rpartition(".")[0]
        if not stem.isdecimal():
            continue
        index = open_tar(target, info)
        names.update(index.members)
        if int(stem) > last.number:
            has_md5s = all(isinstance(place, Place) and place.md5 for place in index.members.values())
            may_grow = has_md5s and not index.truncated
            last = _LastTar(int(stem), info.key, info.size, may_grow)
        if index.bytes_read and not index.truncated:  # a pack was killed before it wrote the index
            target.put(f"{info.key}{INDEX_SUFFIX}", index_document(index.members))
            indexes += 1
    return names, last, indexes


def _groups(
    images: list[ObjectInfo], tar_bytes: int, archive: Store, begun: int
) -> Iterator[list[ObjectInfo]]:
    """Cut images into those of one tar file each. begun: bytes that the first one has already."""
    group: list[ObjectInfo] = []
    size = begun
    for info in images:
        if info.size > tar_bytes:
            raise BadInput(
                f"{archive.uri_of(info.key)} has {info.size:,} bytes, and a tar file may have {tar_bytes:,}",
                remedy="Raise --tar-size.",
            )
        if size and size + info.size > tar_bytes:
            yield group
            group, size = [], 0
        group.append(info)
        size += info.size
    if group:
        yield group


def _tar_of(
    archive: Store, folder: str, images: list[ObjectInfo], erased: Erased, begun: bytes
) -> tuple[Packed, bytes]:
    """Return a tar file of images, behind the members of a begun one; equal images give equal bytes."""
    bodies: dict[int, bytes] = {}
    counts = Packed(tars=1, indexes=1)
    for position, found in archive.get_many([info.key for info in images]):
        if isinstance(found, ObjectBody):
            bodies[position] = found.data
        elif isinstance(found, ObjectMissing):
            counts += Packed(vanished=1)
        elif isinstance(found, ClvrError):
            raise found
    buffer = io.BytesIO(begun)
    with tarfile.open(fileobj=buffer, mode="a" if begun else "w", format=tarfile.PAX_FORMAT) as file:
        for position in sorted(bodies):
            if erased.is_erased_content(bodies[position]):
                counts += Packed(erased=1)
                continue
            info = images[position]
            member = tarfile.TarInfo(_name_in(folder, info.key))
            member.size = len(bodies[position])
            member.mtime = int(info.last_modified.timestamp())
            file.addfile(member, io.BytesIO(bodies[position]))
            counts += Packed(crops=1, bytes=member.size)
    if not counts.crops:
        counts = replace(counts, tars=0, indexes=0)
    return counts, buffer.getvalue()


def _key_of(folder: str, number: int) -> str:
    return f"{folder}/{number:0{_NUMBER_DIGITS}}.tar".removeprefix("/")


def _name_in(folder: str, key: str) -> str:
    return key[len(folder) + 1 :] if folder else key


def _objects(store: Store, folder: str) -> Iterator[ObjectInfo]:
    """Yield the objects below a folder; for '' those right below the root."""
    objects = store.list(folder) if folder else store.level().objects
    return (info for info in objects if isinstance(info, ObjectInfo))
