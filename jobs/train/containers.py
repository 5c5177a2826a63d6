"""Labelled images in tar files (WebDataset) and in Parquet files (Hugging Face `datasets`).

The images are read where they are, by `index.archive`. Labels have the columns of a table of labels; `label`
is taken as `model_id` where there is no such column.

* In a tar file, an image and its labels have one name up to the first dot: `0017.jpg` with `0017.json`, an
  object of these columns, or with `0017.cls`, the number of the model.
* In a Parquet file, they are columns beside `image`. A `label` of a ClassLabel is its number.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

import pyarrow as pa

from clvr_model.datasets.labelled import LABEL_KINDS, UNKNOWN_MODEL, LabeledImages, labelled_of_records
from index.archive.containers import kind_of
from index.archive.members import container_suffix, is_tar, member_key
from index.archive.parquet_files import PARQUET_FILES
from index.archive.reader import ArchiveReader
from infra.errors import BadLabels, ClvrError
from infra.store import TABLE_SUFFIXES, ObjectInfo, Store, is_hidden, open_store, split_uri
from infra.store.cells import Place, convert

IMAGE_SUFFIXES: Final = ("jpg", "jpeg", "png", "webp", "bmp")
LABEL_SUFFIXES: Final = ("json", "cls")
MAX_LABEL_BYTES: Final = 64 << 10
_ARROW_FILES: Final = frozenset({"dataset_info.json", "dataset_dict.json"})

Record = Mapping[str, Any]


def read_containers(data: str, split: str | None) -> LabeledImages | None:
    """Read the labelled images of a tar or Parquet file, or of those below a folder; None without any.

    split: only files of a folder with this name, or below a folder of it: `train` takes
    `train-00000-of-00002.parquet`.
    Raises BadLabels for labels that cannot be read, CorruptObject, StoreError.
    """
    store, files = _files(data)
    takes_all = split is None or bool(container_suffix(data))
    chosen = [file for file in files if takes_all or _is_of_split(file.key, str(split))]
    records: list[tuple[str, Record]] = []
    for file in chosen:
        read = _tar_records if is_tar(file.key) else _parquet_records
        records += read(store, file)
    if records:
        return labelled_of_records(records)
    if chosen or not any(kind_of(file.key).contents(store, file) for file in files):
        return None
    raise BadLabels(
        f"{data} has no tar or Parquet file of split {split!r}",
        remedy=f"it has {', '.join(file.key for file in files[:5])}",
    )


def _files(data: str) -> tuple[Store, list[ObjectInfo]]:
    if data.lower().endswith(TABLE_SUFFIXES) or container_suffix(data):
        root, key = split_uri(data)
        store = open_store(root)
        info = store.head(key) if container_suffix(key) else None
        return store, [info] if info else []
    store = open_store(data)
    store.ensure()
    listed = sorted((info for info in store.list() if not is_hidden(info.key)), key=lambda info: info.key)
    if _ARROW_FILES & {info.key for info in listed} and any(info.key.endswith(".arrow") for info in listed):
        raise BadLabels(
            f"{data} is a dataset of save_to_disk, in Arrow files",
            remedy="write it as Parquet: datasets.load_from_disk(FOLDER).to_parquet(FILE)",
        )
    return store, [info for info in listed if container_suffix(info.key)]


def _is_of_split(key: str, split: str) -> bool:
    *folders, name = PurePosixPath(key).parts
    return split in folders or bool(re.match(rf"{re.escape(split)}(?![A-Za-z0-9])", name))


def _parquet_records(store: Store, file: ObjectInfo) -> list[tuple[str, Record]]:
    """Return the URI and the labels of each row; none for a file without images."""
    contents = kind_of(file.key).contents(store, file)
    if contents is None:
        return []
    where = store.uri_of(file.key)
    table = PARQUET_FILES.columns(store, file, [*LABEL_KINDS, "label"])
    labels = _with_model(table, where)
    columns = {
        name: convert(labels[name].combine_chunks(), kind, Place(where, name, 1, BadLabels)).to_pylist()
        for name, kind in LABEL_KINDS.items()
        if name in labels.column_names
    }
    uris = [store.uri_of(member_key(file.key, name)) for name in contents.members]
    return [(uri, {name: values[row] for name, values in columns.items()}) for row, uri in enumerate(uris)]


def _with_model(table: pa.Table, where: str) -> pa.Table:
    if "model_id" in table.column_names:
        return table
    if "label" not in table.column_names:
        raise BadLabels(
            f"{where} has images and neither the column model_id nor label",
            remedy="add model_id, the number of the vehicle model; -1 where it is unknown",
        )
    return table.rename_columns(["model_id" if name == "label" else name for name in table.column_names])


def _tar_records(store: Store, file: ObjectInfo) -> list[tuple[str, Record]]:
    """Return the URI and the labels of each image of a tar file."""
    contents = kind_of(file.key).contents(store, file)
    members = contents.members if contents else {}
    images, labels = dict[str, str](), dict[str, str]()
    for name, place in members.items():
        sample, suffix = _split_name(name)
        if suffix in IMAGE_SUFFIXES:
            images[sample] = name
        elif suffix in LABEL_SUFFIXES and (suffix == "json" or sample not in labels):
            if place.size > MAX_LABEL_BYTES:
                raise BadLabels(f"{store.uri_of(member_key(file.key, name))} is too large for labels")
            labels[sample] = name
    unlabelled = images.keys() - labels.keys()
    if unlabelled:
        raise BadLabels(
            f"{store.uri_of(file.key)}: {len(unlabelled):,} of {len(images):,} images have no labels, "
            f"first {images[min(unlabelled)]}",
            remedy='add NAME.json with {"model_id": 17}, or NAME.cls with the number of the model',
        )
    parsed = dict(_parsed(store, file, {sample: labels[sample] for sample in images}))
    return [(store.uri_of(member_key(file.key, name)), parsed[sample]) for sample, name in images.items()]


def _split_name(name: str) -> tuple[str, str]:
    """Return what WebDataset calls the key of a sample, and the rest in lower case: ('a/0017', 'jpg')."""
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}/{stem}", suffix.lower()


def _parsed(store: Store, file: ObjectInfo, labels: Mapping[str, str]) -> Iterator[tuple[str, Record]]:
    samples = list(labels)
    uris = [store.uri_of(member_key(file.key, labels[sample])) for sample in samples]
    for position, body in ArchiveReader(store).fetch_many(uris):
        if isinstance(body, ClvrError):
            raise body
        yield samples[position], _labels_of(body.data, uris[position])


def _labels_of(data: bytes, uri: str) -> Record:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadLabels(f"{uri} is not JSON: {str(error)[:100]}") from error
    record = value if isinstance(value, dict) else {"model_id": value}
    if "model_id" not in record and "label" in record:
        record = {**record, "model_id": record["label"]}
    known = {name: record[name] for name in LABEL_KINDS if name in record}
    for name, item in known.items():
        is_id = LABEL_KINDS[name] == "id"
        fits = (isinstance(item, int) and not isinstance(item, bool)) if is_id else isinstance(item, str)
        if item is not None and not (fits and (not is_id or UNKNOWN_MODEL <= item < 2**63)):
            raise BadLabels(f"{uri}: {name} is {str(item)[:40]!r}, not {'a number' if is_id else 'a text'}")
        if is_id and item == UNKNOWN_MODEL:
            known[name] = None
    return known
