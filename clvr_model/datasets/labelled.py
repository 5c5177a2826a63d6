"""Labelled images, from a folder tree, a table, or a reader of a dataset."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from infra.errors import BadLabels, BadSetting, EmptyArchive, ObjectMissing
from infra.store.cells import Kind

UNKNOWN_MODEL: Final = -1

_IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LABEL_KINDS: Final[dict[str, Kind]] = {
    "model_id": "id",
    "vehicle_id": "id",
    "camera_id": "text",
    "track_id": "text",
    "model_name": "text",
    "color": "text",
    "body_type": "text",
}
"""The labels of an image, in a table or beside the image in a container."""

_TABLE_KINDS: Final[dict[str, Kind]] = {"uri": "text", "key": "text", "split": "text", **LABEL_KINDS}
_CLASS_FOLDER: Final = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a release says of one image beside model, vehicle and camera; empty text is unknown.

    box: left, top, right, bottom of the vehicle in pixels, right and bottom exclusive; None: the whole image.
    """

    color: str = ""
    body_type: str = ""
    track: str = ""
    model_name: str = ""
    box: tuple[int, int, int, int] | None = None


NO_ATTRIBUTES: Final = Attributes()
_TEXT_COLUMNS: Final = ("camera_ids", "colors", "body_types", "track_ids")


@dataclass(frozen=True, slots=True)
class LabeledImages:
    """n images in a fixed order; `model_ids` are the source's, or UNKNOWN_MODEL.

    A column of a release that does not have it is None; a value that is unknown is -1 or the empty text.
    """

    uris: list[str]
    model_ids: NDArray[np.int64]  # (n,)
    vehicle_ids: NDArray[np.int64] | None = None  # (n,)
    camera_ids: list[str] | None = None
    model_names: dict[int, str] = field(default_factory=dict)
    colors: list[str] | None = None
    body_types: list[str] | None = None
    track_ids: list[str] | None = None
    boxes: NDArray[np.int32] | None = None  # (n, 4) left, top, right, bottom in pixels; -1: the whole image
    captured_at: NDArray[np.int64] | None = None  # (n,) ms since 1970, UTC, -1 if unknown

    def __post_init__(self) -> None:
        for name in ("model_ids", "vehicle_ids", "boxes", "captured_at", *_TEXT_COLUMNS):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.uris):
                raise BadLabels(f"{len(self.uris)} images, but {len(column)} {name}")

    def __len__(self) -> int:
        return len(self.uris)

    @property
    def classes(self) -> list[int]:
        """Known model ids, ascending; class c of a network is the model `classes[c]`."""
        return [int(model) for model in np.unique(self.model_ids) if model != UNKNOWN_MODEL]

    def take(self, rows: NDArray[np.integer[Any]]) -> "LabeledImages":
        """Return the images at `rows`, in that order."""
        texts = {name: getattr(self, name) for name in _TEXT_COLUMNS}
        return LabeledImages(
            uris=[self.uris[i] for i in rows],
            model_ids=self.model_ids[rows],
            vehicle_ids=None if self.vehicle_ids is None else self.vehicle_ids[rows],
            model_names=self.model_names,
            boxes=None if self.boxes is None else self.boxes[rows],
            captured_at=None if self.captured_at is None else self.captured_at[rows],
            **{name: None if text is None else [text[i] for i in rows] for name, text in texts.items()},
        )

    def with_tracks_as_vehicles(self) -> "LabeledImages":
        """Return the images with a number for each track in the vehicle's place.

        Equal track ids of two cameras are two tracks, and an image of an unknown track is its own. Raises
        BadLabels if no track is known.
        """
        tracks, cameras = self.track_ids or [], self.camera_ids or [""] * len(self)
        if not any(tracks):
            raise BadLabels(
                "no image has a known track, and the recipe learns from tracks",
                remedy="Give a table with the column track_id, or a recipe of model labels such as paper.",
            )
        numbers: dict[tuple[str, str] | int, int] = {}
        pairs = enumerate(zip(cameras, tracks, strict=True))
        keys = [(camera, track) if track else row for row, (camera, track) in pairs]
        ids = [numbers.setdefault(key, len(numbers)) for key in keys]
        return replace(self, vehicle_ids=np.array(ids, np.int64))

    def with_attributes(self, names: Collection[str]) -> "LabeledImages":
        """Return the images with the labels of these attributes only, of color and body_type."""
        return replace(
            self,
            colors=self.colors if "color" in names else None,
            body_types=self.body_types if "body_type" in names else None,
        )

    def with_known_model(self) -> "LabeledImages":
        """Return the images with a known model."""
        return self.take(np.flatnonzero(self.model_ids != UNKNOWN_MODEL))


class TrainingList:
    """Collects labelled images line by line; an image may be listed once."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}
        self._models: list[int] = []
        self._vehicles: list[int] = []
        self._cameras: list[str] = []
        self._attributes: list[Attributes] = []

    def add(
        self,
        where: str,
        uri: str,
        model: int,
        vehicle: int = -1,
        camera: str = "",
        attributes: Attributes = NO_ATTRIBUTES,
    ) -> None:
        """Add one image; `where` names its line. Raises BadLabels for a repeated image."""
        if uri in self._seen:
            raise BadLabels(f"{where}: {uri} is already listed in {self._seen[uri]}")
        self._seen[uri] = where
        self._models.append(model)
        self._vehicles.append(vehicle)
        self._cameras.append(camera)
        self._attributes.append(attributes)

    def to_images(self, model_names: dict[int, str], where: str) -> LabeledImages:
        """Return the images in the order of their lines. Raises BadLabels if there are none."""
        if not self._seen:
            raise BadLabels(f"{where} lists no image")
        known = any(vehicle >= 0 for vehicle in self._vehicles)
        boxes = [each.box for each in self._attributes]
        return LabeledImages(
            uris=list(self._seen),
            model_ids=np.array(self._models, dtype=np.int64),
            vehicle_ids=np.array(self._vehicles, dtype=np.int64) if known else None,
            camera_ids=_if_any(self._cameras),
            model_names=model_names,
            colors=_if_any([each.color for each in self._attributes]),
            body_types=_if_any([each.body_type for each in self._attributes]),
            track_ids=_if_any([each.track for each in self._attributes]),
            boxes=np.array([box or (-1,) * 4 for box in boxes], dtype=np.int32) if any(boxes) else None,
        )


def _if_any(texts: list[str]) -> list[str] | None:
    return texts if any(texts) else None


def split_per_class(
    labelled: LabeledImages, train_share: float = 0.8, seed: int = 0
) -> tuple[LabeledImages, LabeledImages]:
    """Split each model at random into floor(train_share * n) training images and validation images.

    With 0.8 this gives the paper's 72,049 and 18,119 images of VehicleID (section 4). Both parts keep the
    order of `labelled`. A model with a single image keeps it for training (`single_image_models`), because
    nothing would train its class otherwise. Raises BadLabels for images without a model.
    """
    if not 0.0 < train_share <= 1.0:
        raise BadSetting(f"train_share is {train_share}", remedy="Give a share above 0 and up to 1.")
    if np.any(labelled.model_ids == UNKNOWN_MODEL):
        count = int(np.sum(labelled.model_ids == UNKNOWN_MODEL))
        raise BadLabels(f"{count} of {len(labelled)} images have no model", remedy="Remove them first.")
    share = Fraction(str(train_share))  # 0.29 * 100 is below 29 in floating point
    rng = np.random.default_rng(seed)
    training = np.zeros(len(labelled), dtype=bool)
    for model in labelled.classes:
        rows = rng.permutation(np.flatnonzero(labelled.model_ids == model))
        training[rows[: max(len(rows) == 1, len(rows) * share.numerator // share.denominator)]] = True
    if not training.any():
        raise BadLabels(
            f"no model has enough images for training at a share of {train_share}",
            remedy="Label more images a model, or raise the share.",
        )
    return labelled.take(np.flatnonzero(training)), labelled.take(np.flatnonzero(~training))


def hold_out_models(
    labelled: LabeledImages, train_share: float = 0.8, seed: int = 0
) -> tuple[LabeledImages, list[int]]:
    """Take whole models out of a training at random: floor(train_share * n) of the n models stay.

    Returns the images of the models that stay, and the ids of the others, ascending. Images of an unknown
    model are left out too, as they may be of any. Raises BadSetting if that takes out no model, BadLabels if
    it leaves fewer than two.
    """
    models = labelled.classes
    share = Fraction(str(train_share))
    count = len(models) * share.numerator // share.denominator
    if count == len(models):
        raise BadSetting(
            f"a train_share of {train_share} holds out none of {len(models)} models",
            remedy="Give a lower share, such as --set train_share=0.8.",
        )
    if count < 2:
        raise BadLabels(
            f"a train_share of {train_share} leaves {count} of {len(models)} models to train on",
            remedy="Label more models, or raise the share.",
        )
    kept = np.sort(np.random.default_rng([seed, 1]).permutation(models)[:count])
    held_out = sorted(set(models) - set(kept.tolist()))
    return labelled.take(np.flatnonzero(np.isin(labelled.model_ids, kept))), held_out


def split_by_vehicle(
    labelled: LabeledImages, train_share: float = 0.8, seed: int = 0
) -> tuple[LabeledImages, LabeledImages]:
    """Split each model's vehicles at random into floor(train_share * n) for training and the others.

    All images of a vehicle go to one side. A model with one vehicle keeps it for training; images of an
    unknown model count as one model's. Both parts keep the order of `labelled`. Raises BadLabels for images
    without a vehicle, and if no vehicle is left for training.
    """
    if not 0.0 < train_share <= 1.0:
        raise BadSetting(f"train_share is {train_share}", remedy="Give a share above 0 and up to 1.")
    vehicles = labelled.vehicle_ids
    if vehicles is None or (vehicles < 0).any():
        count = len(labelled) if vehicles is None else int((vehicles < 0).sum())
        raise BadLabels(f"{count} of {len(labelled)} images have no vehicle", remedy="Remove them first.")
    share = Fraction(str(train_share))
    rng = np.random.default_rng(seed)
    known, first = np.unique(vehicles, return_index=True)
    models = labelled.model_ids[first]  # a vehicle has one model
    chosen: list[NDArray[np.int64]] = []
    for model in np.unique(models):
        members = rng.permutation(known[models == model])
        count = max(len(members) == 1, len(members) * share.numerator // share.denominator)
        chosen.append(members[:count])
    training = np.isin(vehicles, np.concatenate(chosen))
    if not training.any():
        raise BadLabels(
            f"no model has enough vehicles for training at a share of {train_share}",
            remedy="Label more vehicles a model, or raise the share.",
        )
    return labelled.take(np.flatnonzero(training)), labelled.take(np.flatnonzero(~training))


def single_image_models(labelled: LabeledImages) -> list[int]:
    """Return the models with one image, which have no validation image."""
    models, counts = np.unique(labelled.model_ids, return_counts=True)
    return [int(model) for model in models[counts == 1] if model != UNKNOWN_MODEL]


def class_numbers(labelled: LabeledImages, classes: Sequence[int]) -> NDArray[np.int64]:
    """Return the position of each image's model in `classes`, a network's label ids in ascending order: (n,).

    Raises BadLabels for a model that is not in `classes`, with its first image.
    """
    known = np.asarray(classes, dtype=np.int64)
    numbers = np.searchsorted(known, labelled.model_ids).astype(np.int64)
    outside = np.flatnonzero(~np.isin(labelled.model_ids, known))
    if len(outside):
        first = int(outside[0])
        raise BadLabels(
            f"{len(outside):,} of {len(labelled):,} images have a model outside the {len(known)} "
            f"classes, first {labelled.uris[first]} with {labelled.model_ids[first]}",
            remedy="Remove them, or train on labels that include them.",
        )
    return numbers


def read_folder(root: str) -> LabeledImages:
    """Read a tree with one folder per model: `<root>/<model>/**/<image>`, local or on S3.

    If all folder names are numbers, they are the model ids; otherwise the sorted names are numbered from 0
    and become model names. Hidden files and folders are no data. Raises EmptyArchive without images,
    BadLabels for images outside of a folder.
    """
    from infra.store import is_hidden, open_store

    store = open_store(root)
    store.ensure()
    keys = sorted(
        info.key
        for info in store.list()
        if info.key.lower().endswith(_IMAGE_SUFFIXES) and not is_hidden(info.key)
    )
    if not keys:
        raise EmptyArchive(
            f"no image under {store.uri}", remedy=f"Supported suffixes: {', '.join(_IMAGE_SUFFIXES)}."
        )
    loose = [key for key in keys if "/" not in key]
    if loose:
        raise BadLabels(
            f"{len(loose)} images of {store.uri} are outside of a model's folder, such as {loose[0]}",
            remedy="Move every image into a folder named after its model.",
        )
    folders = [key.split("/", 1)[0] for key in keys]
    names = sorted(set(folders))
    numbers = {name: i for i, name in enumerate(names)}
    if all(_CLASS_FOLDER.fullmatch(name) for name in names):
        numbers = {name: int(name) for name in names}
    ids = np.array([numbers[folder] for folder in folders], dtype=np.int64)
    known = {numbers[name]: name for name in names}
    return LabeledImages([store.uri_of(key) for key in keys], ids, model_names=known)


def read_table(uri: str, *, root: str = "", split: str | None = None) -> LabeledImages:
    """Read labels from a CSV or Parquet file, local or on S3.

    Columns: `uri` (or `key`, below `root`) and `model_id`; `vehicle_id`, `camera_id`, `track_id`,
    `model_name`, `color` and `body_type` where known. An empty id, or -1, means unknown. With
    `split`, only rows with that value in the column `split`.
    Raises BadLabels with the data row of the error, from 1; the header of a CSV file is not counted.
    """
    from infra.store import read_user_table

    required: list[str | tuple[str, ...]] = [("uri", "key"), "model_id"]
    if split is not None:
        required.append("split")
    try:
        table = read_user_table(uri, _TABLE_KINDS, required=required, error=BadLabels)
    except ObjectMissing:
        raise BadLabels(f"no label file at {uri}", remedy="Check the path.") from None
    names = table.column_names
    key_column = "uri" if "uri" in names else "key"
    if key_column == "key" and not root:
        raise BadLabels(f"{uri} gives keys, not URIs", remedy="Give the root of the keys.")
    prefix = "" if key_column == "uri" else f"{root.rstrip('/')}/"

    rows: dict[str, int] = {}
    labels: list[tuple[str, Mapping[str, Any]]] = []
    records = (record for batch in table.to_batches() for record in batch.to_pylist())
    for row, record in enumerate(records, start=1):
        if split is not None and record["split"] != split:
            continue
        target = record[key_column]
        if target is None:
            raise BadLabels(f"{uri}, data row {row}: empty {key_column}", remedy="Remove the row.")
        if target in rows:
            raise BadLabels(
                f"{uri}, data row {row}: {target} is already labelled in data row {rows[target]}",
                remedy="Remove one of the two.",
            )
        rows[target] = row
        labels.append((prefix + target, record))
    if not rows:
        raise BadLabels(f"{uri} labels no image" + (f" of split {split!r}" if split is not None else ""))
    return labelled_of_records(labels)


def labelled_of_records(records: Sequence[tuple[str, Mapping[str, Any]]]) -> LabeledImages:
    """Return images by URI with labels of LABEL_KINDS; what a record lacks, or has as None, is unknown."""

    def texts(name: str) -> list[str] | None:
        return [record.get(name) or "" for _, record in records] if is_stated(name) else None

    def is_stated(name: str) -> bool:
        return any(name in record for _, record in records)

    model_names: dict[int, str] = {}
    for _, record in records:
        model = _or_unknown(record.get("model_id"))
        if record.get("model_name") and model != UNKNOWN_MODEL:
            model_names[model] = record["model_name"]
    vehicles = np.array([_or_unknown(record.get("vehicle_id")) for _, record in records], dtype=np.int64)
    return LabeledImages(
        [uri for uri, _ in records],
        np.array([_or_unknown(record.get("model_id")) for _, record in records], dtype=np.int64),
        vehicles if is_stated("vehicle_id") else None,
        texts("camera_id"),
        model_names,
        colors=_if_any(texts("color") or []),
        body_types=_if_any(texts("body_type") or []),
        track_ids=texts("track_id"),
    )


def _or_unknown(number: int | None) -> int:
    return UNKNOWN_MODEL if number is None else number
