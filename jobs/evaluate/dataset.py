"""The embedded crops of a run that carry a vehicle id: what an evaluation ranks."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clvr_model.checkpoint import load_checkpoint
from clvr_model.datasets.test_lists import TestList
from clvr_model.datasets.vehicleid import list_test_splits, read_vehicleid
from clvr_model.datasets.veri import read_veri
from clvr_model.datasets.veri_wild import read_veri_wild
from clvr_model.datasets.vric import read_vric
from index.archive.labels import read_label_table, with_labels
from index.evaluation.cmc import LabeledFeatures, Split
from index.runs.run import Run, list_runs
from index.runs.shards import read_shards, vectors_of
from index.runs.tombstones import erased_ids
from infra.errors import BadLabels
from infra.logging import logger
from infra.settings import Settings
from infra.store import open_store
from jobs.embed.job import EmbedRequest, embed


def embed_labelled_set(
    run: str, archive: str | None, settings: Settings, max_quarantine_rate: float = 0.01
) -> str:
    """The run id itself, or with an archive the run of that archive by the checkpoint `run`.

    A finished run of the same archive and fingerprint is taken as it is: no picture is embedded twice.
    Raises what `jobs.embed.embed` raises.
    """
    if archive is None:
        return run
    fingerprint = load_checkpoint(run).fingerprint
    uri = open_store(archive).uri
    for old in reversed(list(list_runs(open_store(settings.runs)))):
        if old.finished and old.fingerprint == fingerprint and old.info.archive == uri:
            logger.info(f"run {old.run_id} has these pictures by this checkpoint already")
            return old.run_id
    return embed(
        EmbedRequest(archive=archive, model=run, max_quarantine_rate=max_quarantine_rate), settings
    ).run_id


@dataclass(frozen=True, slots=True)
class EvaluationList:
    """Labels of one list; without a table the run's own manifest tells them.

    `table` has uri or key, and what `index.labels.with_labels` joins. Keys are below `root`.
    """

    name: str = ""
    table: pa.Table | None = None
    root: str = ""
    protocol: str = ""  # that the dataset comes with
    probes: frozenset[str] = field(default_factory=frozenset)  # keys, where the dataset gives the roles
    gallery: frozenset[str] = field(default_factory=frozenset)

    def for_archive(self, archive: str) -> pa.Table | None:
        """The table with URIs as the archive has them, wherever the dataset's lists were read."""
        if self.table is None or not self.root:
            return self.table
        root = self.root if archive.startswith(self.root) else archive
        uris = [f"{root.rstrip('/')}/{key}" for key in self.table["key"].to_pylist()]
        return self.table.drop_columns(["key"]).append_column("uri", pa.array(uris, pa.string()))

    def keys_of(self, archive: str, uris: Iterable[str]) -> list[str]:
        """The keys that `probes` and `gallery` name, of URIs in the archive."""
        root = self.root if archive.startswith(self.root) else archive
        return [uri.removeprefix(f"{root.rstrip('/')}/") for uri in uris]


def evaluation_lists(labels: str | None, split: str | None) -> list[EvaluationList]:
    """What to evaluate.

    labels: None for those in the run's manifest, a `.csv` or `.parquet` (of which `split` picks rows), or
    a folder in the layout of VehicleID, VeRi-776, VERI-Wild or VRIC. Of several test lists all are taken,
    unless `split` names one. Raises BadLabels, StoreError.
    """
    if labels is None:
        return [EvaluationList()]
    if labels.lower().endswith((".csv", ".parquet")):
        return [EvaluationList(split or "", read_label_table(labels, split=split))]
    lists = _dataset_lists(labels, split)
    chosen = [one for one in lists if split is None or one.name == split]
    if not chosen:
        names = ", ".join(one.name for one in lists)
        raise BadLabels(f"{labels} has no test list {split!r}", remedy=f"it has: {names}")
    return chosen


def _dataset_lists(root: str, split: str | None) -> list[EvaluationList]:
    store = open_store(root)
    store.ensure()
    if store.head("train_test_split/vehicle_info.txt") is not None:
        return [_with_roles(found, store.uri) for found in read_veri_wild(root)]
    if store.head("name_query.txt") is not None:
        return [_with_roles(read_veri(root), store.uri)]
    if store.head("vric_probe.txt") is not None:
        return [_with_roles(read_vric(root), store.uri)]
    tests = list_test_splits(root)
    if not tests:
        raise BadLabels(
            f"{root} is neither a label table nor a folder of VehicleID, VeRi-776, VERI-Wild or VRIC",
            remedy="give a .csv or .parquet with uri (or key) and vehicle_id, or the dataset's root",
        )
    lists = []
    for name in tests if split is None else [split]:
        labelled = read_vehicleid(root, name)
        keys = [uri.removeprefix(f"{store.uri}/") for uri in labelled.uris]
        table = pa.table({"key": keys, "vehicle_id": labelled.vehicle_ids})
        lists.append(EvaluationList(name, table, store.uri, "vehicleid-paper"))
    return lists


def _with_roles(found: TestList, root: str) -> EvaluationList:
    keys = [uri.removeprefix(f"{root}/") for uri in found.uris]
    table = pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "vehicle_id": pa.array(found.vehicle_ids, pa.int64()),
            "camera_id": pa.array(found.camera_ids, pa.string()),
        }
    )
    roles = {
        role: frozenset(key for key, its in zip(keys, found.roles, strict=True) if its == role)
        for role in ("probe", "gallery")
    }
    return EvaluationList(found.name, table, root, found.protocol, roles["probe"], roles["gallery"])


@dataclass(frozen=True, slots=True)
class LabelledRun:
    """The embedded crops of a run that carry a vehicle id, in the order of the shards."""

    run: Run
    name: str  # of the list, '' where there is only one
    crops: pa.Table  # crop_id, uri, camera_id, captured_at, model_id (predicted), model_confidence
    features: NDArray[np.float32]  # (n, 1024)
    vehicle_ids: NDArray[np.int64]  # (n,)
    camera_ids: NDArray[np.str_]  # (n,), '' where unknown
    captured_at: NDArray[np.int64]  # (n,) ms since 1970, UTC, -1 where unknown
    true_model_ids: NDArray[np.int64]  # (n,), -1 where unknown
    unlabelled: int
    lost: int  # labelled crops of the manifest that have no embedding
    absent: int = 0  # labels of pictures that the run's archive never had
    absent_examples: tuple[str, ...] = ()
    given: Split | None = None  # the probes and the gallery of the dataset's own list
    protocol: str = ""  # that the list comes with

    @property
    def crop_ids(self) -> NDArray[np.int64]:
        """(n,) crop ids."""
        return np.asarray(self.crops["crop_id"].to_numpy(), dtype=np.int64)

    @property
    def cameras(self) -> NDArray[np.str_] | None:
        """Cameras of all pictures, or None if any is unknown."""
        return None if (self.camera_ids == "").any() else self.camera_ids

    def pictures(self, features: NDArray[np.float32] | None = None) -> LabeledFeatures:
        """As `index.cmc` takes them; the crop id is the row, so that no picture is ranked for itself."""
        chosen = self.features if features is None else features
        return LabeledFeatures(chosen, self.vehicle_ids, self.cameras, np.arange(len(chosen)))

    def accounting(self) -> list[str]:
        """What is not ranked and by which rule, a line each."""
        single = sum(many == 1 for many in Counter(self.vehicle_ids.tolist()).values())
        left_out = (
            (self.unlabelled, "embedded crops without a vehicle id are left out"),
            (self.lost, "labelled crops have no embedding (see the run's quarantine) and are left out"),
            (self.absent, f"labels name no crop of this run, such as {', '.join(self.absent_examples[:2])}"),
            (single, "vehicles have one picture only and can be no true match"),
        )
        return [f"{count:,} {rule}" for count, rule in left_out if count]


def labelled_run(run: Run, chosen: EvaluationList | None = None) -> LabelledRun:
    """Join a finished run's shards with vehicle ids: of its manifest, or of a list of labels alone.

    Memory: the features of the labelled crops, 4 KB each. Raises BadLabels if none is labelled, and
    FingerprintMismatch if a shard is of another model than the run.
    """
    chosen = chosen or EvaluationList()
    manifest = run.manifest()
    table = chosen.for_archive(run.info.archive)
    absent = 0
    examples: tuple[str, ...] = ()
    if table is not None:
        nobody = pa.nulls(manifest.num_rows, pa.int64())
        manifest = manifest.set_column(manifest.schema.get_field_index("vehicle_id"), "vehicle_id", nobody)
        manifest, joined = with_labels(manifest, table, archive=run.info.archive)
        absent, examples = joined.unmatched, joined.examples
    known = manifest.filter(pc.is_valid(manifest["vehicle_id"]))
    if not known.num_rows:
        missing = f"; its {absent:,} labels are of other pictures, such as {examples[0]}" if absent else ""
        raise BadLabels(f"no crop of run {run.run_id} has a vehicle id{missing}", remedy="check --labels")
    place, crops, features = _embedded(run, known["crop_id"].to_numpy())
    known = known.take(pa.array(place))
    uris = known["uri"].to_pylist()
    return LabelledRun(
        run=run,
        name=chosen.name,
        crops=crops,
        features=features,
        vehicle_ids=known["vehicle_id"].to_numpy(),
        camera_ids=np.asarray(known["camera_id"].to_pylist(), dtype=np.str_),
        captured_at=known["captured_at"].to_numpy(),
        true_model_ids=pc.fill_null(known["model_id"], -1).to_numpy().astype(np.int64),
        unlabelled=run.summary.embedded - len(place),
        lost=manifest.num_rows - manifest["vehicle_id"].null_count - len(place),
        absent=absent,
        absent_examples=examples,
        given=_given(chosen, run.info.archive, uris),
        protocol=chosen.protocol,
    )


def _embedded(run: Run, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], pa.Table, NDArray[np.float32]]:
    """Of the crops `ids` that were not erased: places in `ids`, scalar columns, features, in shard order."""
    order = np.argsort(ids)
    erased = erased_ids(run.store)
    batches, features, places = [], [], []
    for batch in read_shards(run.store, run.shard_keys(), fingerprint=run.fingerprint):
        crop_ids = batch.column("crop_id").to_numpy()
        place = order[np.minimum(np.searchsorted(ids, crop_ids, sorter=order), len(ids) - 1)]
        rows = np.flatnonzero((ids[place] == crop_ids) & ~np.isin(crop_ids, erased))
        features.append(vectors_of(batch)[rows])
        places.append(place[rows])
        batches.append(batch.drop_columns(["embedding"]).take(pa.array(rows)))
    if not sum(map(len, places)):
        raise BadLabels(f"no embedded crop of run {run.run_id} has a vehicle id", remedy="check the labels")
    return np.concatenate(places), pa.Table.from_batches(batches), np.concatenate(features)


def _given(chosen: EvaluationList, archive: str, uris: list[str]) -> Split | None:
    if not chosen.probes:
        return None
    keys = chosen.keys_of(archive, uris)
    probes = np.flatnonzero([key in chosen.probes for key in keys])
    gallery = np.flatnonzero([key in chosen.gallery for key in keys])
    if not len(probes) or not len(gallery):
        raise BadLabels(
            f"list {chosen.name}: {len(probes):,} probes and {len(gallery):,} gallery pictures are embedded"
        )
    return Split(probes, gallery)
