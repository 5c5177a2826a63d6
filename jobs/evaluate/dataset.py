"""The labelled crops of a run: the input of an evaluation."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clvr_model.checkpoint import load_checkpoint
from clvr_model.datasets.registry import names_with_tests, read_test_lists
from clvr_model.datasets.test_lists import TestList
from index.archive.labels import label_texts, read_label_table, require_fit, with_labels
from index.evaluation.breakdowns import AttributeAccuracy, attribute_accuracy
from index.evaluation.cmc import LabeledFeatures, Split
from index.evaluation.model_groups import ModelLabels
from index.runs.run import Run, list_runs
from index.runs.shards import read_shards, vectors_of
from index.runs.tombstones import read_tombstones
from infra.errors import BadInput, BadLabels
from infra.logging import logger
from infra.settings import Settings
from infra.store import TABLE_SUFFIXES, TimeRange, open_store


def embed_labelled_set(
    run: str, archive: str | None, settings: Settings, max_quarantine_rate: float = 0.01
) -> str:
    """Return the run id, or with an archive the id of a run that embeds it by the checkpoint `run`.

    A finished run of the same archive and fingerprint is reused. Raises the errors of `clvr embed`.
    """
    if archive is None:
        return run
    fingerprint = load_checkpoint(run).fingerprint
    uri = open_store(archive).uri
    for old in reversed(list(list_runs(open_store(settings.runs)))):
        if old.finished and old.fingerprint == fingerprint and old.info.archive == uri:
            logger.info(f"run {old.run_id} already contains these images, embedded by this checkpoint")
            return old.run_id
    # Imported late: an evaluation of a run needs no Ray.
    from jobs.embed.job import embed
    from jobs.embed.new_run import EmbedRequest

    return embed(
        EmbedRequest(archive=archive, model=run, max_quarantine_rate=max_quarantine_rate), settings
    ).run_id


@dataclass(frozen=True, slots=True)
class EvaluationList:
    """The labels of one list; without a table they are those of the run's manifest.

    `table` has uri or key, and columns that `index.archive.labels.with_labels` joins. Keys are below `root`.
    The columns color, body_type and model_name, of datasets that have them, are not joined to the manifest.
    """

    name: str = ""
    table: pa.Table | None = None
    root: str = ""
    protocol: str = ""  # of the dataset
    dataset: str = ""  # its name, '' for a table
    probes: frozenset[str] = field(default_factory=frozenset)  # keys, if the dataset defines the roles
    gallery: frozenset[str] = field(default_factory=frozenset)

    def for_archive(self, archive: str) -> pa.Table | None:
        """Return the table with URIs of the archive, also if the dataset was read from another root."""
        if self.table is None or not self.root:
            return self.table
        root = self.root if archive.startswith(self.root) else archive
        uris = [f"{root.rstrip('/')}/{key}" for key in self.table["key"].to_pylist()]
        return self.table.drop_columns(["key"]).append_column("uri", pa.array(uris, pa.string()))

    def keys_of(self, archive: str, uris: Iterable[str]) -> list[str]:
        """Return the keys, as in `probes` and `gallery`, of URIs of the archive."""
        root = self.root if archive.startswith(self.root) else archive
        return [uri.removeprefix(f"{root.rstrip('/')}/") for uri in uris]


def evaluation_lists(
    labels: str | None, split: str | None, times: TimeRange | None = None
) -> list[EvaluationList]:
    """Read the labels to evaluate, one entry per test list.

    labels: None for the run's manifest, a CSV or Parquet table (`split` selects rows), or a folder in the
    layout of a dataset with test lists (`clvr_model.datasets.registry`; `split` selects one, default: all).
    times: the plausible capture times; None: those of the environment. Raises BadLabels, StoreError.
    """
    if labels is None:
        return [EvaluationList()]
    if labels.lower().endswith(TABLE_SUFFIXES):
        return [EvaluationList(split or "", read_label_table(labels, split=split, times=times))]
    lists = _dataset_lists(labels, split)
    chosen = [listed for listed in lists if split is None or listed.name == split]
    if not chosen:
        names = ", ".join(listed.name for listed in lists)
        raise BadLabels(f"{labels} has no test list {split!r}", remedy=f"test lists: {names}")
    return chosen


def _dataset_lists(root: str, split: str | None) -> list[EvaluationList]:
    store = open_store(root)
    store.ensure()
    lists = read_test_lists(root, split)
    if lists is None:
        raise BadLabels(
            f"{root} is neither a label table nor a folder of {names_with_tests()}",
            remedy="give a .csv or .parquet with uri (or key) and vehicle_id, or the dataset's root",
        )
    return [_evaluation_list(test_list, store.uri) for test_list in lists]


def _evaluation_list(test_list: TestList, root: str) -> EvaluationList:
    keys = [uri.removeprefix(f"{root}/") for uri in test_list.uris]
    attributes = test_list.attributes
    texts = {
        "camera_id": test_list.camera_ids,
        "track_id": [each.track for each in attributes],
        "color": [each.color for each in attributes],
        "body_type": [each.body_type for each in attributes],
        "model_name": [each.model_name for each in attributes],
    }
    columns = {"key": pa.array(keys, pa.string()), "vehicle_id": pa.array(test_list.vehicle_ids, pa.int64())}
    columns |= {name: pa.array(column, pa.string()) for name, column in texts.items() if any(column)}
    roles = {
        role: frozenset(key for key, key_role in zip(keys, test_list.roles, strict=True) if key_role == role)
        for role in ("probe", "gallery")
    }
    return EvaluationList(
        name=test_list.name,
        table=pa.table(columns),
        root=root,
        protocol=test_list.protocol,
        dataset=test_list.dataset,
        probes=roles["probe"],
        gallery=roles["gallery"],
    )


@dataclass(frozen=True, slots=True)
class LabelledRun:
    """The embedded crops of a run that have a vehicle id, in the order of the shards."""

    run: Run
    name: str  # of the list, '' if there is only one
    crops: pa.Table  # the scalar columns of the shards, with what the network predicts
    features: NDArray[np.float32]  # (n, 1024)
    vehicle_ids: NDArray[np.int64]  # (n,)
    camera_ids: NDArray[np.str_]  # (n,), '' if unknown
    captured_at: NDArray[np.int64]  # (n,) ms since 1970, UTC, -1 if unknown
    true_model_ids: NDArray[np.int64]  # (n,), -1 if unknown
    unlabelled: int
    quarantined: int  # labelled crops of the manifest that have no embedding
    not_in_run: int = 0  # labels of images that are not in the run's manifest
    not_in_run_examples: tuple[str, ...] = ()
    dataset_split: Split | None = None  # the probes and the gallery that the dataset defines
    protocol: str = ""  # of the dataset
    dataset: str = ""  # its name, '' if the labels are a table's or the manifest's
    colors: NDArray[np.str_] | None = None  # (n,), '' if unknown; None if the labels have no colors
    body_types: NDArray[np.str_] | None = None  # (n,), likewise
    true_model_names: NDArray[np.str_] | None = None  # (n,), likewise
    track_ids: NDArray[np.str_] | None = None  # (n,), likewise

    @property
    def crop_ids(self) -> NDArray[np.int64]:
        """(n,) crop ids."""
        return np.asarray(self.crops["crop_id"].to_numpy(), dtype=np.int64)

    @property
    def cameras(self) -> NDArray[np.str_] | None:
        """The cameras of all images, or None if any is unknown."""
        return None if (self.camera_ids == "").any() else self.camera_ids

    def images(self, features: NDArray[np.float32] | None = None) -> LabeledFeatures:
        """Return the input of `index.evaluation.cmc`; image ids are rows, so no image matches itself."""
        chosen = self.features if features is None else features
        return LabeledFeatures(chosen, self.vehicle_ids, self.cameras, np.arange(len(chosen)))

    def models(self, trained: Iterable[int] | None = None) -> ModelLabels | None:
        """Return the true models and colors of the images, by name where no id is known; None without any.

        trained: the model ids that the network was trained on.
        """
        ids, names = self.true_model_ids, self.true_model_names
        if (ids >= 0).any():
            return ModelLabels(ids, self.colors, None if trained is None else frozenset(trained))
        if names is None or not (names != "").any():
            return None
        numbers = np.unique(names, return_inverse=True)[1]
        return ModelLabels(np.where(names == "", -1, numbers).astype(np.int64), self.colors)

    def attribute_accuracies(self) -> list[AttributeAccuracy]:
        """Return how the predicted colors and body types compare with the labels, where both are known."""
        found = [
            attribute_accuracy(name, np.asarray(self.crops[name].to_pylist(), np.str_), true)
            for name, true in (("color", self.colors), ("body_type", self.body_types))
            if true is not None and name in self.crops.schema.names
        ]
        return [accuracy for accuracy in found if accuracy]

    def accounting(self) -> list[str]:
        """Return which labels and crops are not ranked and why, one line per reason."""
        single = sum(count == 1 for count in Counter(self.vehicle_ids.tolist()).values())
        examples = ", ".join(self.not_in_run_examples[:2])
        not_ranked = (
            (self.unlabelled, "embedded crops have no vehicle id and are excluded"),
            (
                self.quarantined,
                "labelled crops have no embedding (see the quarantine) and are excluded",
            ),
            (self.not_in_run, f"labels name no crop of this run, such as {examples}"),
            (single, "vehicles have one image only and cannot be a true match"),
        )
        return [f"{count:,} {reason}" for count, reason in not_ranked if count]


def labelled_run(run: Run, chosen: EvaluationList | None = None) -> LabelledRun:
    """Join the shards of a finished run with the vehicle ids of its manifest, or of a list instead.

    Memory: the features of the labelled crops, 4 KB each. Raises BadLabels if no crop is labelled, and
    FingerprintMismatch if a shard is of another model.
    """
    chosen = chosen or EvaluationList()
    manifest = run.manifest()
    table = chosen.for_archive(run.info.archive)
    not_in_run = 0
    examples: tuple[str, ...] = ()
    if table is not None:
        unlabelled = pa.nulls(manifest.num_rows, pa.int64())
        column = manifest.schema.get_field_index("vehicle_id")
        manifest = manifest.set_column(column, "vehicle_id", unlabelled)
        manifest, joined = with_labels(manifest, table, archive=run.info.archive)
        require_fit(joined, manifest, f"list {chosen.name}" if chosen.name else "the list")
        not_in_run, examples = joined.unmatched, joined.examples
    is_known = pc.fill_null(pc.greater_equal(manifest["vehicle_id"], 0), False)  # -1 is unknown, as null is
    labelled = manifest.filter(is_known)
    if not labelled.num_rows:
        raise BadLabels(f"no crop of run {run.run_id} has a vehicle id", remedy="Check --labels.")
    rows, crops, features = _embedded(run, labelled["crop_id"].to_numpy())
    labelled = labelled.take(pa.array(rows))
    uris = labelled["uri"].to_pylist()
    return LabelledRun(
        run=run,
        name=chosen.name,
        crops=crops,
        features=features,
        vehicle_ids=labelled["vehicle_id"].to_numpy(),
        camera_ids=np.asarray(labelled["camera_id"].to_pylist(), dtype=np.str_),
        captured_at=labelled["captured_at"].to_numpy(),
        true_model_ids=pc.fill_null(labelled["model_id"], -1).to_numpy().astype(np.int64),
        unlabelled=run.summary.embedded - len(rows),
        quarantined=len(is_known.filter(is_known)) - len(rows),
        not_in_run=not_in_run,
        not_in_run_examples=examples,
        dataset_split=_dataset_split(chosen, run.info.archive, uris),
        protocol=chosen.protocol,
        dataset=chosen.dataset,
        colors=_texts(table, "color", uris, run.info.archive),
        body_types=_texts(table, "body_type", uris, run.info.archive),
        true_model_names=_texts(table, "model_name", uris, run.info.archive),
        track_ids=np.asarray(labelled["track_id"].to_pylist(), dtype=np.str_),
    )


def _texts(table: pa.Table | None, name: str, uris: list[str], archive: str) -> NDArray[np.str_] | None:
    texts = None if table is None else label_texts(table, name, uris, archive)
    return None if texts is None else np.asarray(texts, dtype=np.str_)


def _embedded(run: Run, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], pa.Table, NDArray[np.float32]]:
    """Return rows in `ids`, scalar columns and features of the crops that are not erased, in shard order."""
    order = np.argsort(ids)
    erased = read_tombstones(run.store)
    batches, features, id_rows = [], [], []
    for batch in read_shards(run.store, run.shard_keys(), fingerprint=run.fingerprint):
        crop_ids = batch.column("crop_id").to_numpy()
        id_row = order[np.minimum(np.searchsorted(ids, crop_ids, sorter=order), len(ids) - 1)]
        rows = np.flatnonzero((ids[id_row] == crop_ids) & ~erased.is_erased(crop_ids))
        features.append(vectors_of(batch)[rows])
        id_rows.append(id_row[rows])
        batches.append(batch.drop_columns(["embedding"]).take(pa.array(rows)))
    if not sum(map(len, id_rows)):
        raise BadLabels(f"no embedded crop of run {run.run_id} has a vehicle id", remedy="check --labels")
    return np.concatenate(id_rows), pa.Table.from_batches(batches), np.concatenate(features)


def features_of(run: Run, crop_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the features (n, 1024) of these crops, in their order. Raises BadInput if the run lacks one."""
    rows, _, features = _embedded(run, crop_ids)
    if len(rows) < len(crop_ids):
        raise BadInput(
            f"run {run.run_id} lacks {len(crop_ids) - len(rows):,} of {len(crop_ids):,} labelled crops",
            remedy="embed the whole archive with its checkpoint: clvr embed",
        )
    ordered = np.empty_like(features)
    ordered[rows] = features
    return ordered


def _dataset_split(chosen: EvaluationList, archive: str, uris: list[str]) -> Split | None:
    if not chosen.probes:
        return None
    keys = chosen.keys_of(archive, uris)
    probes = np.flatnonzero([key in chosen.probes for key in keys])
    gallery = np.flatnonzero([key in chosen.gallery for key in keys])
    if not len(probes) or not len(gallery):
        raise BadLabels(
            f"list {chosen.name}: {len(probes):,} probes and {len(gallery):,} gallery images are embedded"
        )
    return Split(probes, gallery)
