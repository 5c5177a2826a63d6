"""Crops in tar files: members by name and place, with and without an index, of hostile files too."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from index.archive.container_kind import Contents
from index.archive.key_choice import KeyChoice
from index.archive.key_pattern import KeyPattern
from index.archive.listing import list_crops
from index.archive.manifest import normalize_manifest
from index.archive.members import INDEX_SUFFIX, split_member
from index.archive.reader import ArchiveReader, open_uri, read_uri, reader_of
from index.archive.tar_files import TAR_FILES, index_document, place_of, range_of, scan_tar
from infra.errors import CorruptObject, ObjectChanged, ObjectMissing
from infra.store import ObjectBody, Store, open_store

LONG = "cam=1/" + "x" * 120 + ".jpg"
NAMES = ("cam=1/1.jpg", "./cam=1/2.jpg", "cam=2/3.JPG", LONG, "cam=2/Größe.jpg", "cam=1/1.json")
CONTENTS = {name.removeprefix("./"): name.removeprefix("./").encode() * 50 for name in NAMES}


def tar_bytes(names: tuple[str, ...] = NAMES, tar_format: int = tarfile.PAX_FORMAT, **kind: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as file:
        for name in names:
            member = tarfile.TarInfo(name)
            content = CONTENTS.get(name.removeprefix("./"), name.encode() * 50)
            member.size = len(content)
            for attribute, value in kind.items():
                setattr(member, attribute, value)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(params=["local", "s3"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        (tmp_path / "archive").mkdir()
        return open_store(str(tmp_path / "archive"))
    server = request.getfixturevalue("seaweedfs")
    return open_store(request.getfixturevalue("bucket"), server.settings)


def index_of(store: Store, key: str) -> Contents:
    info = store.head(key)
    assert info is not None
    return scan_tar(store, info)


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_listed_beside_objects_and_each_is_read_by_its_place(
    archive: Store, tar_format: int
) -> None:
    archive.put("dt=2026-11-22/0.tar", tar_bytes(tar_format=tar_format))
    archive.put("dt=2026-11-23/cam=1/9.jpg", b"plain")
    listing = list_crops(archive, pattern=KeyPattern("dt={date}/{*}.tar#cam={camera_id}/{*}.jpg"))
    manifest = normalize_manifest(listing.crops.read())
    uris, etags = (manifest[name].to_pylist() for name in ("uri", "etag"))
    keys = {f"dt=2026-11-22/0.tar#{name}" for name in CONTENTS if not name.endswith("json")}
    assert set(uris) == {archive.uri_of(key) for key in (*keys, "dt=2026-11-23/cam=1/9.jpg")}
    assert (listing.num_not_images, listing.containers.unindexed) == (1, 1)
    assert listing.containers.files == {"tar files": 1}
    assert listing.unmatched == 2  # the object, and .JPG
    reader = ArchiveReader(archive)
    for uri, etag, size in zip(uris, etags, manifest["size"].to_pylist(), strict=True):
        member = split_member(uri)
        expected = CONTENTS[member[1]] if member else b"plain"
        for found in (reader.fetch(uri, etag), reader.fetch(uri)):
            assert (found.data, found.etag, len(found.data)) == (expected, etag, size)
        head = reader.head(uri)
        assert head is not None and (head.etag, head.size) == (etag, size)
    bodies = {uris[at]: body for at, body in reader.fetch_many(uris)}
    assert {uri: body.data for uri, body in bodies.items() if isinstance(body, ObjectBody)} == {
        uri: CONTENTS[split_member(uri)[1]] if split_member(uri) else b"plain"  # type: ignore[index]
        for uri in uris
    }
    spans = reader.spans(uris, etags)
    assert len(spans) == 1 and len(spans[0].positions) == 5  # one request


def test_uris_of_members_open_their_folder(archive: Store) -> None:
    archive.put("dt=1/0.tar", tar_bytes())
    uri = archive.uri_of("dt=1/0.tar#cam=1/1.jpg")
    assert reader_of([uri, archive.uri_of("dt=1/0.tar#cam=2/3.JPG")]).uri == archive.uri_of("dt=1")
    if archive.local:
        assert read_uri(uri) == CONTENTS["cam=1/1.jpg"]
        assert open_uri(uri)[1] == uri


def test_what_is_not_there_or_not_the_same_any_more_is_an_error(archive: Store) -> None:
    archive.put("0.tar", tar_bytes())
    reader, uri = ArchiveReader(archive), archive.uri_of("0.tar#cam=1/1.jpg")
    etag = reader.fetch(uri).etag
    with pytest.raises(ObjectMissing):
        reader.fetch(archive.uri_of("0.tar#cam=1/8.jpg"))
    assert reader.head(archive.uri_of("0.tar#cam=1/8.jpg")) is None
    assert reader.head(archive.uri_of("1.tar#cam=1/8.jpg")) is None
    for other in (tar_bytes(NAMES[1:]), tar_bytes(NAMES[4:5]), b"", b"x" * 10_000):
        archive.put("0.tar", other)
        with pytest.raises(ObjectChanged):
            reader.fetch(uri, etag)
    changed = tar_bytes().replace(b"cam=1/1.jpg" * 3, b"cam=1/9.jpg" * 3)
    archive.put("0.tar", changed)
    with pytest.raises(ObjectChanged, match="MD5"):
        reader.fetch(uri, etag)
    archive.put("0.tar", tar_bytes(NAMES[1:]))
    with pytest.raises(ObjectMissing):
        reader.fetch(uri)
    other = archive.uri_of("0.tar#cam=1/2.jpg")
    place = place_of(reader.fetch(other).etag)
    file = archive.head("0.tar")
    assert place is not None and file is not None
    with pytest.raises(ObjectChanged, match="is not at byte"):
        reader.fetch(other, replace(place, offset=place.offset + 512).etag)
    for wrong in (replace(place, offset=place.offset + 512), replace(place, size=place.size - 1)):
        with pytest.raises(CorruptObject, match="is not at byte"):  # no index states such a place
            reader.fetch(other, replace(wrong, file_etag=file.etag, md5="").etag)


def test_an_index_saves_reading_the_file_until_the_file_is_newer(store: Store) -> None:
    store.put("a.tar", tar_bytes())
    index = index_of(store, "a.tar")
    store.put("a.tar" + INDEX_SUFFIX, index_document(index.members))
    listing = list_crops(store)
    assert (listing.containers.unindexed, listing.num_not_images, listing.crops.num_rows) == (0, 1, 5)
    for damaged in (b"", b"{", b'{"members":[["../x",512,1]]}', b'{"members":[["a.jpg",0,1]]}', b"[" * 99999):
        store.put("b.tar", tar_bytes(("1.jpg",)))
        store.put("b.tar" + INDEX_SUFFIX, damaged)
        assert list_crops(store).containers.unindexed == 1
    misleading = index_document({"2.jpg": index_of(store, "b.tar").members["1.jpg"]})
    store.put("b.tar" + INDEX_SUFFIX, misleading)
    info = store.head("b.tar")
    assert info is not None
    store.put("b.tar", tar_bytes(("1.jpg", "2.jpg")))  # newer than its index
    assert list_crops(store).crops.num_rows == 7
    store.put("b.tar" + INDEX_SUFFIX, misleading)  # an index that lies: the header tells
    with pytest.raises(CorruptObject, match="not at byte"):
        ArchiveReader(store).fetch(store.uri_of("b.tar#2.jpg"))


def test_odd_members_are_left_out_and_said(store: Store) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, kind in (
            ("../up.jpg", tarfile.REGTYPE),
            ("/root.jpg", tarfile.REGTYPE),
            ("link.jpg", tarfile.SYMTYPE),
            ("folder", tarfile.DIRTYPE),
            ("same.jpg", tarfile.REGTYPE),
            ("same.jpg", tarfile.REGTYPE),
            (".hidden/1.jpg", tarfile.REGTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../../etc/passwd"
            member.size = 3 if kind == tarfile.REGTYPE else 0
            file.addfile(member, io.BytesIO(f"{file.offset:3}"[-3:].encode()))
    store.put("a.tar", buffer.getvalue())
    store.put("x.tar#y.jpg", b"an object of such a name")
    listing = list_crops(store)
    assert listing.crops.read()["uri"].to_pylist() == [store.uri_of("a.tar#same.jpg")]
    assert dict(listing.skipped.counts) == {
        "a member's name that cannot be addressed": 2,
        "a link or a device in a tar file": 1,
        "an earlier member of the same name": 1,
        "hidden file or folder": 1,
        "a key like that of a crop in a container": 1,
    }
    last = index_of(store, "a.tar").members["same.jpg"]
    assert ArchiveReader(store).fetch(store.uri_of("a.tar#same.jpg")).etag == last.etag


@pytest.mark.parametrize("kept", [700, 1024, 3000, 5200])
def test_of_a_file_that_is_cut_short_the_whole_members_are_listed(store: Store, kept: int) -> None:
    names = tuple(f"{number}.jpg" for number in range(6))
    whole = tar_bytes(names)
    store.put("a.tar", whole[:kept])
    index = index_of(store, "a.tar")
    assert index.truncated
    assert all(place.end <= kept for place in index.members.values())
    # A header of 512 bytes, 250 of data, filled up to 512.
    assert len(index.members) == sum(1024 * number + 762 <= kept for number in range(6))


def test_a_damaged_header_is_no_end(store: Store) -> None:
    whole = bytearray(tar_bytes(tuple(f"{number}.jpg" for number in range(6))))
    whole[3 * 1024 + 5] ^= 1
    store.put("a.tar", bytes(whole))
    index = index_of(store, "a.tar")
    assert (index.truncated, list(index.members)) == (True, ["0.jpg", "1.jpg", "2.jpg"])
    listing = list_crops(store)
    assert "the rest of a file that is damaged or cut short" in listing.skipped.counts
    assert any("1 tar files" in note and "clvr pack --index" in note for note in listing.notes())


@pytest.mark.parametrize("data", [b"", b"no tar file" * 200, b"\x1f\x8b" + b"0" * 2000])
def test_other_files_named_tar_are_refused_by_name(store: Store, data: bytes) -> None:
    store.put("a.tar", data)
    with pytest.raises(CorruptObject, match="is not a tar file"):
        index_of(store, "a.tar")


def test_a_header_of_gigabytes_is_refused(store: Store) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 33
    store.put("a.tar", member.tobuf(tarfile.GNU_FORMAT) + b"0" * 4096)
    with pytest.raises(CorruptObject):
        index_of(store, "a.tar")


def test_globs_are_of_members_or_of_the_file(store: Store) -> None:
    store.put("day.tar", tar_bytes(("cam=1/1.jpg", "cam=2/2.jpg")))
    store.put("night.tar", tar_bytes(("cam=1/3.jpg",)))

    def listed(**globs: tuple[str, ...]) -> set[str]:
        uris = list_crops(store, choice=KeyChoice(**globs)).crops.read()["uri"].to_pylist()
        return {uri.rpartition("/")[2] for uri in uris}

    assert listed(exclude=("night.tar",)) == {"1.jpg", "2.jpg"}
    assert listed(include=("night.tar",)) == {"3.jpg"}
    assert listed(include=("*.tar#cam=1/*",)) == {"1.jpg", "3.jpg"}
    assert listed(exclude=("**cam=1/*",)) == {"2.jpg"}


def test_a_request_reads_neighbours_up_to_its_size(store: Store) -> None:
    store.put("a.tar", tar_bytes(tuple(f"{number:03}.jpg" for number in range(100))))
    members = index_of(store, "a.tar").members
    wanted = [(number, "a.tar", place) for number, place in enumerate(members.values())]
    assert len(TAR_FILES.spans(wanted)) == 1
    small = TAR_FILES.spans(wanted[::-1], max_bytes=10_240)
    assert sorted(position for span in small for position in span.positions) == list(range(100))
    assert all(end - start <= 10_240 for start, end in map(range_of, small))
    assert len(small) == 10
