"""The embedded crops of a run that carry a vehicle id: what an evaluation ranks."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.labels import with_labels
from index.runs import Run
from index.shards import read_shards, vectors_of
from infra.errors import BadLabels
from jobs.labels import read_label_table


@dataclass(frozen=True, slots=True)
class LabelledRun:
    """The embedded crops of a run that carry a vehicle id, in the order of the shards."""

    run: Run
    crops: pa.Table  # crop_id, uri, camera_id, captured_at, model_id (predicted), model_confidence
    features: NDArray[np.float32]  # (n, 1024)
    vehicle_ids: NDArray[np.int64]  # (n,)
    true_model_ids: NDArray[np.int64]  # (n,), -1 where unknown
    unlabelled: int
    lost: int  # labelled crops that have no embedding


def labelled_run(run: Run, labels: str | None = None, split: str | None = None) -> LabelledRun:
    """Join a finished run's shards with vehicle ids: of its manifest, or of a label table alone.

    split: of the table, only the rows whose column `split` says so.

    Memory: the features of the labelled crops, 4 KB each. Raises BadLabels if none is labelled.
    """
    manifest = run.manifest()
    if labels is not None:
        table = read_label_table(labels, split=split)
        nobody = pa.nulls(manifest.num_rows, pa.int64())
        manifest = manifest.set_column(manifest.schema.get_field_index("vehicle_id"), "vehicle_id", nobody)
        manifest, _ = with_labels(manifest, table, archive=run.info.archive)
    known = manifest.filter(pc.is_valid(manifest["vehicle_id"]))
    if not known.num_rows:
        raise BadLabels(f"no crop of run {run.run_id} has a vehicle id", remedy="give --labels")
    ids = known["crop_id"].to_numpy()
    order = np.argsort(ids)
    batches, features, places = [], [], []
    for batch in read_shards(run.store, run.shard_keys(), fingerprint=run.fingerprint):
        crop_ids = batch.column("crop_id").to_numpy()
        place = order[np.minimum(np.searchsorted(ids, crop_ids, sorter=order), len(ids) - 1)]
        rows = np.flatnonzero(ids[place] == crop_ids)
        features.append(vectors_of(batch)[rows])
        places.append(place[rows])
        batches.append(batch.drop_columns(["embedding"]).take(pa.array(rows)))
    if not sum(map(len, places)):
        raise BadLabels(f"no embedded crop of run {run.run_id} has a vehicle id", remedy="check the labels")
    place = np.concatenate(places)
    return LabelledRun(
        run=run,
        crops=pa.Table.from_batches(batches),
        features=np.concatenate(features),
        vehicle_ids=known["vehicle_id"].to_numpy()[place],
        true_model_ids=pc.fill_null(known["model_id"], -1).to_numpy()[place].astype(np.int64),
        unlabelled=run.summary.embedded - len(place),
        lost=known.num_rows - len(place),
    )
