"""Crops by their URI: a reader serves one archive and refuses the URIs of others."""

from pathlib import Path

import pytest

from index.archive.manifest import crop_id_of
from index.archive.reader import ArchiveReader, crop_id_at, read_uri, reader_of
from infra.errors import BadInput
from infra.store import Store, open_store


@pytest.fixture
def archive(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "archive"))
    store.put("dt=2026-11-22/a.jpg", b"a")
    store.put("dt=2026-11-23/b.jpg", b"b")
    return store


def test_a_crop_is_read_by_its_uri(archive: Store) -> None:
    reader = ArchiveReader(archive)
    uri = archive.uri_of("dt=2026-11-22/a.jpg")
    assert reader.fetch(uri).data == b"a"
    assert reader.key_of(uri) == "dt=2026-11-22/a.jpg"
    head = reader.head(uri)
    assert head is not None and head.size == 1
    assert reader.head(archive.uri_of("none.jpg")) is None


def test_a_uri_of_another_archive_is_refused_instead_of_being_missing(archive: Store, tmp_path: Path) -> None:
    reader = ArchiveReader(archive)
    beside = f"{tmp_path}/archive-2/a.jpg"
    assert not reader.holds(beside)
    for read in (reader.key_of, reader.fetch, reader.head):
        with pytest.raises(BadInput, match=r"archive-2/a\.jpg is not below"):
            read(beside)


def test_the_deepest_common_folder_serves_images_of_several_folders(archive: Store) -> None:
    uris = [archive.uri_of("dt=2026-11-22/a.jpg"), archive.uri_of("dt=2026-11-23/b.jpg")]
    assert [reader_of(uris).fetch(uri).data for uri in uris] == [b"a", b"b"]
    with pytest.raises(BadInput, match="several buckets"):
        reader_of(["s3://one/a.jpg", "s3://two/b.jpg"])


def test_any_spelling_of_a_path_is_the_same_crop(archive: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(archive.uri).parent)
    assert read_uri("archive/dt=2026-11-22/a.jpg") == b"a"
    assert crop_id_at("archive/dt=2026-11-22/a.jpg") == crop_id_of(archive.uri_of("dt=2026-11-22/a.jpg"))
