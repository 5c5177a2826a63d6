"""`clvr evaluate` of finished runs: lists, splits, excluded crops, the page, comparisons of runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from json_documents import read_result
from labelled_runs import VEHICLES, Make

from clvr_model.checkpoint import load_checkpoint
from index.evaluation.protocols import evaluate_protocol
from index.outputs import list_outputs
from index.transforms.fitting import TransformSettings, fit_features
from infra.errors import BadInput, BadLabels, BadSetting, FingerprintMismatch
from infra.settings import Settings
from infra.store import open_store
from jobs.evaluate.compare import compare_runs
from jobs.evaluate.dataset import evaluation_lists, labelled_run
from jobs.evaluate.evaluate import evaluate_run
from jobs.evaluate.results import EvaluateRequest


def test_a_labelled_run_is_evaluated_with_variants_and_a_page(
    make_run: Make, settings: Settings, tmp_path: Path
) -> None:
    make_run("r1")
    variants = ("normalised", "query-expansion", "re-ranking")
    request = EvaluateRequest(
        "latest", html=tmp_path / "page.html", table=str(tmp_path / "figures.parquet"), variants=variants
    )
    result = evaluate_run(request, settings)
    figures = read_result("evaluate", result)["lists"][0]
    names = [(row["protocol"], row["features"].split(",")[0]) for row in figures["protocols"]]
    assert names[:2] == [("vehicleid-paper", "as embedded"), ("vehicleid-common", "as embedded")]
    applied = ("vehicleid-paper", "vehicleid-common", "cross-camera", "within-model")
    assert [name for name, features in names if features == "as embedded"] == list(applied)
    assert len(names) == 4 + 4 * 3
    assert [oracle["recognises"] for oracle in figures["oracles"]["vehicleid-paper"]] == ["model"]
    assert figures["protocols"][0]["repeats"] == 10
    assert len(figures["by_camera_pair"]) == 12
    assert {part["name"] for part in figures["by_day_part"]} <= {"night", "morning", "afternoon", "evening"}
    assert figures["model_classification"]["micro"] == 1.0
    page = (tmp_path / "page.html").read_text()
    for part in (
        "Table 1",
        "Variants on the same splits",
        "Distances of same and different vehicles",
        "Vehicle models",
    ):
        assert part in page
    assert "by_camera_pair" in json.loads((tmp_path / "page.json").read_text())["lists"][0]
    assert "re-ranking" in result.to_text()
    table = pq.read_table(tmp_path / "figures.parquet").to_pylist()
    assert [(row["protocol"], row["features"].split(",")[0]) for row in table] == names
    assert table[0]["rank-1_mean"] == figures["protocols"][0]["cmc"]["rank-1"]["mean"]
    recorded = {output.uri: len(output.crops) for output in list_outputs(open_store(settings.runs))}
    crops = len(result.labelled.crop_ids)
    assert recorded == {str(tmp_path / "page.html"): crops, str(tmp_path / "page.json"): 0}


def test_features_of_unit_length_have_no_variant_of_normalised_ones(
    make_run: Make, settings: Settings
) -> None:
    for run, names in (("plain", {"as embedded", "L2-normalised"}), ("unit", {"as embedded"})):
        make_run(run, unit_length=run == "unit")
        figures = evaluate_run(EvaluateRequest(run, repeats=1), settings).to_json()["lists"][0]
        assert {row["features"] for row in figures["protocols"]} == names


def test_a_baseline_ranks_the_same_splits_and_is_on_the_page(
    make_run: Make, settings: Settings, checkpoint: str, tmp_path: Path
) -> None:
    make_run(
        "r1", noise=2.0, fingerprint=load_checkpoint(checkpoint).fingerprint
    )  # found, not embedded again
    make_run("r2", quarantined=2)
    request = EvaluateRequest(
        "r2", html=tmp_path / "page.html", baseline=checkpoint, variants=(), protocols=("vehicleid-paper",)
    )
    result = evaluate_run(request, settings)
    plain, baseline = result.to_json()["lists"][0]["protocols"]
    assert baseline["features"] == "baseline: inception_v3, untrained"
    assert baseline["probes"] == plain["probes"]
    assert baseline["map"]["mean"] < plain["map"]["mean"]
    share = 100 * baseline["cmc"]["rank-1"]["mean"]
    assert f"{share:.1f} % &middot; baseline: inception_v3, untrained" in (tmp_path / "page.html").read_text()
    make_run("r3", fingerprint=load_checkpoint(checkpoint).fingerprint, quarantined=4)
    with pytest.raises(BadInput, match="run r3 lacks 2 of 58 labelled crops"):
        evaluate_run(request, settings)


def test_transforms_are_reported_beside_plain_l2_in_every_protocol(
    make_run: Make, settings: Settings
) -> None:
    make_run("r1", noise=0.2)
    kinds = ("whiten", "camera", "whiten-camera")
    protocols = ("vehicleid-paper", "cross-camera", "within-model")
    request = EvaluateRequest("r1", protocols=protocols, repeats=2, variants=(), transforms=kinds)
    result = evaluate_run(request, settings)
    (listed,) = result.lists
    assert {each.features for each in listed.results} == {"as embedded"}
    rows = [(each.name, each.features) for each in listed.variants]
    assert rows == [
        (each.name, f"{kind}, fitted to the gallery without labels")
        for each in listed.results
        for kind in kinds
    ]
    for variant, plain in zip(listed.variants[::3], listed.results, strict=True):
        assert [split.probes.tolist() for split in variant.splits] == [
            split.probes.tolist() for split in plain.splits
        ]
    # The transform of a split is that of its gallery alone.
    images, split = result.labelled, listed.results[0].splits[1]
    transform = fit_features(images.features[split.gallery], TransformSettings("whiten"))
    expected = evaluate_protocol(
        "vehicleid-paper", transform(images.features), images.vehicle_ids, splits=[split]
    )
    assert listed.variants[0].curves[1].tolist() == expected.curves[0].tolist()
    assert "whiten-camera, fitted to the gallery without labels" in result.to_text()
    with pytest.raises(BadSetting, match="pca"):
        evaluate_run(EvaluateRequest("r1", transforms=("pca",)), settings)


def test_every_test_list_of_vehicleid_is_evaluated(
    make_run: Make, settings: Settings, tmp_path: Path
) -> None:
    make_run("r1", labelled=False)
    folder = tmp_path / "lists" / "train_test_split"
    folder.mkdir(parents=True)
    for vehicles in (4, 12):
        lines = [f"{row:07d} {v}" for row, v in enumerate(VEHICLES.tolist()) if v < vehicles]
        (folder / f"test_list_{vehicles}.txt").write_text("\n".join(lines))
    request = EvaluateRequest("r1", labels=str(tmp_path / "lists"), repeats=2, variants=())
    result = evaluate_run(request, settings)
    assert [(listed.labelled.name, listed.results[0].vehicles) for listed in result.lists] == [
        ("test_4", 4),
        ("test_12", 12),
    ]
    alone = evaluate_run(
        EvaluateRequest("r1", labels=str(tmp_path / "lists"), split="test_4", repeats=2, variants=()),
        settings,
    )
    assert alone.results[0].curves.tolist() == result.lists[0].results[0].curves.tolist()


def test_the_page_shows_every_list_and_does_not_take_it_for_the_paper_s(
    make_run: Make, settings: Settings, tmp_path: Path
) -> None:
    make_run("r1", labelled=False)
    folder = tmp_path / "lists" / "train_test_split"
    folder.mkdir(parents=True)
    for name, vehicles in (("800", 4), ("3200", 12)):
        lines = [f"{row:07d} {v}" for row, v in enumerate(VEHICLES.tolist()) if v < vehicles]
        (folder / f"test_list_{name}.txt").write_text("\n".join(lines))
    page = tmp_path / "page.html"
    evaluate_run(
        EvaluateRequest(
            "r1", labels=str(tmp_path / "lists"), repeats=2, variants=(), html=page, ap="trapezoid"
        ),
        settings,
    )
    text = page.read_text()
    first, second = text.split(">List test_800</h2>")[1].split(">List test_3200</h2>")
    assert "The list has 20 images, and the paper&#39;s list of that name 6,493" in first
    assert "none of the paper" in second
    assert "mAP, trapezoid" in first
    protocols = json.loads(page.with_suffix(".json").read_text())["lists"][1]["protocols"]
    assert protocols[0]["map_trapezoid"]["mean"] < protocols[0]["map"]["mean"]


def test_lists_with_roles_need_images_of_the_run(make_run: Make, settings: Settings, tmp_path: Path) -> None:
    make_run("r1", labelled=False)
    folder = tmp_path / "archive"
    (folder / "train_test_split").mkdir(parents=True)
    (folder / "train_test_split" / "vehicle_info.txt").write_text("header\n")
    with pytest.raises(BadLabels, match="none of VERI-Wild's test lists"):
        evaluate_run(EvaluateRequest("r1", labels=str(folder)), settings)
    # The layout of VRIC, with keys that this archive does not have.
    (folder / "train_test_split" / "vehicle_info.txt").unlink()
    (folder / "vric_probe.txt").write_text("a.jpg 1 1\n")
    (folder / "vric_gallery.txt").write_text("b.jpg 1 2\n")
    with pytest.raises(BadLabels, match=r"list vric labels 0 of 60 crops: it names .*, the archive has"):
        evaluate_run(EvaluateRequest("r1", labels=str(folder)), settings)


def test_the_lists_of_a_dataset_without_cameras_are_evaluated_as_listed(
    make_run: Make, settings: Settings, tmp_path: Path
) -> None:
    make_run("r1", labelled=False)
    folder = tmp_path / "lists" / "query_ref"
    folder.mkdir(parents=True)
    lines = [f"{row:07d} {vehicle} {vehicle % 4} 1\n" for row, vehicle in enumerate(VEHICLES.tolist())]
    (folder / "querylist.txt").write_text("".join(lines[::5]))
    (folder / "small_set.txt").write_text("".join(lines))
    (listed,) = evaluate_run(EvaluateRequest("r1", labels=str(folder.parent)), settings).lists
    (result,) = listed.results
    assert (result.name, result.has_user_splits) == ("listed", True)
    assert (result.probes, result.gallery) == (12, 60)
    assert listed.labelled.dataset == "PKU-VD"
    with pytest.raises(BadLabels, match="has no test list 'large'"):
        evaluate_run(EvaluateRequest("r1", labels=str(folder.parent), split="large"), settings)
    with pytest.raises(BadLabels, match="protocol listed: the labels have no list of probes"):
        table = tmp_path / "labels.csv"
        rows = (f"image/{row:07d}.jpg,{vehicle}\n" for row, vehicle in enumerate(VEHICLES.tolist()))
        table.write_text("key,vehicle_id\n" + "".join(rows))
        evaluate_run(EvaluateRequest("r1", labels=str(table), protocols=("listed",)), settings)


def test_excluded_crops_and_labels_are_counted_with_the_reason(
    make_run: Make, settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_run("r1", labelled=False, quarantined=2)
    keys = [f"image/{row:07d}.jpg" for row in range(51)] + ["image/gone.jpg"]
    table = {"key": keys, "vehicle_id": [*VEHICLES[:51].tolist(), 99]}
    pq.write_table(pa.table(table), tmp_path / "labels.parquet")
    result = evaluate_run(
        EvaluateRequest("r1", labels=str(tmp_path / "labels.parquet"), variants=()), settings
    )
    output = re.sub(r"\s+", " ", capfd.readouterr().err)
    for part in (
        "49 crops with a vehicle id",
        "9 embedded crops have no vehicle id",
        "2 labelled crops have no embedding",
        "1 labels name no crop of this run, such as",
        "1 vehicles have one image only",
    ):
        assert part in output
    assert result.results[0].excluded_vehicles == 1


@pytest.mark.parametrize("unknown", ["-1", "", "NULL"])
def test_vehicles_that_are_unknown_are_left_out_however_that_is_written(
    make_run: Make, settings: Settings, tmp_path: Path, unknown: str
) -> None:
    run = make_run("r1", labelled=False)
    lines = [f"image/{row:07d}.jpg,{VEHICLES[row] if row < 30 else unknown}\n" for row in range(60)]
    (tmp_path / "labels.csv").write_text("key,vehicle_id\n" + "".join(lines))
    labels = evaluation_lists(str(tmp_path / "labels.csv"), None)[0]
    labelled = labelled_run(run, labels)
    rows = [int(uri.rpartition("/")[2].removesuffix(".jpg")) for uri in labelled.crops["uri"].to_pylist()]
    assert sorted(rows) == list(range(30))  # in the order of the shards, which is by cameras
    assert labelled.vehicle_ids.tolist() == VEHICLES[rows].tolist()
    assert labelled.unlabelled == 30


def test_a_splits_file_is_written_once_and_then_used(
    make_run: Make, settings: Settings, tmp_path: Path
) -> None:
    make_run("r1")
    make_run("r2", noise=3.0, fingerprint="cd" * 8)
    path = tmp_path / "splits.parquet"
    first = evaluate_run(EvaluateRequest("r1", splits=path, seed=3, variants=()), settings)
    again = evaluate_run(EvaluateRequest("r1", splits=path, seed=99, variants=()), settings)
    other = evaluate_run(EvaluateRequest("r2", splits=path, variants=()), settings)
    for result in (again.results[0], other.results[0]):
        for expected, split in zip(first.results[0].splits, result.splits, strict=True):
            assert expected.probes.tolist() == split.probes.tolist()
    assert again.results[0].curves.tolist() == first.results[0].curves.tolist()
    with pytest.raises(BadInput, match="has no split of leave-one-out"):
        evaluate_run(EvaluateRequest("r1", splits=path, protocols=("leave-one-out",)), settings)


def test_two_runs_are_compared_on_the_same_splits(make_run: Make, settings: Settings) -> None:
    run = make_run("r1", noise=2.5)
    make_run("r2", noise=1.0, quarantined=1, fingerprint="cd" * 8)
    result = compare_runs(EvaluateRequest("r1", repeats=3), "r2", settings)
    measures = {row.measure: row for row in result.differences["vehicleid-paper"]}
    assert measures["mAP"].is_significant
    assert measures["mAP"].difference > 0
    same = compare_runs(EvaluateRequest("r1", repeats=3), "r1", settings).differences["vehicleid-paper"]
    alone = evaluate_run(EvaluateRequest(run.run_id, repeats=3, variants=()), settings).results[0]
    assert same[0].a == pytest.approx(alone.mean[0])
    assert "A = r1, B = r2" in result.to_text()
    assert read_result("evaluate", result)["protocols"]["vehicleid-paper"][0]["measure"] == "rank-1"


def test_a_shard_of_another_model_raises(make_run: Make, settings: Settings) -> None:
    run, other = make_run("r1"), make_run("r2", fingerprint="cd" * 8)
    root = Path(settings.runs)
    (shard,) = [root / key for key in run.shard_keys()]
    (other_shard,) = [root / key for key in other.shard_keys()]
    shard.write_bytes(other_shard.read_bytes())
    with pytest.raises(FingerprintMismatch):
        evaluate_run(EvaluateRequest("r1"), settings)


def test_invalid_requests_raise(make_run: Make, settings: Settings) -> None:
    make_run("r1")
    with pytest.raises(BadSetting, match="unknown protocol 'market'"):
        evaluate_run(EvaluateRequest("r1", protocols=("market",)), settings)
    with pytest.raises(BadSetting, match="unknown variant 'magic'"):
        evaluate_run(EvaluateRequest("r1", variants=("magic",)), settings)
    with pytest.raises(BadSetting, match="unknown rule of the average precision 'oxford'"):
        evaluate_run(EvaluateRequest("r1", ap="oxford"), settings)
    with pytest.raises(BadSetting, match="no device 'abacus'"):
        evaluate_run(EvaluateRequest("r1", device="abacus"), settings)
    with pytest.raises(BadInput, match="no run r9"):
        evaluate_run(EvaluateRequest("r9"), settings)


def test_erased_crops_are_not_evaluated(make_run: Make, hide: Callable[..., str]) -> None:
    run = make_run("r1")
    erased = run.manifest()["crop_id"].to_numpy()[:5]  # the first vehicle, whole
    hide(run.store, erased)
    crop_ids = labelled_run(run).crops["crop_id"].to_numpy()
    assert len(crop_ids) == len(VEHICLES) - 5
    assert not np.isin(erased, crop_ids).any()


def test_tracks_are_ranked_beside_images_on_the_same_splits(
    make_run: Make, settings: Settings, tmp_path: Path
) -> None:
    run = make_run("r1")
    uris = run.manifest()["uri"].to_pylist()
    labels = tmp_path / "labels.parquet"
    columns = {
        "uri": uris,
        "vehicle_id": VEHICLES.tolist(),
        "camera_id": [f"{number % 5 // 2}" for number in range(60)],
        "track_id": [f"t{number // 5}" for number in range(60)],  # two crops at cameras 0 and 1, one at 2
    }
    pq.write_table(pa.table(columns), labels)
    request = EvaluateRequest("r1", labels=str(labels), protocols=("cross-camera", "veri"), unit="track")
    result = evaluate_run(request, settings)
    rows = result.to_json()["lists"][0]["protocols"]
    tracks = [row for row in rows if row["unit"] == "track"]
    assert [(row["protocol"], row["features"].split(",")[0]) for row in tracks] == [
        (name, kind)
        for name in ("cross-camera", "veri")
        for kind in ("image-to-track", "image-to-track", "track-to-track", "track-to-track")
    ]
    # Of a probe's gallery, the 36 tracks of all cameras, those at its own camera are left out or junk.
    assert {row["gallery"] for row in tracks if row["protocol"] == "cross-camera"} == {24}
    assert {row["gallery"] for row in tracks if row["protocol"] == "veri"} == {35}
    # The probes show the vehicle by noise alone; a mean of two of them is nearer to it.
    image, mean = rows[0]["cmc"]["rank-1"]["mean"], tracks[2]["cmc"]["rank-1"]["mean"]
    assert mean > image
    assert "image-to-track, nearest image (24 tracks in the gallery)" in result.to_text()

    with pytest.raises(BadLabels, match="tracks, which are unknown"):
        evaluate_run(EvaluateRequest("r1", protocols=("cross-camera",), unit="track"), settings)
    with pytest.raises(BadLabels, match="none is evaluated"):
        evaluate_run(
            EvaluateRequest("r1", labels=str(labels), protocols=("leave-one-out",), unit="track"), settings
        )
    with pytest.raises(BadSetting, match="unknown unit 'vehicle'"):
        evaluate_run(EvaluateRequest("r1", unit="vehicle"), settings)
