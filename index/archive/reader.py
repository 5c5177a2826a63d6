"""Crops by the URI that manifests, shards and hits carry: the one way from a URI to a key to bytes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from index.archive.manifest import crop_id_of
from infra.errors import BadInput
from infra.store import ObjectBody, ObjectInfo, Store, open_store, split_uri


@dataclass(frozen=True, slots=True)
class ArchiveReader:
    """Reads the crops below one root. It refuses a URI of another archive instead of not finding it."""

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

    def fetch(self, uri: str) -> ObjectBody:
        """Return the bytes of a crop and their etag. Raises BadInput, ObjectMissing, StoreError."""
        return self.store.fetch(self.key_of(uri))

    def head(self, uri: str) -> ObjectInfo | None:
        """Return etag, size and time of a crop, or None where it is gone. Raises BadInput, StoreError."""
        return self.store.head(self.key_of(uri))


def reader_of(uris: Sequence[str]) -> ArchiveReader:
    """Open the deepest folder that holds all the URIs. Raises BadInput where they share none."""
    folder = os.path.commonpath([uri.rpartition("/")[0] for uri in uris]).replace("s3:/", "s3://", 1)
    if folder in ("", "/", "s3://", "s3:"):
        raise BadInput("the images are in several buckets or disks", remedy="Put them below one folder.")
    return ArchiveReader(open_store(folder))


def open_uri(uri: str) -> tuple[ArchiveReader, str]:
    """Open the folder of one image, given by any path or URI, and return it with the image's full URI."""
    root, key = split_uri(uri)
    store = open_store(root)
    return ArchiveReader(store), store.uri_of(key)


def read_uri(uri: str) -> bytes:
    """Return the bytes behind any path or URI. Raises ObjectMissing, StoreError."""
    reader, full_uri = open_uri(uri)
    return reader.fetch(full_uri).data


def crop_id_at(uri: str) -> int:
    """Return the crop_id of the crop at any path or URI, whether it exists or not."""
    root, key = split_uri(uri)
    return crop_id_of(open_store(root).uri_of(key))
