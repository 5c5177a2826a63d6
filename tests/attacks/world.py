"""A small archive, its runs and generations in several states; each try starts from a copy of one state.

bare      labels and checkpoint only
embedded  runs r1 (all crops) and r2 (--since-run r1: new, changed and vanished crops)
night     run r1, live on Milvus Lite; the archive has changed since
live      both runs; a generation of r1 is live on Milvus Lite
four      and three more generations of r1, the newest but one of which is live
full      as `live`, after a calibration, a sweep, an erasure and a reindex run: every kind of object
purged    and after another erasure with its purge
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from facts import Facts, features_of, read_store
from forks import ATTACKS, SITE, Command, ForkServer

from clvr_model.checkpoint import Card, save_checkpoint
from clvr_model.network import Architecture, Clvr
from clvr_model.synthetic.archive import generate, write_labels
from clvr_model.synthetic.trips import ArchiveSpec
from infra.servers import MilvusServer, SeaweedFs
from infra.store import open_store

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

ROOT = ATTACKS.parents[1]
SPEC = ArchiveSpec(
    seed=3, models=4, vehicles_per_model=8, sightings_per_vehicle=10, cameras=6, spoiled_share=0.015
)
KEYS = "dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg"
ALIAS = "cars"
NODE = {"num_cpus": 4, "object_store_memory": 100 << 20, "include_dashboard": False}


def environment() -> dict[str, str]:
    """Return this process's environment, without settings of the product, and with the tiny backbone."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("CLVR_", "AWS_", "RAY_"))
    }
    paths = os.pathsep.join(map(str, (SITE, ATTACKS, ROOT)))
    return clean | {"PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


class QuickServer(MilvusServer):
    """A server that deletes dropped and compacted segments after seconds, where the default is hours."""

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        settings["dataCoord"]["gc"] = dict.fromkeys(("interval", "dropTolerance", "missingTolerance"), 10)
        return settings


class World:
    """The folders of an attack. `here` is what a try changes; archive, labels and checkpoint stay."""

    def __init__(self, root: Path, *, ray: bool) -> None:
        shutil.rmtree(root / "commands", ignore_errors=True)
        self.root, self.here, self.states = root, root / "here", root / "states"
        self.archive, self.model, self.labels = root / "archive", root / "model", root / "labels"
        self.probes, self.reference = root / "probes", root / "reference.npz"
        self.runs, self.milvus, self.out = self.here / "runs", self.here / "milvus.db", self.here / "out"
        self.token, self.alias = "", ALIAS
        self.cluster: Cluster | None = None
        self.server: QuickServer | None = None
        self._storage: SeaweedFs | None = None
        self._more: dict[str, str] = {}
        self.environment = environment() | {
            "CLVR_RUNS": str(self.runs),
            "CLVR_MILVUS": str(self.milvus),
            "CLVR_ALIAS": ALIAS,
        }
        if ray:
            self.cluster = _start_cluster()
            self.environment["CLVR_RAY"] = self.cluster.address
        self.forks = ForkServer(root / "commands", self.environment)

    def start(self, *words: Any, **options: Any) -> Command:
        """Start a command."""
        return self.forks.start([str(word) for word in words], more=self._more, **options)

    def clvr(self, *words: Any, **options: Any) -> Command:
        """Run a command to its end."""
        command = self.start(*words, **options)
        command.wait()
        return command

    def must(self, *words: Any, **options: Any) -> Command:
        """Run a command that has to succeed. Raises RuntimeError."""
        command = self.clvr(*words, **options)
        if command.poll() != 0:
            raise RuntimeError(f"clvr {' '.join(command.words)}: {command.poll()}\n{command.err}")
        return command

    def reset(self, state: str) -> None:
        """Put the copy of a state in place of what the last try left."""
        shutil.rmtree(self.here, ignore_errors=True)
        shutil.copytree(self.states / state, self.here)

    def facts(self) -> Facts:
        """Observe the store and Milvus in a process of its own."""
        words = [str(self.runs), *self._index(), str(self.reference)]
        facts: Facts = self.forks.json("facts:observe", *words)
        return facts

    @contextmanager
    def on_server(self, alias: str = "") -> Iterator[None]:
        """Use the Milvus server instead of Milvus Lite, under an alias of its own; drop its collections."""
        if self.server is None:
            self._start_server()
        assert self.server is not None
        assert self._storage is not None
        self.alias, self.token = alias or f"cars{self.forks.number}", self.server.token
        self._more = {
            "CLVR_MILVUS": self.server.uri,
            "CLVR_ALIAS": self.alias,
            "CLVR_MILVUS_BUCKET": f"s3://{self.server.bucket}",
            **self._storage.environment,
        } | ({"CLVR_MILVUS_TOKEN": self.token} if self.token else {})
        try:
            yield
        finally:
            self.forks.json("facts:drop", *self._index())
            self.alias, self.token, self._more = ALIAS, "", {}

    def bucket_objects(self) -> Iterator[tuple[str, bytes]]:
        """Yield every object of the server's bucket: its URI and its bytes."""
        assert self.server is not None
        assert self._storage is not None
        store = open_store(f"s3://{self.server.bucket}", self._storage.settings)
        for info in store.list():
            yield store.uri_of(info.key), store.get(info.key)

    def queue_files(self) -> Iterator[tuple[str, bytes]]:
        """Yield the files of the server outside its bucket: its message queue and its metadata."""
        assert self.server is not None
        for path in sorted(self.server.folder.rglob("*")):
            if path.is_file() and path.parent != self.server.folder:
                yield str(path.relative_to(self.server.folder)), path.read_bytes()

    def _index(self) -> list[str]:
        uri = self.server.uri if self._more and self.server else str(self.milvus)
        return [uri, self.token, self.alias]

    def _start_server(self) -> None:
        for name in ("s3", "milvus"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        self._storage = SeaweedFs.start(self.root / "s3")
        self.server = QuickServer.start(self.root / "milvus", storage=self._storage, bucket="attack")

    def embed_words(self, run_id: str, *more: str) -> list[str]:
        """Return the words of an embedding of the archive."""
        words = ["embed", self.archive, "--checkpoint", self.model, "--run-id", run_id, "--workers", "2"]
        words += ["--key-pattern", KEYS, "--labels", self.labels / "labels.parquet"]
        return [str(word) for word in (*words, "--max-quarantine-rate", "0.5", *more)]

    def sweep_words(self, output: Path | str, *, exact: bool = True) -> list[str]:
        """Return the words of a sweep of all probes, through the shards of r1 or through the live index."""
        words = ["sweep", str(self.probes), "--output", str(output), "--case-number", "26-7", "--top", "5"]
        return [*words, "--exact", "--run-id", "r1"] if exact else words

    def train_words(self) -> list[str]:
        """Return the words of a training of a second checkpoint."""
        settings = [
            "network=tiny",
            "batch=8",
            "warmup.epochs=2",
            "target.epochs=2",
            "reestimate_statistics=0",
        ]
        words = [
            "train",
            self.labels / "labels.parquet",
            "--root",
            self.archive,
            "--output",
            self.here / "net",
        ]
        words += ["--recipe", "demo", "--weights", "random", "--max-bad-fraction", "0.5", "--workers", "2"]
        return [*map(str, words), *(word for value in settings for word in ("--set", value))]

    def replace_worker_node(self) -> None:
        """Start a new second node in place of a killed one."""
        assert self.cluster is not None
        self.cluster.add_node(wait=True, **NODE)

    def build(self) -> None:
        """Make the archive and every state but `full`."""
        self.here.mkdir(parents=True)
        self.runs.mkdir()
        (self.root / "archive").mkdir()
        generate(open_store(str(self.archive)), SPEC)
        write_labels(open_store(str(self.labels)), SPEC)
        self._make_probes()
        network = Clvr.of(Architecture(classes=SPEC.models, backbone="tiny"), seed=2)
        card = Card(
            label_ids=tuple(range(SPEC.models)), label_names={n: f"Model {n}" for n in range(SPEC.models)}
        )
        save_checkpoint(str(self.model), network, card)
        self._keep("bare")
        self.must(*self.embed_words("r1", "--rows-per-shard", "128"))
        self._change_archive()
        self.must(*self.embed_words("r2", "--since-run", "r1"))
        self._keep("embedded")
        self._write_reference()
        self.must("load", "r1")
        self.must("promote", "latest")
        self._keep("live")
        self._keep("night")
        shutil.rmtree(self.states / "night/runs/runs/r2")
        for promoted in (True, True, False):
            self.must("load", "r1")
            if promoted:
                self.must("promote", "latest")
        self._keep("four")

    def build_full(self) -> None:
        """Make the state `full`. An erasure comes last, because nothing may follow from erased crops."""
        self.reset("live")
        self.must("calibrate", "r1", "--false-alarm-rate", "0.1")
        self.must(*self.sweep_words(self.out))
        self.must("load", "r2", "--into-live")
        self.must(*self.night_words("n1"))
        self.must("forget", "--vehicle", "4", "--reason", "test", "--yes")
        self._keep("full")
        self.must("forget", "--vehicle", "7", "--reason", "test", "--yes", "--purge")
        self._keep("purged")

    def night_words(self, name: str) -> list[str]:
        """Return the words of a reindex run."""
        words = ["reindex", self.archive, "--checkpoint", self.model, "--night", name, "--workers", "2"]
        words += ["--key-pattern", KEYS, "--labels", self.labels / "labels.parquet"]
        return [str(word) for word in (*words, "--max-quarantine-rate", "0.5")]

    def close(self) -> None:
        """End what this object started."""
        self.forks.close()
        if self.server is not None and self._storage is not None:
            self.server.stop()
            self._storage.stop()
        if self.cluster is not None:
            self.cluster.shutdown()

    def _keep(self, state: str) -> None:
        shutil.copytree(self.here, self.states / state)

    def _make_probes(self) -> None:
        self.probes.mkdir()
        crops = sorted(path for path in self.archive.rglob("*.jpg") if path.stat().st_size > 2000)
        for number, path in enumerate(crops[:: len(crops) // 40][:40]):
            # One more byte makes another object of the same picture.
            (self.probes / f"{number:03d}.jpg").write_bytes(path.read_bytes() + b"\0")

    def _change_archive(self) -> None:
        keys = sorted(self.archive.rglob("*.jpg"))
        for number, path in enumerate(keys[40:52]):
            path.with_name(f"{path.stem.partition('_')[0]}_new{number}.jpg").write_bytes(path.read_bytes())
        for path, other in zip(keys[100:104], keys[200:204], strict=True):
            path.write_bytes(other.read_bytes())
        for path in keys[300:306]:
            path.unlink()

    def _write_reference(self) -> None:
        facts = read_store(self.runs, self.reference)
        rows = features_of(facts, facts["runs"])
        listed = {number for run in facts["runs"].values() for number in run["manifest"]}
        vectors = {str(number): vector for number, vector in rows.items()}
        np.savez(self.reference, listed=np.array(sorted(listed)), **vectors)


def _start_cluster() -> "Cluster":
    # Workers inherit the environment of this process.
    os.environ |= {name: value for name, value in environment().items() if os.environ.get(name) != value}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    cluster.add_node(wait=True, **NODE)
    return cluster


@contextmanager
def open_world(root: Path, *, ray: bool = True) -> Iterator[World]:
    """Build a world in a folder, or use the one that is there, and end its processes afterwards."""
    world = World(root, ray=ray)
    try:
        if not (world.states / "four").exists():
            world.build()
        yield world
    finally:
        world.close()


def in_environment() -> bool:
    """Return whether this process itself has the tiny backbone; otherwise it has to start again."""
    return str(SITE) in sys.path
