"""Copies between stores: on one S3 server the bytes stay there; otherwise this process carries them."""

from pathlib import Path

import pytest

from infra.errors import ObjectMissing
from infra.servers import SeaweedFs
from infra.store import Store, open_store

DATA = bytes(range(256)) * 4096


@pytest.fixture(params=["local to local", "local to s3", "s3 to local", "s3 to s3"])
def pair(
    request: pytest.FixtureRequest, tmp_path: Path, seaweedfs: SeaweedFs, bucket: str
) -> tuple[Store, Store]:
    def opened(kind: str, name: str) -> Store:
        if kind == "local":
            (tmp_path / name).mkdir()
            return open_store(str(tmp_path / name))
        return open_store(f"{bucket}/{name}", seaweedfs.settings)

    source, _, target = request.param.split()
    return opened(source, "source"), opened(target, "target")


def test_a_copy_has_the_same_bytes(pair: tuple[Store, Store]) -> None:
    source, target = pair
    source.put("runs/a b.parquet", DATA)
    target.copy_from(source, "runs/a b.parquet", "in/b.parquet")
    assert target.get("in/b.parquet") == DATA


def test_a_missing_source_is_named(pair: tuple[Store, Store]) -> None:
    source, target = pair
    source.put("other", b"")
    with pytest.raises(ObjectMissing, match=source.uri_of("missing")):
        target.copy_from(source, "missing", "copy")


def test_a_copy_between_two_buckets_of_one_server_has_the_same_bytes(
    seaweedfs: SeaweedFs, bucket: str
) -> None:
    source = open_store(bucket, seaweedfs.settings)
    target = open_store(seaweedfs.create_bucket(bucket.removeprefix("s3://") + "-too"), seaweedfs.settings)
    source.put("a", DATA)
    target.copy_from(source, "a", "b/c")
    assert target.get("b/c") == DATA
