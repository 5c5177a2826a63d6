"""Table 1 as text and JSON, the rules of Figure 5, and the page."""

from dataclasses import replace

import numpy as np
import pytest

from clvr_model.checkpoint import Card
from infra.store import Store
from jobs.pages.published import IMAGES, TABLE_1
from jobs.pages.table1_page import Figure, build_table1_page
from jobs.reproduce.evaluation import ListFigures, OracleFigures, ProtocolFigures
from jobs.reproduce.figures import extreme_places, most_confusable
from jobs.reproduce.page import table1_page
from jobs.reproduce.results import ListResult, MethodResult, Reproduction, Results


def protocol(name: str, rank_1: float) -> ProtocolFigures:
    return ProtocolFigures(
        protocol=name,
        rule="one image is the probe",
        probes=2,
        gallery=6,
        vehicles=2,
        excluded_vehicles=0,
        draws=3,
        rank_1=Figure(rank_1, 0.0123),
        rank_5=Figure(rank_1 + 0.1, 0.02),
        map=Figure(0.3, 0.0),
        chance_rank_1=0.0321,
        chance_rank_5=0.2,
        oracles=(OracleFigures("model", 0.4567, 0.7, 0.5),),
    )


def made(dataset: str, names: tuple[str, ...], images: tuple[int, ...]) -> Results:
    method = MethodResult(
        name="clvr",
        title="CLVR",
        recipe="paper",
        labels_used="model",
        checkpoint="clvr",
        is_taken=False,
        overrides=("stage2.epochs=1",),
        fingerprint="f" * 16,
        run_id="run",
        training_images=100,
        held_out_images=20,
        epochs=11,
        accuracy=0.5,
        macro_accuracy=0.4,
        rank1=None,
    )
    return Results(
        dataset=dataset,
        data="VehicleID",
        draws=3,
        seed=0,
        methods=(method,),
        lists=tuple(
            ListResult(name, count, 2, trained_images=0, trained_vehicles=0)
            for name, count in zip(names, images, strict=True)
        ),
        figures=tuple(
            ListFigures(
                method="clvr",
                run_id="run",
                list_name=name,
                images=count,
                vehicles=2,
                not_ranked=0,
                with_model=4,
                of_trained_models=3,
                protocols=(protocol("vehicleid-paper", 0.25), protocol("vehicleid-common", 0.125)),
            )
            for name, count in zip(names, images, strict=True)
        ),
    )


LARGE = made("VehicleID", tuple(IMAGES), tuple(IMAGES.values()))
DRAWN = made("", ("small", "large"), (4, 8))


def page_of(results: Results) -> str:
    cards = [Card(label_ids=(1, 2), recipe={"backbone": "random"})]
    content = table1_page(
        results, cards, classes=None, classified=None, ranks=None, without_figures="No data."
    )
    return build_table1_page(content)


def test_the_paper_s_lists_stand_beside_ours_as_comparable() -> None:
    text = Reproduction(LARGE, "table1.html", "results.json").to_text()
    row = next(line for line in text.splitlines() if line.startswith("CLVR"))
    assert row.split()[:5] == ["CLVR", "model", "25.0%", "±", "1.2%"]
    assert row.endswith("62.0 / 76.0     56.1 / 71.8     50.6 / 68.0")
    assert "compare with vehicleid-paper and vehicleid-common" in text
    assert "perfect model           50% known" in text
    page = page_of(LARGE)
    assert "62.0 / 76.0" in page
    assert "other images" not in page


def test_other_images_are_never_called_comparable() -> None:
    json = Reproduction(DRAWN, "p", "r").to_json()
    assert json["published"]["comparable"] is False
    assert json["published"]["rows"]["CLVR"] == TABLE_1[2][1]
    page = page_of(DRAWN)
    for words in (
        "published, on VehicleID: other images",
        "no figure of ours compares with it",
        "The recipe was changed for CLVR",
        "started from random weights",
        "small: 4 images of 2 vehicles. No training saw an image of these vehicles; 3 of the 4",
        "No data.",
    ):
        assert words in page
    # One list of the paper with an image missing is not the paper's list.
    assert not made("VehicleID", ("test_800",), (6_492,)).published().is_comparable


def test_lists_that_a_training_has_seen_are_said() -> None:
    seen = replace(
        DRAWN, lists=(replace(DRAWN.lists[0], trained_images=3, trained_vehicles=1), DRAWN.lists[1])
    )
    assert "The trainings saw 3 of these images and 1 of these vehicles" in page_of(seen)


def test_results_are_read_as_they_were_written(store: Store) -> None:
    store.put("results.json", LARGE.to_json())
    assert Results.read(store, "results.json") == LARGE


def test_figure_5_shows_the_most_probable_runners_up_once_a_pair() -> None:
    probabilities = np.array(
        [[0.5, 0.4, 0.1], [0.51, 0.39, 0.1], [0.4, 0.5, 0.1], [0.6, 0.1, 0.3], [0.9, 0.1, 0]]
    )
    order = np.argsort(-probabilities, axis=1)[:, :2]
    right = np.array([True, True, False, True, False])
    assert most_confusable(probabilities, order, right, list("abcde")) == [0, 3]


@pytest.mark.parametrize(
    ("light", "places"),
    [
        ([50.0, 10.0, 90.0, 20.0, 80.0, 30.0, 70.0], [1, 3, 5, 2, 4, 6]),
        ([50.0, float("nan"), 10.0, 90.0], [2, 0, 3]),
        ([], []),
    ],
)
def test_figure_5_shows_the_darkest_and_the_brightest_errors(light: list[float], places: list[int]) -> None:
    assert extreme_places(np.array(light)) == places
