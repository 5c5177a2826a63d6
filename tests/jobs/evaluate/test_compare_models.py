"""`clvr compare-models`: rows, costs, differences, the frontier, the guard and the page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from json_documents import read_result
from labelled_runs import Make, settings_in, write_run

from index.evaluation.bootstrap import Difference
from index.outputs import list_outputs
from infra.capacity import NodeType, Prices, Rates, estimate
from infra.errors import BadInput, BadLabels, BadSetting
from infra.settings import Settings
from infra.store import open_store
from jobs.compare_models.compare import compare_models
from jobs.compare_models.results import CompareModelsRequest, ModelComparison, guard_of
from jobs.compare_models.speed import crops_per_core_second, dollars_per_million
from jobs.evaluate.evaluate import evaluate_run
from jobs.evaluate.results import EvaluateRequest


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, checkpoint: str) -> tuple[ModelComparison, Path]:
    """A clean and a noisy run, plain and whitened, each in int8 and binary, on a page; and its folder."""
    folder = tmp_path_factory.mktemp("compared")
    settings = settings_in(folder)
    write_run(folder, settings, checkpoint, "clean", noise=0.5, unit_length=True)
    write_run(folder, settings, checkpoint, "noisy", noise=1.0, quarantined=2)
    request = CompareModelsRequest(
        runs=("clean", "noisy"),
        transforms=("whiten:8",),
        formats=("binary", "int8"),
        repeats=2,
        measures_speed=False,
        html=folder / "models.html",
    )
    return compare_models(request, settings), folder


@pytest.fixture
def comparison(compared: tuple[ModelComparison, Path]) -> ModelComparison:
    return compared[0]


def test_each_model_has_rows_of_features_and_compressions(comparison: ModelComparison) -> None:
    rows = [
        (
            row.run,
            row.transform,
            row.format,
            row.bytes,
            row.reference.removeprefix("inception_v3, untrained "),
        )
        for row in comparison.rows
    ]
    assert rows == [
        ("clean", "", "", 4096, ""),  # of unit length: no row of normalised features
        ("clean", "", "int8", 1024, "(clean)"),
        ("clean", "", "binary", 128, "(clean)"),
        ("clean", "whiten to 8", "", 32, "(clean)"),
        ("clean", "whiten to 8", "int8", 8, "(clean), whiten to 8"),
        ("clean", "whiten to 8", "binary", 1, "(clean), whiten to 8"),
        ("noisy", "", "", 4096, "(clean)"),
        ("noisy", "", "int8", 1024, "(noisy)"),
        ("noisy", "", "binary", 128, "(noisy)"),
        ("noisy", "L2-normalised", "", 4096, "(noisy)"),
        ("noisy", "L2-normalised", "int8", 1024, "(noisy), L2-normalised"),
        ("noisy", "L2-normalised", "binary", 128, "(noisy), L2-normalised"),
        ("noisy", "whiten to 8", "", 32, "(noisy)"),
        ("noisy", "whiten to 8", "int8", 8, "(noisy), whiten to 8"),
        ("noisy", "whiten to 8", "binary", 1, "(noisy), whiten to 8"),
    ]
    assert [each.name for each in comparison.protocols] == ["cross-camera", "vehicleid-paper", "within-model"]
    assert comparison.crops == 58  # both runs have them


def test_plain_rows_are_what_an_evaluation_reports(make_run: Make, settings: Settings) -> None:
    make_run("r1", noise=0.7)
    request = CompareModelsRequest(("r1",), transforms=("camera",), repeats=2, seed=3, measures_speed=False)
    rows = read_result("compare-models", compare_models(request, settings))["rows"]
    evaluated = evaluate_run(
        EvaluateRequest(
            "r1", protocols=("cross-camera", "within-model"), repeats=2, seed=3, transforms=("camera",)
        ),
        settings,
    ).to_json()["lists"][0]["protocols"]
    ours = [
        (name, row["protocols"][name]["rank_1"], row["protocols"][name]["map"])
        for row in rows
        for name in ("cross-camera", "within-model")
    ]
    theirs = [(row["protocol"], row["cmc"]["rank-1"], row["map"]) for row in evaluated]
    assert sorted(map(str, ours)) == sorted(map(str, theirs))


def test_the_frontier_has_no_row_that_another_one_beats(comparison: ModelComparison) -> None:
    headline = comparison.headline
    kept = [row for row in comparison.rows if comparison.is_on_frontier(row)]
    best = max(row.accuracies[headline].rank_1[0] for row in comparison.rows)
    assert best in [row.accuracies[headline].rank_1[0] for row in kept]
    assert min(row.bytes for row in comparison.rows) in [row.bytes for row in kept]
    assert not comparison.is_on_frontier(comparison.rows[0])  # int8 ranks the same with fewer bytes


def test_speed_puts_a_row_on_the_frontier_beyond_the_noise_of_its_measurement(
    comparison: ModelComparison,
) -> None:
    first, last = comparison.rows[0], comparison.rows[6]
    pair = (replace(first, crops_per_second=10.0), replace(last, crops_per_second=10.4))
    assert not replace(comparison, rows=pair).is_on_frontier(pair[1])
    pair = (pair[0], replace(last, crops_per_second=12.0))
    assert replace(comparison, rows=pair).is_on_frontier(pair[1])


@pytest.mark.parametrize(
    ("low", "high", "vehicles", "guard"),
    [
        (-0.08, -0.02, 500, "failed"),
        (-0.02, 0.0, 500, "undecided"),
        (-0.004, 0.0, 500, "passed"),
        (0.0, 0.0, 60, "undecided"),  # 60 vehicles may keep their ranks by chance
    ],
)
def test_the_guard_follows_the_interval_and_the_number_of_vehicles(
    low: float, high: float, vehicles: int, guard: str
) -> None:
    assert guard_of(Difference("rank-1", 0.5, 0.5 + (low + high) / 2, low, high), vehicles, 0.01) == guard


def test_text_json_and_page_have_every_row(compared: tuple[ModelComparison, Path]) -> None:
    comparison, folder = compared
    page, text = (folder / "models.html").read_text(), comparison.to_text()
    stored: dict[str, Any] = json.loads((folder / "models.json").read_text())
    assert stored == json.loads(json.dumps(comparison.to_json()))
    assert len(stored["rows"]) == page.count("<title>") - 1 == 15  # a dot each, and no speed to draw
    assert all(row.name in text and row.name in page for row in comparison.rows)
    assert "clvr compare-models clean noisy" in page and "<script" not in page
    uris = {Path(output.uri).name for output in list_outputs(open_store(str(folder / "runs")))}
    assert uris == {"models.html", "models.json"}


def test_speed_is_measured_and_priced(make_run: Make, settings: Settings) -> None:
    rate = crops_per_core_second(make_run("r1"))
    assert rate > 0
    rates, prices = Rates(), Prices()
    node = NodeType("16 cores", 16 * rate * rates.saturated, 16 * prices.cpu_core_hour)
    assert np.isclose(dollars_per_million(rate), estimate(1_000_000, node, rates, prices).dollars_per_million)


def test_unknown_names_and_runs_without_shared_crops_are_refused(make_run: Make, settings: Settings) -> None:
    make_run("r1")
    plain = CompareModelsRequest(("r1",), measures_speed=False)
    for changed, error, said in (
        (replace(plain, transforms=("pca",)), BadSetting, "pca"),
        (replace(plain, transforms=("camera:8",)), BadSetting, "camera"),
        (replace(plain, transforms=("whiten:x",)), BadSetting, "whiten:x"),
        (replace(plain, formats=("int4",)), BadSetting, "int4"),
        (replace(plain, protocols=("best",)), BadSetting, "best"),
        (replace(plain, max_loss=1.5), BadSetting, "max-loss"),
    ):
        with pytest.raises(error, match=said):
            compare_models(changed, settings)
    make_run("r2", labelled=False)
    with pytest.raises((BadInput, BadLabels)):
        compare_models(replace(plain, runs=("r1", "r2")), settings)
