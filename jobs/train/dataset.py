"""The labelled images of a training: reading them, and decoding each once before the training starts.

An image that fails during the training would stop all workers.
"""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray

from clvr_model.attributes import COLUMNS, learnable_values
from clvr_model.datasets.labelled import (
    LabeledImages,
    hold_out_models,
    read_folder,
    read_table,
    single_image_models,
    split_by_vehicle,
    split_per_class,
)
from clvr_model.datasets.registry import read_release
from clvr_model.recipe import Recipe
from clvr_model.training import stage_order
from index.archive.manifest import crop_id_of
from index.archive.members import container_suffix
from index.archive.reader import ArchiveReader, reader_of
from index.runs.tombstones import ErasedCrops
from infra.errors import BadLabels, BadSetting, BudgetExceeded, ObjectMissing
from infra.logging import logger
from infra.store import TABLE_SUFFIXES, Store
from infra.store.sealed import seal, unseal
from jobs.runtime.image_stream import ERASED, ImageFailure, stream_images
from jobs.runtime.progress import ProgressState, progress
from jobs.runtime.ray_cluster import root_cause
from jobs.train.containers import read_containers

CHECK_FILE = "pictures.json"
TASK_IMAGES = 1000  # images that one task checks
HOLD_OUT = ("images", "models")  # what the validation share takes from the training
MAX_SHOWN = 10  # failures and models that are named


def read_labelled(
    data: str,
    *,
    root: str = "",
    split: str | None = None,
    labels: str = "model",
    tracks: bool = False,
    needs_tracks: bool = True,
    attributes: str | bool = False,
) -> LabeledImages:
    """Read images whose labels are known: `labels` is model, vehicle or both.

    tracks: the vehicles are the tracks; without needs_tracks, none need be known. attributes: as in a recipe;
    colors and body types that are not learned are left out.
    data: a CSV or Parquet table (whose `key` column is relative to `root`, and of which `split` selects
    the rows of one split), a tar or Parquet file that has the images too, a folder of such files, a folder as
    one of `clvr_model.datasets.registry.RELEASES`, or a folder with one folder per model.
    Without vehicle labels to learn from, vehicles are left out. Raises BadLabels, EmptyArchive, StoreError.
    """
    labelled = _read(data, root, split)
    if labels != "vehicle":
        labelled = _with_known_model(labelled, data)
    labelled = _with_learned_attributes(labelled, attributes, data)
    if tracks and not needs_tracks and not any(labelled.track_ids or []):
        return replace(labelled, vehicle_ids=None)
    if tracks:
        return labelled.with_tracks_as_vehicles()
    if labels == "model":
        return replace(labelled, vehicle_ids=None)
    return _with_known_vehicle(labelled, data)


def _read(data: str, root: str, split: str | None) -> LabeledImages:
    is_table = data.lower().endswith(TABLE_SUFFIXES)
    is_file = is_table or bool(container_suffix(data))
    labelled = None if is_file else read_release(data, split)
    if labelled is None:
        labelled = read_containers(data, split)
    if labelled is not None:
        return labelled
    if not is_table:
        return read_folder(data)
    labelled = read_table(data, root=root, split=split)
    # Workers run in other folders, and equal data must have equal digests however it is named.
    return replace(labelled, uris=[_absolute(uri) for uri in labelled.uris])


def _with_learned_attributes(labelled: LabeledImages, attributes: str | bool, data: str) -> LabeledImages:
    learned = learnable_values(labelled) if attributes else {}
    if attributes is True and not learned:
        raise BadLabels(
            f"{data} states no color and no body type of two values or more, and the recipe learns them",
            remedy="give a table with the column color or body_type, or --set attributes=auto",
        )
    return labelled.with_attributes(learned)


def _with_known_model(labelled: LabeledImages, data: str) -> LabeledImages:
    known = labelled.with_known_model()
    if not len(known):
        what = "has" if labelled.vehicle_ids is None else "labels vehicles, but has"
        raise BadLabels(
            f"{data} {what} no vehicle models to train on",
            remedy=(
                "Train on another dataset and evaluate on this one, give a table with model_id, or learn "
                "from vehicles with --recipe ccl."
            ),
        )
    return known


def without_held_out_models(
    labelled: LabeledImages, hold_out: str, recipe: Recipe
) -> tuple[LabeledImages, list[int]]:
    """Return the images to train and validate on, and the models that `--hold-out models` takes out whole.

    Raises BadSetting for another value than images and models, and the errors of `hold_out_models`.
    """
    if hold_out not in HOLD_OUT:
        raise BadSetting(f"--hold-out is {hold_out!r}", remedy=f"choose one of {', '.join(HOLD_OUT)}")
    if hold_out == "images":
        return labelled, []
    kept, held_out = hold_out_models(labelled, recipe.train_share, recipe.seed)
    logger.info(f"{len(held_out)} models are held out whole: {_shortened(_names(labelled, set(held_out)))}")
    return kept, held_out


def _with_known_vehicle(labelled: LabeledImages, data: str) -> LabeledImages:
    known = labelled.vehicle_ids if labelled.vehicle_ids is not None else np.zeros(0, np.int64)
    if not (known >= 0).any():
        raise BadLabels(
            f"{data} says of no image which vehicle it shows, and the recipe learns from vehicles",
            remedy="give a table with the column vehicle_id, or a recipe of model labels such as paper",
        )
    return labelled.take(np.flatnonzero(known >= 0))


def _absolute(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).absolute())


def data_digest(labelled: LabeledImages) -> str:
    """Return the SHA-256 of the URIs, and of the models, vehicles, boxes, times and attributes learned."""
    digest = hashlib.sha256("\n".join(labelled.uris).encode())
    digest.update(np.ascontiguousarray(labelled.model_ids, np.int64).tobytes())
    if labelled.vehicle_ids is not None:
        digest.update(np.ascontiguousarray(labelled.vehicle_ids, np.int64).tobytes())
    if labelled.boxes is not None:
        digest.update(np.ascontiguousarray(labelled.boxes, np.int32).tobytes())
    if labelled.captured_at is not None:
        digest.update(np.ascontiguousarray(labelled.captured_at, np.int64).tobytes())
    for name, column in COLUMNS.items():
        if getattr(labelled, column) is not None:
            digest.update("\n".join([name, *getattr(labelled, column)]).encode())
    return digest.hexdigest()


def split_for(recipe: Recipe, labelled: LabeledImages) -> tuple[LabeledImages, LabeledImages]:
    """Split into training and validation images: by images of each model, or by vehicles that are learned."""
    if recipe.uses_vehicles:
        return split_by_vehicle(labelled, recipe.train_share, recipe.seed)
    return split_per_class(labelled, recipe.train_share, recipe.seed)


def check_sets(recipe: Recipe, training: LabeledImages, workers: int) -> None:
    """Raise BadLabels if a batch takes more vehicles than there are, BadSetting if workers cannot share."""
    for number, stage in enumerate(recipe.stages):
        if stage.sampling != "vehicles" or training.vehicle_ids is None:
            continue
        size = stage.set_size
        if recipe.batch % (workers * size) or recipe.batch < 2 * size * workers:
            fits = size * workers * max(2, recipe.batch // (size * workers))
            raise BadSetting(
                f"{workers} workers cannot share a batch of {recipe.batch} in sets of {size}, two each",
                remedy=f"--set batch={fits}, or other --workers",
            )
        stage_order(
            stage,
            training.model_ids,
            seed=recipe.seed,
            number=number,
            epoch=0,
            vehicles=training.vehicle_ids,
            batch=recipe.batch,
        )


def drop_erased_images(labelled: LabeledImages, erased: ErasedCrops) -> LabeledImages:
    """Return the images that were not erased as crops."""
    if not len(erased):
        return labelled
    ids = np.fromiter(map(crop_id_of, labelled.uris), np.int64, len(labelled.uris))
    kept = np.flatnonzero(~erased.is_erased(ids))
    if len(kept) < len(labelled):
        logger.info(f"{len(labelled) - len(kept):,} images are left out because they were erased")
    return labelled.take(kept)


def drop_unreadable_images(
    labelled: LabeledImages, max_fraction: float, folder: Store, erased: ErasedCrops
) -> tuple[LabeledImages, int]:
    """Return the images that can be decoded, and the number of the others.

    The failures are kept in the training's folder, so that a resume uses the same images. Images of the same
    bytes as erased crops are left out too.
    Raises BudgetExceeded above that fraction of failures, StoreError.
    """
    try:
        recorded = unseal(folder.get(CHECK_FILE), folder.uri_of(CHECK_FILE))
        failures = {int(row): ImageFailure(**failure) for row, failure in recorded["left_out"].items()}
    except ObjectMissing:
        failures = _check_images(labelled, erased)
    is_erased = {row for row, failure in failures.items() if failure.cause == ERASED}
    for row, failure in list(failures.items())[:MAX_SHOWN]:
        logger.info(f"left out: {labelled.uris[row]}: {failure.cause}: {failure.detail}")
    if len(failures) > MAX_SHOWN:
        logger.info(f"left out: {len(failures) - MAX_SHOWN:,} more, see {folder.uri_of(CHECK_FILE)}")
    document = {
        "left_out": {str(row): asdict(failure) for row, failure in sorted(failures.items())},
        "uris": {str(row): labelled.uris[row] for row in sorted(failures.keys() - is_erased)},
    }
    folder.put(CHECK_FILE, seal(document))
    if len(failures) - len(is_erased) > max_fraction * len(labelled):
        causes = ", ".join(sorted({failure.cause for failure in failures.values()}))
        folder.delete(CHECK_FILE)  # the next attempt checks images that were repaired meanwhile
        raise BudgetExceeded(
            f"{len(failures) - len(is_erased):,} of {len(labelled):,} images cannot be used ({causes}), "
            f"more than the {max_fraction:.2%} that --max-bad-fraction allows",
            remedy="repair the images, or give a higher --max-bad-fraction",
        )
    good = np.array([row for row in range(len(labelled)) if row not in failures], np.int64)
    return labelled.take(good), len(failures)


def _check_images(labelled: LabeledImages, erased: ErasedCrops) -> dict[int, ImageFailure]:
    """Decode every image on the cluster, and return the failures by row."""
    reader, uris, boxes = reader_of(labelled.uris), labelled.uris, labelled.boxes
    check = ray.remote(num_cpus=1)(_failures)
    starts = range(0, len(uris), TASK_IMAGES)
    known = ray.put(erased)
    pending = {}
    for start in starts:
        part = slice(start, start + TASK_IMAGES)
        pending[check.remote(reader, uris[part], known, None if boxes is None else boxes[part])] = start
    failures: dict[int, ImageFailure] = {}
    done = 0

    def read() -> ProgressState:
        return ProgressState(done, len(uris), f"{len(failures):,} bad" if failures else "")

    try:
        with progress("check", "images", read):
            while pending:
                (ready,), _ = ray.wait(list(pending))
                start = pending.pop(ready)
                failures |= {start + position: failure for position, failure in ray.get(ready).items()}
                done += len(uris[start : start + TASK_IMAGES])
    except Exception as error:
        raise root_cause(error) from error
    return failures


def _failures(
    reader: ArchiveReader, uris: list[str], erased: ErasedCrops, boxes: NDArray[np.int32] | None
) -> dict[int, ImageFailure]:
    images = stream_images(reader, uris, erased=erased, boxes=boxes)
    return {position: image for position, image in images if isinstance(image, ImageFailure)}


def report_classes(
    recipe: Recipe, labelled: LabeledImages, training: LabeledImages, validation: LabeledImages
) -> list[str]:
    """Log the size of the split, and return the names of models without a training image.

    Raises BadLabels for images of a single model, which a classifier cannot learn from.
    """
    if training.vehicle_ids is not None:
        count, noun = len(np.unique(training.vehicle_ids)), f"{recipe.identity}s"
        logger.info(
            f"{len(training):,} images of {count:,} {noun} to train on, "
            f"{len(validation):,} images of other {noun} for validation"
        )
    for name, values in learnable_values(labelled).items():
        known = sum(map(bool, getattr(training, COLUMNS[name])))
        logger.info(f"{name}: {len(values)} values, known of {known:,} of {len(training):,} training images")
    if not recipe.has_classifier:
        return []
    classes = labelled.classes
    if len(classes) < 2:
        raise BadLabels(
            f"all {len(labelled):,} images are of one vehicle model",
            remedy="a classifier needs two or more: check the labels, and --split",
        )
    logger.info(
        f"{len(training):,} images of {len(classes)} vehicle models to train on, "
        f"{len(validation):,} for validation"
    )
    singles = _names(labelled, set(single_image_models(training)) - set(validation.classes))
    if singles:
        logger.info(f"{len(singles)} models have one image, used for training only: {_shortened(singles)}")
    untrained = _names(labelled, set(classes) - set(training.classes))
    if untrained:
        logger.info(
            f"{len(untrained)} models have too few images to train on, and count as wrong: "
            f"{_shortened(untrained)}"
        )
    return untrained


def _names(labelled: LabeledImages, models: set[int]) -> list[str]:
    return [labelled.model_names.get(model, f"model {model}") for model in sorted(models)]


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:MAX_SHOWN]) + (", …" if len(names) > MAX_SHOWN else "")
