"""Real servers for the whole session, and finished runs; tests of a server are marked `integration`."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from index.archive.manifest import crop_id_of
from index.documents import utc_now
from index.generations.receipt import Receipt, receipt_key
from index.runs import tombstones
from index.runs.run import Run
from index.runs.shards import shard_table
from index.schema import MANIFEST_SCHEMA, QUARANTINE_SCHEMA
from infra.errors import AccountingError
from infra.servers import MilvusServer, SeaweedFs
from infra.store import Store, open_store

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

# Before any import of Ray: tests report no usage.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

_SERVER_FIXTURES = {"seaweedfs", "bucket", "milvus_server", "ray_cluster"}


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        uses_server = bool(_SERVER_FIXTURES.intersection(getattr(item, "fixturenames", ())))
        if uses_server:
            item.add_marker(pytest.mark.integration)
        # Under `-n 2 --dist loadgroup` one process has all servers; the tests of a file share its fixtures.
        is_integration = uses_server or item.get_closest_marker("integration")
        group = "servers" if is_integration else "/".join(item.path.parts[-3:])
        item.add_marker(pytest.mark.xdist_group(group))


def _remove_old_folders() -> None:
    """Remove the folders of killed sessions; their servers ended with them."""
    for folder in Path(tempfile.gettempdir()).glob("clvr-servers-*-*"):
        if not Path(f"/proc/{folder.name.split('-')[2]}").exists():
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    # Folders of pytest have paths too long for sockets of SeaweedFS, and pytest keeps the last three.
    _remove_old_folders()
    folder = Path(tempfile.mkdtemp(prefix=f"clvr-servers-{os.getpid()}-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty local store."""
    (tmp_path / "store").mkdir()
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def hide() -> Callable[..., str]:
    """Write the tombstones and the receipt of an erasure, as far as `forget` gets before it deletes rows."""

    def write(store: Store, crop_ids: Sequence[int], contents: Sequence[bytes | None] = ()) -> str:
        ids = np.asarray(crop_ids, np.int64)
        erasure_id = tombstones.new_erasure_id()
        tombstones.write_tombstones(store, erasure_id, ids, contents or [None] * len(ids))
        receipt = Receipt(erasure_id, "done", {}, "a test", "a@b", utc_now(), len(ids), 0, {}, ())
        store.create(receipt_key(erasure_id), receipt.to_json())
        return erasure_id

    return write


@pytest.fixture(scope="session")
def seaweedfs(server_folder: Path) -> Iterator[SeaweedFs]:
    """A real S3 server on the loopback. `open_store(uri, seaweedfs.settings)` reaches it."""
    with SeaweedFs.start(server_folder / "seaweedfs") as server:
        yield server


@pytest.fixture
def bucket(seaweedfs: SeaweedFs) -> str:
    """The URI of an empty bucket for one test."""
    return seaweedfs.create_bucket(f"test-{secrets.token_hex(6)}")


@pytest.fixture(scope="session")
def milvus_server(server_folder: Path, seaweedfs: SeaweedFs) -> Iterator[MilvusServer]:
    """A real Milvus 2.3.5; bulk import reads keys of the bucket `milvus_server.bucket` of `seaweedfs`."""
    with MilvusServer.start(server_folder / "milvus", storage=seaweedfs) as server:
        yield server


@pytest.fixture(scope="session")
def ray_cluster() -> "Iterator[Cluster]":
    """A Ray cluster of two nodes on this machine; connect with `ray.init(address=ray_cluster.address)`.

    Each node claims 4 CPUs on any machine, because Ray Data never finishes when its actors leave no CPU for
    its readers. The second node offers one unit of the resource `second`.
    """
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 4, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(wait=True, resources={"second": 1}, **node)
        yield cluster
    finally:
        cluster.shutdown()


def _look_alikes(numbers: NDArray[np.int64], seed: int = 0) -> NDArray[np.float32]:
    """Return vectors (n, 1024) of crops in groups of ten: an index needs neighbours."""
    vectors = [
        np.random.default_rng((seed, number // 10)).normal(size=1024)
        + 0.3 * np.random.default_rng((seed, number // 10, number)).normal(size=1024)
        for number in numbers.tolist()
    ]
    return np.asarray(vectors, np.float32)


@pytest.fixture(scope="session")
def look_alikes() -> Callable[..., NDArray[np.float32]]:
    """Return `look_alikes(numbers, seed)`: vectors in groups of ten, which depend on the number alone."""
    return _look_alikes


@pytest.fixture(scope="session")
def make_finished_run() -> Callable[..., Run]:
    """Make a finished run of crops of some numbers: `make(store, run_id, range(300))`.

    `look` gives the vectors of numbers; `attributes` adds COLORS by turns; any other name is a column of the
    manifest. A crop's number is its `size` as well, so two runs can agree about how it looks.
    """

    def make(
        store: Store,
        run_id: str,
        numbers: Sequence[int],
        *,
        archive: str = "s3://archive",
        fingerprint: str = "5eed" * 16,
        model: str = "s3://models/m",
        rows_per_shard: int = 100_000,
        look: Callable[[NDArray[np.int64]], NDArray[np.float32]] = _look_alikes,
        attributes: bool = False,
        **columns: list[Any],
    ) -> Run:
        uris = columns.pop("uri", [f"{archive}/{number:06d}.jpg" for number in numbers])
        manifest = {
            "crop_id": [crop_id_of(uri) for uri in uris],
            "uri": uris,
            "etag": [f"{number:x}" for number in numbers],
            "size": list(numbers),
            "last_modified": [0] * len(numbers),
            "camera_id": [""] * len(numbers),
            "captured_at": [-1] * len(numbers),
            "track_id": [""] * len(numbers),
            "vehicle_id": [None] * len(numbers),
            "model_id": [None] * len(numbers),
        }
        run = Run.create(
            store,
            run_id,
            manifest=pa.table(manifest | columns, schema=MANIFEST_SCHEMA),
            archive=archive,
            fingerprint=fingerprint,
            model=model,
            settings={},
            rows_per_part=rows_per_shard,
            rows_per_shard=rows_per_shard,
        )
        for part in run.pending_parts():
            crops = run.part_manifest(part)
            of_crops = crops["size"].to_numpy()
            models = (of_crops % 7).astype(np.int32)
            sure = np.full(len(of_crops), 0.5, np.float32)
            shard = shard_table(
                crops, look(of_crops), models, sure, _attributes(of_crops) if attributes else None
            )
            run.write_part(part, shard, QUARANTINE_SCHEMA.empty_table())
        run.finish()
        return run

    return make


COLORS = ("red", "", 'si"lver', "\\", '" or crop_id >= 0 or color == "')


def _attributes(numbers: NDArray[np.int64]) -> dict[str, tuple[NDArray[np.str_], NDArray[np.float32]]]:
    return {"color": (np.array(COLORS)[numbers % len(COLORS)], (numbers % 10 / 10).astype(np.float32))}


def _flips(data: bytes, tries: int, tail: int = 6000) -> Iterator[bytes]:
    """Yield copies with one altered bit: some anywhere, and as many near the end, where footers are."""
    for first in (0, max(0, 8 * (len(data) - tail))):
        step = max(1, (8 * len(data) - first) // tries) | 1  # odd, so that all bits of a byte get their turn
        for bit in range(first, 8 * len(data), step):
            altered = bytearray(data)
            altered[bit // 8] ^= 1 << bit % 8
            yield bytes(altered)


@pytest.fixture(scope="session")
def assert_flips_are_noticed() -> Callable[..., None]:
    """Alter single bits of an object: `use` must then name it in an AccountingError, or answer as before."""

    def check(store: Store, key: str, use: Callable[[], Any], *, tries: int = 60) -> None:
        expected, data = use(), store.get(key)
        noticed = 0
        for altered in _flips(data, tries):
            store.put(key, altered)
            try:
                assert use() == expected
            except AccountingError as error:
                assert key.rpartition("/")[2] in error.message
                noticed += 1
        store.put(key, data)
        assert use() == expected
        assert noticed > tries / 2

    return check
