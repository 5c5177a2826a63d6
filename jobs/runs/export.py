"""`clvr runs export`: the crops of a run with their predictions and labels, as a dataset for FiftyOne."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clvr_model.card import read_card
from clvr_model.image_headers import read_header
from index.archive.labels import label_texts, label_uris, read_label_table, require_fit, with_labels
from index.archive.members import split_member
from index.archive.reader import ArchiveReader
from index.documents import package_version
from index.generations.load_plan import LoadPlan, plan_load
from index.outputs import record_output
from index.runs.run import Run
from index.runs.shards import vectors_of
from index.runs.tombstones import ErasedCrops, read_tombstones
from index.schema import ATTRIBUTES, LABEL_COLUMNS, MANIFEST_SCHEMA, UNKNOWN_LABEL, UNKNOWN_TIME
from infra.errors import (
    BadInput,
    BadSetting,
    BucketMissing,
    ClvrError,
    CredentialsRejected,
    StoreUnreachable,
    UnreadableImage,
    UnusableKey,
)
from infra.logging import logger
from infra.settings import Settings
from infra.store import Store, open_store, read_user_table
from infra.store.cells import Kind
from infra.store.interrupted import remove_interrupted_writes
from infra.store.scratch import ScratchFolder
from jobs.runtime.fiftyone import (
    EXPORT,
    METADATA,
    SAMPLES,
    FieldKind,
    Label,
    SampleWriter,
    Value,
    dataset_keys,
    image_key,
    metadata_document,
)
from jobs.runtime.format import model_name
from jobs.runtime.resolve import find_run

CHANGED = "changed"
"""The tag of a crop whose image is not the one that was embedded, by its etag."""

_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp"}
_MATCH_KINDS: dict[str, Kind] = {
    "crop_id": "integer",
    "rank": "integer",
    "distance": "number",
    "likelihood": "number",
    "verdict": "text",
    "probe_id": "text",
}
_FIELD_KINDS: dict[Kind, FieldKind] = {"integer": "whole", "number": "number", "text": "text"}
_IN_FLIGHT = 16

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What is exported.

    labels, split: a table as for `clvr evaluate`; of a split only its crops. matches: the --table of a search
    or a sweep; only its crops, each with its first row. limit: of more crops, the same random ones each time.
    copy: also images that FiftyOne could open where they are.
    """

    run: str
    folder: Path
    labels: str | None = None
    split: str | None = None
    matches: str | None = None
    limit: int = 10_000
    copy: bool = False


@dataclass(frozen=True, slots=True)
class RunExport:
    """What was written. chosen: crops that were asked for. copied: images below the folder.

    unreadable: crops that were left out, because their image is gone, unreadable or was erased. changed:
    crops whose image is not the one that was embedded.
    """

    folder: str
    run_id: str
    fingerprint: str
    crops: int
    chosen: int
    copied: int
    unreadable: int
    changed: int

    def to_text(self) -> str:
        """Return the counts, and how to open the folder."""
        counts = [f"{self.crops:,} of {self.chosen:,} crops of run {self.run_id}"]
        if self.copied:
            counts.append(f"{self.copied:,} images copied")
        if self.unreadable:
            counts.append(f"{self.unreadable:,} left out without a readable image")
        if self.changed:
            counts.append(f"{self.changed:,} tagged {CHANGED}: another image than the one that was embedded")
        return (
            f"{self.folder}: {', '.join(counts)}\n"
            f"open it: fo.Dataset.from_dir({self.folder!r}, dataset_type=fo.types.FiftyOneDataset)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Image:
    """Where the image of a crop is: an absolute path, or a key below the folder."""

    path: str
    etag: str
    copied: bool


def export_run(request: ExportRequest, settings: Settings) -> RunExport:
    """Write crops of a finished run into a local folder, in the format of FiftyOne.

    Images in a local folder stay where they are; those in S3 and in containers are copied. In memory are the
    rows of the chosen crops without their embeddings, and the labels. Erased crops are left out.
    Raises BadSetting if the folder holds other files, BadInput if no crop is left or one was erased
    meanwhile, BadLabels, CorruptObject, StoreError.
    """
    if request.split is not None and request.labels is None:
        raise BadSetting("--split selects rows of --labels, which is not given", remedy="Add --labels.")
    run = find_run(request.run, settings)
    labels = read_label_table(request.labels, split=request.split) if request.labels else None
    matches = _read_matches(request.matches) if request.matches else None
    plan = plan_load([run], verify=False)
    wanted = _wanted_ids(run, labels if request.split is not None else None, matches)
    chosen, total = _choose(plan, wanted, request.limit)
    if not len(chosen):
        raise BadInput(
            f"none of the crops asked for has an embedding in run {run.run_id}",
            remedy="Check --split and --matches; `clvr quarantine` lists crops without an embedding.",
        )
    crops = _labelled_crops(run, chosen, labels, request.labels or "")
    folder = _prepare(request.folder)
    record_output(run.store, "dataset", folder.uri, chosen.tolist())
    info = {
        "run": run.run_id,
        "archive": run.info.archive,
        "checkpoint": run.info.model,
        "fingerprint": run.fingerprint,
        "release": package_version(),
    }
    folder.put(EXPORT, json.dumps(info, indent=1).encode())
    images = dict(_place_images(run, crops, folder, copy=request.copy, erased=read_tombstones(run.store)))
    if not images:
        raise BadInput(
            f"no image of the {len(chosen):,} chosen crops can be read in {run.info.archive}",
            remedy="Check that the archive is still there.",
        )
    changed = _write_samples(run, plan, crops, images, matches, labels, folder)
    fields = _fields(plan, labels, matches)
    folder.put(METADATA, metadata_document(f"clvr-{run.run_id}", fields, info))
    # A purge has either not started, and will see the folder, or is seen here.
    if read_tombstones(run.store).erased_ids(images):
        folder.delete(*dataset_keys(folder))
        raise BadInput(f"a crop in {folder.uri} was erased meanwhile", remedy="Run the same command again.")
    return RunExport(
        folder=folder.uri,
        run_id=run.run_id,
        fingerprint=run.fingerprint,
        crops=len(images),
        chosen=total,
        copied=sum(image.copied for image in images.values()),
        unreadable=len(chosen) - len(images),
        changed=changed,
    )


def _prepare(target: Path) -> Store:
    """Return an empty folder: a new one, or that of an earlier export. Raises BadSetting for another one."""
    is_other = target.is_dir() and not (target / EXPORT).is_file()
    # A purge of an export leaves empty folders.
    if (is_other and any(not path.is_dir() for path in target.rglob("*"))) or target.is_file():
        raise BadSetting(f"{target} holds other files", remedy="Name a new or an empty folder.")
    folder = open_store(str(target))
    folder.create_bucket()
    folder.delete(*dataset_keys(folder))
    remove_interrupted_writes(folder)
    return folder


def _read_matches(uri: str) -> pa.Table:
    table = read_user_table(uri, _MATCH_KINDS, required=["crop_id"])
    table = table.filter(pc.is_valid(table["crop_id"]))  # a probe of a sweep without a match has no crop
    first = np.unique(table["crop_id"].to_numpy(), return_index=True)[1]
    return table.take(pa.array(first))


def _wanted_ids(run: Run, split: pa.Table | None, matches: pa.Table | None) -> Ids | None:
    """Return the crop_ids of a split and of matches, of those in both if both are given; None for all."""
    wanted: Ids | None = None if matches is None else matches["crop_id"].to_numpy()
    if split is not None:
        uris = pa.array(label_uris(split, run.info.archive).to_pylist(), pa.string())
        found = [
            rows["crop_id"].filter(pc.is_in(rows["uri"], value_set=uris)).to_numpy()
            for rows in run.manifest_tables()
        ]
        of_split = np.concatenate([np.empty(0, np.int64), *found])
        wanted = of_split if wanted is None else np.intersect1d(wanted, of_split)
    return wanted


def _choose(plan: LoadPlan, wanted: Ids | None, limit: int) -> tuple[Ids, int]:
    """Return the crop_ids (n,) to export, ascending, and how many there are without the limit.

    A crop_id is a hash of the crop's URI, so the lowest ones are a random sample, and the same one in every
    run of the archive.
    """
    chosen: list[Ids] = []
    left, total = limit, 0
    for rows in plan.id_ranges():
        ids = rows.ids if wanted is None else rows.ids[np.isin(rows.ids, wanted)]
        total += len(ids)
        chosen.append(ids[:left].copy())
        left -= len(chosen[-1])
    return np.concatenate([np.empty(0, np.int64), *chosen]), total


def _labelled_crops(run: Run, chosen: Ids, labels: pa.Table | None, source: str) -> pa.Table:
    """Return the rows (n) of the manifest of the chosen crops, with the labels joined to them."""
    values = pa.array(chosen)
    rows = [table.filter(pc.is_in(table["crop_id"], value_set=values)) for table in run.manifest_tables()]
    crops = pa.concat_tables([MANIFEST_SCHEMA.empty_table(), *rows])
    if labels is not None and set(LABEL_COLUMNS) & set(labels.schema.names):
        crops, report = with_labels(crops, labels, archive=run.info.archive)
        require_fit(report, crops, source)
    return crops


def _place_images(
    run: Run, crops: pa.Table, folder: Store, *, copy: bool, erased: ErasedCrops
) -> Iterator[tuple[int, _Image]]:
    """Yield (crop_id, image) of the crops whose image can be read; copy those that must be."""
    reader = ArchiveReader(open_store(run.info.archive))
    reader.store.ensure()
    to_copy = []
    for crop_id, uri in zip(crops["crop_id"].to_pylist(), crops["uri"].to_pylist(), strict=True):
        if not reader.holds(uri):
            continue
        if copy or not reader.store.local or split_member(uri):
            to_copy.append((crop_id, uri))
            continue
        with suppress(UnusableKey):  # one that would leave the archive
            if (found := reader.head(uri)) is not None:
                yield crop_id, _Image(uri, found.etag, copied=False)
    for position, body in reader.fetch_many([uri for _, uri in to_copy], in_flight=_IN_FLIGHT):
        if isinstance(body, StoreUnreachable | CredentialsRejected | BucketMissing):
            raise body
        if isinstance(body, ClvrError) or erased.is_erased_content(body.data):
            continue
        crop_id = to_copy[position][0]
        with suppress(UnreadableImage):
            key = image_key(crop_id, _SUFFIXES[read_header(body.data).format])
            folder.put(key, body.data)
            yield crop_id, _Image(key, body.etag, copied=True)


def _fields(plan: LoadPlan, labels: pa.Table | None, matches: pa.Table | None) -> dict[str, FieldKind]:
    fields: dict[str, FieldKind] = {
        "crop_id": "text",
        "uri": "text",
        "camera_id": "text",
        "track_id": "text",
        "captured_at": "time",
        "vehicle_id": "text",
        "model": "label",
        "predicted_model": "label",
        "embedding": "vector",
    }
    if plan.schema_version > 1:
        fields |= {f"predicted_{name}": "label" for name in ATTRIBUTES}
    fields |= {name: "label" for name in ATTRIBUTES if labels is not None and name in labels.schema.names}
    if matches is not None:
        names = [name for name in matches.schema.names if name != "crop_id"]
        fields |= {name: _FIELD_KINDS[_MATCH_KINDS[name]] for name in names}
    return fields


def _write_samples(
    run: Run,
    plan: LoadPlan,
    crops: pa.Table,
    images: dict[int, _Image],
    matches: pa.Table | None,
    labels: pa.Table | None,
    folder: Store,
) -> int:
    """Write samples.json, a row group of the shards at a time; return how many crops have another image."""
    names = _model_names(run)
    known = _known_values(run, crops, names, labels, matches)
    changed = 0
    with ScratchFolder() as scratch:
        path = scratch.path / SAMPLES
        with path.open("wb") as file:
            writer = SampleWriter(file, _fields(plan, labels, matches))
            for batch in _rows_of(plan, np.fromiter(images, np.int64, len(images))):
                rows = batch.drop_columns(["embedding"]).to_pylist()
                for row, vector in zip(rows, vectors_of(batch), strict=True):
                    values, tags, etag = known[row["crop_id"]]
                    image = images[row["crop_id"]]
                    if etag and image.etag != etag:
                        changed += 1
                        tags = [*tags, CHANGED]
                    predicted = {**values, **_predictions(row, names), "embedding": vector}
                    writer.write(row["crop_id"], image.path, predicted, tags)
            writer.close()
        folder.put(SAMPLES, path)
    return changed


def _rows_of(plan: LoadPlan, wanted: Ids) -> Iterator[pa.Table]:
    """Yield the rows of crops, by row groups; groups without any are not read beyond their crop_ids."""
    for shard in plan.shards:
        with shard.open() as file:
            for group in range(file.num_row_groups):
                mask = np.isin(file.read_row_group(group, ["crop_id"])["crop_id"].to_numpy(), wanted)
                if mask.any():
                    yield file.read_row_group(group).filter(pa.array(mask))


def _known_values(
    run: Run,
    crops: pa.Table,
    names: dict[int, str],
    labels: pa.Table | None,
    matches: pa.Table | None,
) -> dict[int, tuple[dict[str, Value], list[str], str]]:
    """Return what the manifest, the labels and the matches say of each crop, its tags and its etag."""
    archive, uris = run.info.archive, crops["uri"].to_pylist()
    nothing = [""] * len(uris)
    texts = {
        name: (labels is not None and label_texts(labels, name, uris, archive)) or nothing
        for name in ("split", *ATTRIBUTES)
    }
    of_match = {row["crop_id"]: row for row in matches.to_pylist()} if matches is not None else {}
    known: dict[int, tuple[dict[str, Value], list[str], str]] = {}
    for place, crop in enumerate(crops.to_pylist()):
        values: dict[str, Value] = {
            "crop_id": str(crop["crop_id"]),  # FiftyOne's page is JavaScript, which rounds such integers
            "uri": crop["uri"],
            "camera_id": crop["camera_id"] or None,
            "track_id": crop["track_id"] or None,
            "captured_at": None if crop["captured_at"] == UNKNOWN_TIME else crop["captured_at"],
            "vehicle_id": _number(crop["vehicle_id"]),
            "model": _label(names, crop["model_id"]),
        }
        values |= {name: Label(texts[name][place]) for name in ATTRIBUTES if texts[name][place]}
        match = of_match.get(crop["crop_id"], {})
        values |= {name: match[name] for name in match.keys() - {"crop_id"}}
        split = texts["split"][place]
        known[crop["crop_id"]] = (values, [split] if split else [], crop["etag"])
    return known


def _model_names(run: Run) -> dict[int, str]:
    try:
        return dict(read_card(run.info.model).label_names)
    except ClvrError as error:
        logger.warning(f"vehicle models have numbers only, no names: {error.message}")
        return {}


def _predictions(row: dict[str, Any], names: dict[int, str]) -> dict[str, Value]:
    values: dict[str, Value] = {"predicted_model": _label(names, row["model_id"], row["model_confidence"])}
    for name in ATTRIBUTES:
        if row.get(name):
            values[f"predicted_{name}"] = Label(row[name], row[f"{name}_confidence"])
    return values


def _number(label: int | None) -> str | None:
    return None if label in (None, UNKNOWN_LABEL) else str(label)


def _label(names: dict[int, str], model: int | None, confidence: float | None = None) -> Label | None:
    if model is None or model == UNKNOWN_LABEL:
        return None
    return Label(model_name(names, model), confidence)
