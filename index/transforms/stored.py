"""Stored transforms, named by the model and by their content, and which one a model's generations get.

    transforms/<fingerprint>/<id>.safetensors  the arrays, first
                             <id>.json         the settings and the digest of the arrays
                             default.json      which one `clvr load` uses without --transform, and why

The id is `<kind>-<digits>`: the first digits of the SHA-256 over settings and arrays, so the same fit has the
same name. An array without its document is no transform; the same command completes it.
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.documents import JsonDocument, require_keys_inside, utc_now
from index.parquet import StoredFile
from index.transforms.moments import Group
from index.transforms.transform import FeatureTransform
from infra.errors import BadInput, CorruptObject, FingerprintMismatch, ObjectMissing
from infra.store import Store, ignore_missing_root
from infra.store.sealed import encode_json

VERSION = 1
NONE = "none"
LATEST = "latest"
_DIGITS = 16
_REMEDY = "Restore it from a copy, or fit and load again: `clvr fit-transform`, `clvr load`."


@dataclass(frozen=True, slots=True)
class TransformDocument(JsonDocument):
    """The document of a stored transform; all but `created` is its content.

    rows: the crops that it is fitted on; `sampled_of` are those of its runs. groups: the camera and the hour
    (-1: any) of each row of `offsets` in the arrays. dimensions: the length of a transformed feature.
    """

    NOUN = "feature transform"
    REMEDY = _REMEDY
    FORMAT = ("version", VERSION)

    transform_id: str
    fingerprint: str
    kind: str
    input_dimension: int
    dimensions: int
    shrinkage: float
    camera_prior: float
    by_hour: bool
    run_ids: tuple[str, ...]
    rows: int
    sampled_of: int
    groups: tuple[tuple[str, int], ...]
    arrays: StoredFile
    created: str
    version: int = VERSION

    def check(self, where: str) -> None:
        """Raise CorruptObject for a name that leaves its folder, or an id that is not that of the content."""
        require_keys_inside((self.transform_id, self.fingerprint, self.arrays.key), where)
        if self.transform_id != _id_of(self):
            raise CorruptObject(f"{where} has other contents than its name states", remedy=_REMEDY)


@dataclass(frozen=True, slots=True)
class DefaultTransform(JsonDocument):
    """Which transform the generations of a model get without a flag, and why. transform: an id, or `none`."""

    NOUN = "default transform"
    REMEDY = "Decide again: `clvr fit-transform --kind auto`."
    FORMAT = ("version", VERSION)

    fingerprint: str
    transform: str
    reason: str
    created: str
    version: int = VERSION


def store_transform(
    store: Store,
    transform: FeatureTransform,
    *,
    fingerprint: str,
    shrinkage: float,
    camera_prior: float,
    run_ids: tuple[str, ...],
    rows: int,
    sampled_of: int,
) -> TransformDocument:
    """Store a fitted transform: its arrays, then its document. May be repeated, also after a kill."""
    groups = tuple(sorted(transform.offsets))
    data = _arrays_of(transform, groups)
    digest = hashlib.sha256(data).hexdigest()
    document = TransformDocument(
        transform_id="",
        fingerprint=fingerprint,
        kind=transform.kind,
        input_dimension=transform.input_dimension,
        dimensions=transform.dimension,
        shrinkage=shrinkage,
        camera_prior=camera_prior,
        by_hour=transform.by_hour,
        run_ids=run_ids,
        rows=rows,
        sampled_of=sampled_of,
        groups=groups,
        arrays=StoredFile("", len(groups), len(data), digest),
        created=utc_now(),
    )
    name = _id_of(document)
    key = f"{_folder(fingerprint)}/{name}.safetensors"
    document = replace(document, transform_id=name, arrays=replace(document.arrays, key=key))
    store.put(key, data)
    store.put(f"{_folder(fingerprint)}/{name}.json", document.to_json())
    return document


def read_transform(store: Store, fingerprint: str, transform_id: str) -> FeatureTransform | None:
    """Return a stored transform of a model; None for "" and `none`.

    Raises BadInput if there is none of this name, FingerprintMismatch if it is of another model,
    CorruptObject.
    """
    if transform_id in ("", NONE):
        return None
    document = read_document(store, fingerprint, transform_id)
    data = store.get(document.arrays.key)
    if (len(data), hashlib.sha256(data).hexdigest()) != (document.arrays.bytes, document.arrays.sha256):
        raise CorruptObject(f"{store.uri_of(document.arrays.key)} was altered", remedy=_REMEDY)
    matrix, offset, offsets = _read_arrays(data)
    return FeatureTransform(
        kind=document.kind,
        matrix=matrix,
        offset=offset,
        offsets=dict(zip(document.groups, offsets, strict=True)),
        by_hour=document.by_hour,
        transform_id=document.transform_id,
        fingerprint=document.fingerprint,
    )


def read_document(store: Store, fingerprint: str, transform_id: str) -> TransformDocument:
    """Return the document of a stored transform. Raises as `read_transform` does."""
    key = f"{_folder(fingerprint)}/{transform_id}.json"
    try:
        document = TransformDocument.read(store, key)
    except ObjectMissing as missing:
        _refuse_other_model(store, fingerprint, transform_id)
        raise BadInput(
            f"there is no transform {transform_id} of model {fingerprint} in {store.uri}",
            remedy="fit one: clvr fit-transform RUN",
        ) from missing
    if (document.fingerprint, document.transform_id) != (fingerprint, transform_id):
        raise CorruptObject(f"{store.uri_of(key)} is of {document.transform_id}", remedy=_REMEDY)
    return document


def list_documents(store: Store, fingerprint: str) -> list[TransformDocument]:
    """Return the documents of all stored transforms of a model, oldest first."""
    keys: list[str] = []
    with ignore_missing_root(store):
        keys = [info.key for info in store.list(_folder(fingerprint)) if info.key.endswith(".json")]
    documents = [TransformDocument.read(store, key) for key in keys if not key.endswith("/default.json")]
    return sorted(documents, key=lambda document: (document.created, document.transform_id))


def resolve_transform(store: Store, fingerprint: str, name: str | None) -> str:
    """Return the id of a transform of a model, "" for none.

    name: an id, `latest`, `none`, or None for the stored default, which is `none` unless one was decided.
    Raises BadInput for `latest` if the model has none.
    """
    if name is None:
        default = default_transform(store, fingerprint)
        name = default.transform if default else NONE
    if name == LATEST:
        documents = list_documents(store, fingerprint)
        if not documents:
            raise BadInput(
                f"no transform of model {fingerprint} is stored in {store.uri}",
                remedy="fit one: clvr fit-transform RUN",
            )
        name = documents[-1].transform_id
    return "" if name == NONE else name


def store_default(store: Store, fingerprint: str, transform_id: str, reason: str) -> DefaultTransform:
    """Store which transform the generations of a model get without a flag; replaces an earlier decision."""
    default = DefaultTransform(fingerprint, transform_id or NONE, reason, utc_now())
    store.put(f"{_folder(fingerprint)}/default.json", default.to_json())
    return default


def default_transform(store: Store, fingerprint: str) -> DefaultTransform | None:
    """Return the stored decision for a model, None without one."""
    key = f"{_folder(fingerprint)}/default.json"
    try:
        default = DefaultTransform.read(store, key)
    except ObjectMissing:
        return None
    if default.fingerprint != fingerprint:
        raise FingerprintMismatch(f"{store.uri_of(key)} is of model {default.fingerprint}")
    return default


def _refuse_other_model(store: Store, fingerprint: str, transform_id: str) -> None:
    """Raise FingerprintMismatch if another model has a transform of this name."""
    folders: list[str] = []
    with ignore_missing_root(store):
        folders = list(store.folders("transforms"))
    for folder in folders:
        if store.head(f"{folder}/{transform_id}.json") is not None:
            raise FingerprintMismatch(
                f"the transform {transform_id} is of model {folder.rpartition('/')[2]}, not of {fingerprint}",
                remedy="Fit one on a run of this model: `clvr fit-transform RUN`.",
            )


def _folder(fingerprint: str) -> str:
    return f"transforms/{fingerprint}"


def _id_of(document: TransformDocument) -> str:
    content: dict[str, Any] = asdict(document)
    for name in ("transform_id", "created", "version"):
        del content[name]
    content["arrays"] = document.arrays.sha256
    return f"{document.kind}-{hashlib.sha256(encode_json(content)).hexdigest()[:_DIGITS]}"


def _arrays_of(transform: FeatureTransform, groups: tuple[Group, ...]) -> bytes:
    from safetensors.numpy import save

    arrays = {"offset": transform.offset}
    if transform.matrix is not None:
        arrays["matrix"] = np.ascontiguousarray(transform.matrix)
    if groups:
        arrays["offsets"] = np.stack([transform.offsets[group] for group in groups])
    data: bytes = save(arrays)
    return data


def _read_arrays(
    data: bytes,
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64], NDArray[np.float64]]:
    from safetensors.numpy import load

    arrays = load(data)
    offset = arrays["offset"]
    return arrays.get("matrix"), offset, arrays.get("offsets", np.empty((0, len(offset))))
