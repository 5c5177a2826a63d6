"""Galleries of one model and of other cameras, unseen models, and what perfect recognisers reach."""

import numpy as np
import pytest
from numpy.typing import NDArray

from index.evaluation.cmc import Cmc, LabeledFeatures, Split, cmc, cmc_of_splits
from index.evaluation.model_groups import ModelLabels, has_rivals, oracles
from index.evaluation.protocols import (
    MAX_GALLERY_ROWS,
    RULES,
    applicable_protocols,
    cross_camera_rows,
    draw_splits,
    evaluate_protocol,
)
from infra.errors import BadLabels

VEHICLES = np.arange(240) // 4
MODELS = VEHICLES % 5
CAMERAS = np.random.default_rng(3).choice(["a", "b", "c"], 240)
COLORS = np.array(["red", "blue", ""])[VEHICLES // 5 % 3]


def make_features(seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = 4 * rng.standard_normal((5, 12))[MODELS] + rng.standard_normal((60, 12))[VEHICLES]
    return (centres + 0.8 * rng.standard_normal((240, 12))).astype(np.float32)


def labels(trained: frozenset[int] | None = frozenset({0, 1})) -> ModelLabels:
    return ModelLabels(MODELS, COLORS, trained)


def ranked_alone(images: LabeledFeatures, split: Split, allowed: NDArray[np.bool_], probe: int) -> Cmc:
    """Rank the allowed gallery images for one probe, without any code of the protocols."""
    gallery = split.gallery[allowed & (split.gallery != probe)]
    return cmc(images.take(np.array([probe])), images.take(gallery), skip_unmatched=False)


@pytest.mark.parametrize("name", ["within-model", "within-model-color", "cross-camera"])
def test_each_probe_is_ranked_in_its_own_gallery(name: str) -> None:
    images = LabeledFeatures(make_features(), VEHICLES, CAMERAS, np.arange(240))
    result = evaluate_protocol(
        name, images.features, VEHICLES, camera_ids=CAMERAS, models=labels(), repeats=2
    )
    split, ranking = result.splits[1], result.rankings[1]
    column = {"within-model": MODELS, "cross-camera": CAMERAS}.get(name, labels().groups(by_color=True))
    for number, probe in enumerate(split.probes):
        is_same = column[split.gallery] == column[probe]
        alone = ranked_alone(images, split, ~is_same if name == "cross-camera" else is_same, probe)
        assert (
            ranking.take(np.array([number])).positive_ranks.tolist() == alone.ranking.positive_ranks.tolist()
        )
        assert ranking.gallery_sizes[number] == alone.ranking.gallery_sizes[0]
    assert result.gallery == round(ranking.gallery_sizes.mean()) or result.repeats > 1
    assert f"against on average {result.gallery} images" in result.summary()


def test_galleries_that_do_not_fit_at_once_are_ranked_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("within-model", make_features(), VEHICLES)
    whole = evaluate_protocol(*arguments, models=labels(), repeats=3)
    monkeypatch.setattr("index.evaluation.cmc._MAX_MEMBERSHIPS", 500)
    assert evaluate_protocol(*arguments, models=labels(), repeats=3).curves.tolist() == whole.curves.tolist()
    monkeypatch.setattr("index.evaluation.protocols.MAX_GALLERY_ROWS", 3 * 240 * 10 - 1)
    assert "cross-camera" not in applicable_protocols(VEHICLES, CAMERAS, labels())


def test_models_without_a_second_vehicle_or_a_name_take_no_part() -> None:
    vehicles = np.array([1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6])
    models = np.array([0, 0, 0, 0, 1, 1, -1, -1, 0, 1, 2])  # vehicle 6 has two models, 5 has one image
    assert has_rivals(vehicles, models).tolist() == [True] * 4 + [False] * 7
    assert draw_splits("within-model", vehicles, models=ModelLabels(models))[0].probes.size == 2
    with pytest.raises(BadLabels, match="no vehicle model has two vehicles"):
        draw_splits("within-model", vehicles[4:], models=ModelLabels(models[4:]))
    with pytest.raises(BadLabels, match="needs the true model and the color"):
        draw_splits("within-model-color", vehicles, models=ModelLabels(models))


def test_unseen_models_are_those_that_were_not_trained() -> None:
    (split,) = draw_splits("unseen-models", VEHICLES, models=labels(), repeats=1)
    assert set(MODELS[split.probes]) == set(MODELS[split.gallery]) == {2, 3, 4}
    assert len(split.probes) == 36
    with pytest.raises(BadLabels, match="not trained on"):
        draw_splits("unseen-models", VEHICLES, models=labels(frozenset(range(5))))
    with pytest.raises(BadLabels, match="models of the training"):
        draw_splits("unseen-models", VEHICLES, models=labels(None))


def test_a_search_keeps_vehicles_of_one_camera_as_distractors() -> None:
    cameras = np.where(VEHICLES == 7, "a", np.array(["a", "b", "c", "c"])[np.arange(240) % 4])
    result = evaluate_protocol("cross-camera", make_features(), VEHICLES, camera_ids=cameras, repeats=1)
    assert 7 not in VEHICLES[result.splits[0].probes]
    assert 7 in VEHICLES[result.splits[0].gallery]
    assert "1 in the gallery alone (vehicles seen by a single camera" in result.summary()
    assert "images of 60 vehicles" in result.summary()


def test_the_labels_say_which_protocols_apply() -> None:
    everything = applicable_protocols(VEHICLES, CAMERAS, labels())
    assert everything == ["cross-camera", "within-model", "within-model-color", "unseen-models"]
    assert applicable_protocols(VEHICLES, None, ModelLabels(MODELS)) == ["within-model"]
    assert applicable_protocols(VEHICLES, np.full(240, "a"), None) == []


def test_galleries_of_cross_camera_have_a_limit_as_a_default() -> None:
    rows = cross_camera_rows(CAMERAS, repeats=1)
    assert rows == 240 * len(np.unique(CAMERAS))
    many = MAX_GALLERY_ROWS // rows + 1
    assert "cross-camera" in applicable_protocols(VEHICLES, CAMERAS, None, many - 1)
    assert "cross-camera" not in applicable_protocols(VEHICLES, CAMERAS, None, many)


@pytest.mark.parametrize("name", ["vehicleid-paper", "vehicleid-common", "veri", "cross-camera"])
@pytest.mark.parametrize("by_color", [False, True])
def test_an_oracle_is_somebody_who_guesses_within_the_model(name: str, by_color: bool) -> None:
    """Features that name the group and say nothing else reach the oracle's curve on average."""
    known = ModelLabels(MODELS, np.array(["red", "blue"])[VEHICLES // 5 % 2])
    groups = known.groups(by_color=by_color)
    junk = name == "veri"
    splits = draw_splits(name, VEHICLES, CAMERAS, repeats=3)
    found = oracles(splits, VEHICLES, known, junk_cameras=CAMERAS if junk else None, max_rank=20)
    assert [oracle.name for oracle in found] == ["model", "model and color"]
    assert {oracle.known for oracle in found} == {1.0}
    curves = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        features = 100 * np.eye(groups.max() + 1)[groups] + rng.standard_normal((240, groups.max() + 1))
        images = LabeledFeatures(features.astype(np.float32), VEHICLES, CAMERAS, np.arange(240))
        results = cmc_of_splits(images, splits, max_rank=20, same_camera_is_junk=junk)
        curves.append(np.mean([result.curve for result in results], axis=0))
    assert found[by_color].curve == pytest.approx(np.mean(curves, axis=0), abs=0.03)


def test_an_oracle_says_how_much_is_known() -> None:
    splits = draw_splits("vehicleid-paper", VEHICLES, repeats=1)
    model, color = oracles(splits, VEHICLES, labels())
    assert model.known == 1.0
    assert color.known == pytest.approx((COLORS != "").mean())
    assert oracles(splits, VEHICLES, ModelLabels(np.full(240, -1))) == []


def test_given_splits_are_divided_by_the_rule() -> None:
    drawn = draw_splits("within-model", VEHICLES, models=labels(), repeats=2)
    plain = [Split(np.sort(split.probes), split.gallery) for split in drawn]
    first = evaluate_protocol("within-model", make_features(), VEHICLES, models=labels(), repeats=2)
    again = evaluate_protocol("within-model", make_features(), VEHICLES, models=labels(), splits=plain)
    assert again.curves.tolist() == first.curves.tolist()


def test_every_protocol_has_a_rule_in_its_summary() -> None:
    for name in set(RULES) - {"listed"}:  # which nothing can draw
        result = evaluate_protocol(
            name, make_features(), VEHICLES, camera_ids=CAMERAS, models=labels(), repeats=1
        )
        assert result.rule in result.summary()
        assert 0 < result.chance[0] < result.mean[0]
