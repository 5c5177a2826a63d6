"""Every picture of a training, decoded once before it starts: one that fails later stops all workers."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from clvr_model.datasets.labelled import LabeledImages, read_folder, read_table, single_image_models
from clvr_model.datasets.registry import read_release
from index.archive.reader import ArchiveReader, reader_of
from infra.errors import BadLabels, BudgetExceeded, ObjectMissing
from infra.logging import logger
from infra.store import Store
from jobs.runtime.image_stream import ImageFailure, stream_images
from jobs.runtime.progress import ProgressState, progress
from jobs.runtime.ray_cluster import root_cause


def read_labelled(data: str, *, root: str = "", split: str | None = None) -> LabeledImages:
    """Read pictures whose vehicle model is known.

    data: a `.csv` or `.parquet` table (whose `key` column lies below `root`, and of which `split` picks the
    rows of one split), a folder as VehicleID, VeRi-776, VERI-Wild or CompCars is released, or a folder of one
    folder a model.
    Raises BadLabels, EmptyArchive, StoreError.
    """
    if data.lower().endswith((".csv", ".parquet")):
        labelled = read_table(data, root=root, split=split).with_known_model()
        # Workers run in folders of their own, and equal data shall have equal digests wherever it is named.
        return replace(labelled, uris=[_absolute(uri) for uri in labelled.uris])
    release = read_release(data, split)
    return read_folder(data) if release is None else release.with_known_model()


def _absolute(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).absolute())


def data_digest(labelled: LabeledImages) -> str:
    """SHA-256 over the URIs and the model ids, in order: equal data, equal digest."""
    digest = hashlib.sha256("\n".join(labelled.uris).encode())
    digest.update(np.ascontiguousarray(labelled.model_ids, np.int64).tobytes())
    return digest.hexdigest()


CHECKED_FILE = "pictures.json"
SLICE = 1000  # pictures a task looks at
NAMED = 10  # failures that are told one by one


def usable_pictures(labelled: LabeledImages, max_fraction: float, folder: Store) -> tuple[LabeledImages, int]:
    """Leave out what cannot be decoded; return the rest, and how many were left out.

    The finding is kept in the training's folder: a resume sees the same pictures, whatever happened to them.
    Raises BudgetExceeded above that share of failures, StoreError.
    """
    try:
        kept: dict[str, Any] = json.loads(folder.get(CHECKED_FILE))
        bad = {int(row): ImageFailure(**failure) for row, failure in kept["left_out"].items()}
    except ObjectMissing:
        bad = _checked(labelled)
    for row, failure in list(bad.items())[:NAMED]:
        logger.info(f"left out: {labelled.uris[row]}: {failure.cause}: {failure.detail}")
    if len(bad) > NAMED:
        logger.info(f"left out: {len(bad) - NAMED:,} more, see {folder.uri_of(CHECKED_FILE)}")
    finding = {str(row): asdict(failure) for row, failure in sorted(bad.items())}
    uris = {str(row): labelled.uris[row] for row in sorted(bad)}
    folder.put(CHECKED_FILE, json.dumps({"left_out": finding, "uris": uris}, indent=1).encode())
    if len(bad) > max_fraction * len(labelled):
        causes = ", ".join(sorted({failure.cause for failure in bad.values()}))
        folder.delete(CHECKED_FILE)  # what is repaired shall be looked at again
        raise BudgetExceeded(
            f"{len(bad):,} of {len(labelled):,} pictures cannot be used ({causes}), more than the "
            f"{max_fraction:.2%} that --max-bad-fraction allows",
            remedy="repair the pictures, or allow more",
        )
    good = np.array([row for row in range(len(labelled)) if row not in bad], np.int64)
    return labelled.take(good), len(bad)


def say_what_is_learned(labelled: LabeledImages, training: LabeledImages, held: LabeledImages) -> list[str]:
    """Tell how much there is to learn from; return the names of models without a training picture.

    Raises BadLabels where there is only one model: nothing could be told apart.
    """
    classes = labelled.classes
    if len(classes) < 2:
        raise BadLabels(
            f"all {len(labelled):,} pictures are of one vehicle model",
            remedy="a classifier needs two or more: check the labels, and --split",
        )
    logger.info(
        f"{len(training):,} pictures of {len(classes)} vehicle models to train on, {len(held):,} held out"
    )
    singles = _names(labelled, set(single_image_models(training)) - set(held.classes))
    if singles:
        logger.info(f"{len(singles)} models have one picture, learned and never held out: {_some(singles)}")
    names = _names(labelled, set(classes) - set(training.classes))
    if names:
        logger.info(
            f"{len(names)} models have too few pictures to be learned, and count as wrong: {_some(names)}"
        )
    return names


def _names(labelled: LabeledImages, models: set[int]) -> list[str]:
    return [labelled.model_names.get(model, f"model {model}") for model in sorted(models)]


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def _checked(labelled: LabeledImages) -> dict[int, ImageFailure]:
    reader, uris = reader_of(labelled.uris), labelled.uris
    look = ray.remote(num_cpus=1)(_failures)
    starts = range(0, len(uris), SLICE)
    waiting = {look.remote(reader, uris[start : start + SLICE]): start for start in starts}
    bad: dict[int, ImageFailure] = {}
    done = 0

    def standing() -> ProgressState:
        return ProgressState(done, len(uris), f"{len(bad):,} bad" if bad else "")

    try:
        with progress("look", "pictures", standing):
            while waiting:
                (ready,), _ = ray.wait(list(waiting))
                start = waiting.pop(ready)
                bad |= {start + place: failure for place, failure in ray.get(ready).items()}
                done += len(uris[start : start + SLICE])
    except Exception as error:
        raise root_cause(error) from error
    return bad


def _failures(reader: ArchiveReader, uris: list[str]) -> dict[int, ImageFailure]:
    found = stream_images(reader, uris)
    return {place: picture for place, picture in found if isinstance(picture, ImageFailure)}
