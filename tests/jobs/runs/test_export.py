"""`clvr runs export` writes a folder that FiftyOne opens, without erased crops and inside of the folder."""

import base64
import io
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from json_documents import read_result
from killed_writes import killed_at
from numpy.typing import NDArray
from PIL import Image

from index.archive.manifest import crop_id_of
from index.parquet import write_table
from index.runs.run import Run
from index.runs.tombstones import read_tombstones
from infra.errors import BadInput, BadSetting
from infra.settings import Settings, load_settings
from infra.store import Store, open_store
from jobs.generations.outputs import find_in_outputs, purge_outputs
from jobs.runs.export import CHANGED, ExportRequest, RunExport, export_run

IMAGES = 40
CROPS = IMAGES + 1
"""The archive does not hold the last crop: its URI names a file beside it."""
HOSTILE = ("up/..out.jpg", 'a "$date".jpg', "b\\u0022.jpg", "ü#x", "c'}]}.jpg")


@pytest.fixture
def archive(tmp_path: Path) -> Store:
    """40 JPEGs, of which the names of some have no suffix or try to end a JSON string."""
    archive = open_store(str(tmp_path / "archive"))
    archive.create_bucket()
    (tmp_path / "secret.jpg").write_bytes(jpeg(0))
    for number, key in enumerate(keys()):
        archive.put(key, jpeg(number))
    return archive


def keys() -> list[str]:
    return [*HOSTILE, *(f"{n:03}.jpg" for n in range(IMAGES - len(HOSTILE)))]


def jpeg(number: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(data, "JPEG")
    return data.getvalue()


@pytest.fixture
def run(archive: Store, store: Store, make_finished_run: Callable[..., Run], checkpoint: str) -> Run:
    uris = [archive.uri_of(key) for key in keys()]
    uris.append(f"{archive.uri}/../secret.jpg")
    etags = [*(info.etag for key in keys() if (info := archive.head(key))), ""]
    run: Run = make_finished_run(
        store,
        "r",
        range(CROPS),
        archive=archive.uri,
        model=checkpoint,
        attributes=True,
        uri=uris,
        etag=etags,
        camera_id=["001"] * CROPS,
        captured_at=[-1, *range(1_700_000_000_000, 1_700_000_000_000 + CROPS - 1)],
        vehicle_id=[number // 2 for number in range(CROPS)],
        model_id=[(3, 5, 8, None)[number % 4] for number in range(CROPS)],
    )
    return run


@pytest.fixture
def export(run: Run, store: Store, tmp_path: Path) -> Callable[..., RunExport]:
    """Export the run to `out`."""
    request, settings = ExportRequest("latest", tmp_path / "out"), load_settings({"runs": store.uri})
    return lambda **changes: export_run(replace(request, **changes), settings)


def documents(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return metadata.json and the samples by crop_id, whose fields are all declared."""
    metadata = json.loads((folder / "metadata.json").read_text())
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    declared = {field["db_field"] for field in metadata["sample_fields"]}
    assert all(sample.keys() <= declared for sample in samples)
    return metadata, {sample["crop_id"]: sample for sample in samples}


def vector(sample: dict[str, Any]) -> NDArray[np.float32]:
    data = zlib.decompress(base64.b64decode(sample["embedding"]["$binary"]["base64"]))
    array: NDArray[np.float32] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_samples_have_the_crop_its_prediction_its_labels_and_its_embedding(
    export: Callable[..., RunExport], archive: Store, tmp_path: Path, look_alikes: Any
) -> None:
    archive.put(keys()[7], jpeg(200))
    archive.delete(keys()[8])
    labels = tmp_path / "labels.csv"
    labels.write_text(f"key,vehicle_id,model_id,split,color\n{keys()[9]},77,13,train,red\n")
    exported = export(labels=str(labels))
    assert (exported.crops, exported.chosen, exported.copied) == (IMAGES - 1, CROPS, 0)
    assert (exported.unreadable, exported.changed) == (2, 1)
    assert read_result("runs export", exported)["run_id"] == "r"
    metadata, samples = documents(tmp_path / "out")
    assert metadata["info"]["fingerprint"] == exported.fingerprint
    by_path = {sample["filepath"]: sample for sample in samples.values()}
    assert by_path.keys() == {archive.uri_of(key) for key in keys() if key != keys()[8]}
    first, labelled, other = (by_path[archive.uri_of(keys()[n])] for n in (0, 9, 7))
    assert first["captured_at"] is None
    assert other["captured_at"]["$date"]["$numberLong"] == "1700000000006"
    assert (other["tags"], labelled["tags"]) == ([CHANGED], ["train"])
    assert (labelled["vehicle_id"], labelled["model"]["label"]) == ("77", "model 13")
    assert labelled["color"]["label"] == "red"
    assert (other["vehicle_id"], other["model"]) == ("3", None)
    assert other["predicted_model"]["label"] == "model 0"
    assert other["predicted_model"]["confidence"] == pytest.approx(0.5)
    np.testing.assert_array_equal(vector(labelled), look_alikes(np.array([9]))[0])


def test_copied_images_are_named_by_their_number_whatever_they_are_called(
    export: Callable[..., RunExport], archive: Store, tmp_path: Path
) -> None:
    archive.put(keys()[6], b"no image")
    exported = export(copy=True)
    assert (exported.copied, exported.unreadable) == (IMAGES - 1, 2)
    _, samples = documents(tmp_path / "out")
    ids = [str(crop_id_of(archive.uri_of(key))) for key in keys() if key != keys()[6]]
    images = {f"data/{crop_id}.jpg" for crop_id in ids}
    assert files(tmp_path / "out") == {"export.json", "metadata.json", "samples.json", *images}
    assert {sample["filepath"] for sample in samples.values()} == images
    assert (tmp_path / "out" / f"data/{ids[0]}.jpg").read_bytes() == jpeg(0)
    assert not (tmp_path / "out.jpg").exists()


def test_a_limit_takes_the_same_crops_each_time_and_matches_and_splits_select(
    export: Callable[..., RunExport], archive: Store, tmp_path: Path, store: Store
) -> None:
    outside = crop_id_of(archive.uri_of("../secret.jpg"))  # which the limit counts, wherever its hash puts it
    lowest = sorted([outside, *(crop_id_of(archive.uri_of(key)) for key in keys())])[:7]
    lowest = [crop_id for crop_id in lowest if crop_id != outside]
    exported = export(limit=7)
    assert (exported.crops, exported.unreadable, exported.chosen) == (len(lowest), 7 - len(lowest), CROPS)
    assert documents(tmp_path / "out")[1].keys() == {str(crop_id) for crop_id in lowest}

    found = [lowest[3], lowest[3], lowest[1], None, 5]
    table = {"crop_id": found, "rank": [1, 2, 3, None, 4], "distance": [0.5, 0.6, 0.7, None, 0.8]}
    write_table(store, "matches.parquet", pa.table(table), metadata={})
    exported = export(matches=store.uri_of("matches.parquet"))
    _, samples = documents(tmp_path / "out")
    ranks = {crop_id: (sample["rank"], sample["distance"]) for crop_id, sample in samples.items()}
    assert ranks == {str(lowest[3]): (1, 0.5), str(lowest[1]): (3, 0.7)}

    labels = tmp_path / "labels.csv"
    rows = "".join(f"{key},{n},{'test' if n < 3 else 'train'}\n" for n, key in enumerate(keys()[9:15]))
    labels.write_text(f"key,vehicle_id,split\n{rows}")
    export(labels=str(labels), split="test")
    assert {sample["uri"] for sample in documents(tmp_path / "out")[1].values()} == {
        archive.uri_of(key) for key in keys()[9:12]
    }
    with pytest.raises(BadSetting, match="--labels"):
        export(split="test")
    with pytest.raises(BadInput, match="none of the crops"):
        write_table(store, "other.parquet", pa.table({"crop_id": [5]}), metadata={})
        export(matches=store.uri_of("other.parquet"))


def test_a_folder_with_other_files_is_left_alone(export: Callable[..., RunExport], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metadata.json").write_text("{}")
    with pytest.raises(BadSetting, match="holds other files"):
        export()
    assert files(tmp_path / "out") == {"metadata.json"}


def test_erased_crops_are_not_exported_and_leave_exports_by_a_purge(
    export: Callable[..., RunExport],
    archive: Store,
    store: Store,
    tmp_path: Path,
    hide: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, third = (crop_id_of(archive.uri_of(key)) for key in keys()[10:13])
    hide(store, [first])
    export(copy=True)
    (tmp_path / "out/notes.txt").write_text("a user's file")
    assert str(first) not in documents(tmp_path / "out")[1]
    assert not (tmp_path / f"out/data/{first}.jpg").exists()

    hide(store, [second])
    places = find_in_outputs([store], read_tombstones(store))
    assert [(place.kind, place.found) for place in places] == [("dataset", IMAGES - 1 + 3)]
    purge_outputs([store], read_tombstones(store))
    assert not sum(place.found for place in find_in_outputs([store], read_tombstones(store)))
    assert files(tmp_path / "out") == {"notes.txt"}

    (tmp_path / "out/notes.txt").unlink()
    put = Store.put

    def erase_first(to: Store, key: str, data: bytes | Path) -> None:
        if key == "metadata.json":
            hide(store, [third])
        put(to, key, data)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "put", erase_first)
        with pytest.raises(BadInput, match="was erased meanwhile"):
            export(copy=True)
    assert files(tmp_path / "out") == set()


def test_a_killed_export_is_found_by_a_purge_and_written_by_the_same_command(
    export: Callable[..., RunExport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, kills = 0, 0
    exports: list[RunExport] = []
    while killed_at(number := number + 1, lambda: exports.append(export(copy=True, limit=3)), monkeypatch):
        kills += 1
        assert not (tmp_path / "out/metadata.json").exists()
    assert kills > 6
    (done,) = exports
    # The crop outside of the archive may be one of the three: crop_ids depend on the path.
    assert done.crops + done.unreadable == 3 and done.unreadable <= 1
    assert len(documents(tmp_path / "out")[1]) == done.crops


@pytest.mark.integration
def test_images_in_s3_are_copied(
    bucket: str,
    store: Store,
    seaweedfs: Any,
    make_finished_run: Callable[..., Run],
    checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    settings: Settings = load_settings({"runs": store.uri})
    archive = open_store(bucket)
    for number in range(3):
        archive.put(f"{number:06d}.jpg", jpeg(number))
    make_finished_run(store, "r", range(3), archive=bucket, model=checkpoint)
    exported = export_run(ExportRequest("r", tmp_path / "out", limit=2), settings)
    assert (exported.crops, exported.copied, exported.chosen, exported.changed) == (2, 2, 3, 2)
    _, samples = documents(tmp_path / "out")
    for crop_id, sample in samples.items():
        assert sample["filepath"] == f"data/{crop_id}.jpg"
        assert (tmp_path / "out" / sample["filepath"]).read_bytes() == archive.get(
            sample["uri"].removeprefix(f"{bucket}/")
        )


FIFTYONE = """
import json, sys
import fiftyone as fo
dataset = fo.Dataset.from_dir(sys.argv[1], dataset_type=fo.types.FiftyOneDataset)
dataset.compute_metadata()
sample = dataset.match(fo.ViewField("uri") == sys.argv[2]).first()
results = dataset.exists("model").evaluate_classifications("predicted_model", gt_field="model")
merged = fo.Dataset.from_dir(sys.argv[1], dataset_type=fo.types.FiftyOneDataset)
merged.merge_samples(dataset, key_field="crop_id")
print(json.dumps({
    "samples": len(dataset), "merged": len(merged), "width": sample.metadata.width,
    "image": sample.filepath, "camera": sample.camera_id, "at": sample.captured_at.isoformat(),
    "predicted": [sample.predicted_model.label, sample.predicted_model.confidence],
    "color": sample.predicted_color and sample.predicted_color.label,
    "model": sample.model.label, "models": dataset.distinct("model.label"), "evaluated": len(results.ypred),
    "embedding": sample.embedding.tolist(), "info": dataset.info, "clone": len(dataset.clone()),
}))
"""


@pytest.mark.slow
def test_fiftyone_itself_opens_the_folder(
    export: Callable[..., RunExport], archive: Store, tmp_path: Path, look_alikes: Any
) -> None:
    """FIFTYONE_PYTHON names a Python that has FiftyOne; without a MongoDB, see FIFTYONE_DATABASE_URI."""
    python = os.environ.get("FIFTYONE_PYTHON", sys.executable)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if subprocess.run([python, "-c", "import fiftyone"], capture_output=True, env=environment).returncode:
        pytest.skip("FiftyOne is not installed")
    exported = export(copy=True)
    command = [python, "-c", FIFTYONE, exported.folder, archive.uri_of(keys()[5])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert read["samples"] == read["merged"] == read["clone"] == IMAGES
    assert read["image"] == f"{exported.folder}/data/{crop_id_of(archive.uri_of(keys()[5]))}.jpg"
    assert (read["width"], read["camera"], read["at"]) == (8, "001", "2023-11-14T22:13:20.004000")
    assert read["predicted"] == ["model 5", pytest.approx(0.5)]
    assert (read["color"], read["model"]) == ("red", "model 5")
    assert read["models"] == ["model 3", "model 5", "model 8"]
    assert read["evaluated"] == 3 * IMAGES // 4
    assert read["embedding"] == look_alikes(np.array([5]))[0].tolist()
    assert read["info"]["fingerprint"] == exported.fingerprint
