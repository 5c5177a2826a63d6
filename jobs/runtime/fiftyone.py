"""A folder that FiftyOne opens as a dataset: its own format, `fiftyone.types.FiftyOneDataset`.

    export.json     the run that was exported; written first, and the sign that the folder is ours
    data/           images that FiftyOne cannot open where they are, named by their crop_id
    samples.json    one document a crop, as MongoDB's extended JSON
    metadata.json   the fields of the documents; written last, and nothing opens the folder without it

FiftyOne itself is not needed. Newer releases of it migrate documents of FORMAT_VERSION by themselves.
"""

import base64
import io
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from infra.store import Store

FORMAT_VERSION = "1.4.0"
"""The release of FiftyOne whose documents these are."""

EXPORT, SAMPLES, METADATA = "export.json", "samples.json", "metadata.json"
_KEY = re.compile(r"export\.json|samples\.json|metadata\.json|data/\d{1,19}\.(?:jpg|png|webp|bmp)")

FieldKind = Literal["text", "number", "whole", "time", "vector", "label"]
_FIELD_TYPES: dict[FieldKind, str] = {
    "text": "StringField",
    "number": "FloatField",
    "whole": "IntField",
    "time": "DateTimeField",
    "vector": "VectorField",
    "label": "EmbeddedDocumentField",
}
_CORE = "fiftyone.core.fields."


@dataclass(frozen=True, slots=True)
class Label:
    """A class, and with a prediction its confidence."""

    name: str
    confidence: float | None = None


Value = str | int | float | Label | NDArray[np.float32] | None


def image_key(crop_id: int, suffix: str) -> str:
    """Return the key of a copied image: no name of the archive is part of it."""
    return f"data/{crop_id}{suffix}"


def dataset_keys(folder: Store) -> list[str]:
    """Return the keys of a folder that an export wrote, metadata.json first; export.json is the last one."""
    keys = [info.key for info in folder.list() if _KEY.fullmatch(info.key)]
    return sorted(keys, key=lambda key: (key == EXPORT, key != METADATA, key))


def metadata_document(name: str, fields: Mapping[str, FieldKind], info: Mapping[str, Any]) -> bytes:
    """Return metadata.json. fields: beside those that every dataset has. info: what it says of itself."""
    defaults = [
        _field("id", "ObjectIdField", db_field="_id"),
        _field("filepath", "StringField"),
        _field("tags", "ListField", subfield=f"{_CORE}StringField"),
        _field("_media_type", "StringField"),
        _field("_rand", "FloatField"),
        _field("_dataset_id", "ObjectIdField"),
        _field("created_at", "DateTimeField", read_only=True),
        _field("last_modified_at", "DateTimeField", read_only=True),
    ]
    document = {
        "name": name,
        "version": FORMAT_VERSION,
        "media_type": "image",
        "info": dict(info),
        "sample_fields": [*defaults, *(_field_of(name, kind) for name, kind in fields.items())],
    }
    return json.dumps(document, indent=1).encode()


class SampleWriter:
    """Writes samples.json one document at a time."""

    def __init__(self, file: IO[bytes], fields: Mapping[str, FieldKind]) -> None:
        self._file = file
        self._fields = fields
        self._random = Random(0)  # noqa: S311  # FiftyOne orders random views by it
        self.count = 0
        file.write(b'{"samples": [')

    def write(self, crop_id: int, path: str, values: Mapping[str, Value], tags: Iterable[str] = ()) -> None:
        """Add a sample. path: absolute, or a key below the folder. values: by field; times in ms."""
        document = {
            "filepath": path,
            "tags": list(tags),
            "_media_type": "image",
            "_rand": self._random.random(),
        }
        for number, (name, kind) in enumerate(self._fields.items()):
            document[name] = _encoded(kind, values.get(name), f"{crop_id:016x}{number:08x}")
        self._file.write(b",\n" if self.count else b"\n")
        self._file.write(json.dumps(document).encode())
        self.count += 1

    def close(self) -> None:
        """End the file."""
        self._file.write(b"\n]}\n")


def _encoded(kind: FieldKind, value: Any, label_id: str) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if kind == "time":
        return {"$date": {"$numberLong": str(value)}}
    if kind == "vector":
        array = io.BytesIO()
        np.save(array, value, allow_pickle=False)
        data = base64.b64encode(zlib.compress(array.getvalue(), 1)).decode()
        return {"$binary": {"base64": data, "subType": "00"}}
    if kind == "label":
        label = {"_id": {"$oid": label_id}, "_cls": "Classification", "tags": [], "label": value.name}
        return label if value.confidence is None else {**label, "confidence": value.confidence}
    return value


def _field_of(name: str, kind: FieldKind) -> dict[str, Any]:
    field = _field(name, _FIELD_TYPES[kind])
    if kind == "label":
        field["embedded_doc_type"] = "fiftyone.core.labels.Classification"
        field["fields"] = [
            _field("id", "ObjectIdField", db_field="_id"),
            _field("tags", "ListField", subfield=f"{_CORE}StringField"),
            _field("label", "StringField"),
            _field("confidence", "FloatField"),
            _field("logits", "VectorField"),
        ]
    return field


def _field(
    name: str, kind: str, *, db_field: str = "", subfield: str | None = None, read_only: bool = False
) -> dict[str, Any]:
    return {
        "name": name,
        "ftype": f"{_CORE}{kind}",
        "embedded_doc_type": None,
        "subfield": subfield,
        "fields": [],
        "db_field": db_field or name,
        "description": None,
        "info": None,
        "read_only": read_only,
    }
