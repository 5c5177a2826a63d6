"""The page of a training: figures, curves and confusions, self-contained."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from index.evaluation.breakdowns import classification
from index.transforms.track_figures import TrackFigures
from infra.errors import UnreadableImage
from jobs.pages.training_page import (
    Epoch,
    Example,
    TrainingPage,
    build_training_page,
    confusion,
    curves,
    worst_models,
)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue()


def epoch(stage: str, number: int, loss: float, validation: float | None = 0.5) -> Epoch:
    return Epoch(stage, number, loss, 0.5, validation, validation, 1e-3, 100, 10.0, 10.0, 0.02)


def page(predicted: list[int], true: list[int], **more: object) -> TrainingPage:
    values = {
        "title": "Two <models>", "summary": "A summary.", "dataset": "cars", "note": "A note.",
        "training_images": 80, "names": {0: "Audi <b>", 1: "BMW"}, "hours": 1.5, "node_hours": 3.0,
        "examples": [Example(jpeg(), "Audi", "BMW", 0.7, False)], "attempts": 2, "cost": 4.5,
        "epochs": [epoch("warmup", 1, 2.0), epoch("target", 1, 1.0)],
        "facts": {"fingerprint": "abc"}, "unstated": {"momentum": "0.9"}, "untrained_classes": ["Lada"],
    }  # fmt: skip
    predicted_ids, true_ids = np.array(predicted), np.array(true)
    models = {"models": classification(predicted_ids, true_ids)}
    return TrainingPage(predicted=predicted_ids, true=true_ids, **{**models, **values, **more})  # type: ignore[arg-type]


def test_the_page_shows_accuracies_cost_and_untrained_classes() -> None:
    html = build_training_page(page([0, 0, 0, 0], [0, 0, 0, 1]))
    for words in ("75.0", "50.0", "3.00 node-hours", "4.50 at the given price", "started 2 times", "Lada"):
        assert words in html


def test_the_tracks_of_a_run_are_shown_before_and_after() -> None:
    figures = TrackFigures(
        tracks=240, rank1_before=0.5, rank1=0.625, mrr_before=0.61, mrr=0.7, low=0.02, high=0.16
    )
    shown = page([], [], models=None, tracks=figures, labels_used="none")
    html = build_training_page(shown)
    for words in ("Tracks found", "62.5", "50.0", "240", "0.610", "0.700", "+0.090", "+0.020 to +0.160"):
        assert words in html
    assert "beyond chance" not in html
    unclear = build_training_page(replace(shown, tracks=replace(figures, low=-0.01)))
    assert "no difference beyond chance" in unclear
    assert "Tracks found" not in build_training_page(page([0], [0]))


def test_a_network_without_a_classifier_shows_rank1_and_its_labels_and_no_models() -> None:
    epochs = [replace(epoch("clusters", number, 2.0, None), val_rank1=0.625) for number in (1, 2)]
    html = build_training_page(page([], [], models=None, rank1=0.625, labels_used="vehicles", epochs=epochs))
    for words in ("Rank-1", "62.5", "labels used: vehicles", "validation rank-1"):
        assert words in html
    for words in ("Mean over models", "Accuracy by vehicle model", "Confusion matrix"):
        assert words not in html
    assert "Rank-1" not in build_training_page(page([0], [0]))


def test_the_page_is_self_contained_and_escapes_data() -> None:
    html = build_training_page(page([0, 1], [1, 1]))
    assert "Audi &lt;b&gt;" in html
    assert "<script" not in html
    assert "default-src 'none'" in html
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "").replace(
        "http://www.w3.org", ""
    )


def test_a_training_without_validation_images_or_epochs_has_a_page() -> None:
    assert "A summary." in build_training_page(page([], [], epochs=[], examples=[], cost=None))


def test_curves_exclude_missing_values_and_name_each_stage_at_its_start() -> None:
    drawn = curves(
        [epoch("warmup", 1, 2.0, None), epoch("warmup", 2, 1.0), epoch("target", 1, 0.5)],
        {"training": "loss", "validation": "val_loss"},
    )
    assert drawn is not None
    assert [len(line.dots) for line in drawn.lines] == [3, 2]
    assert [name for _, name in drawn.stages] == ["warmup", "target"]
    assert curves([], {"training": "loss"}) is None


def test_the_worst_models_are_first_with_the_models_predicted_instead() -> None:
    worst = worst_models(page([0, 1, 0, 0, 0], [0, 0, 1, 1, 1]))
    assert [(model.name, model.accuracy) for model in worst] == [("BMW", 0.0), ("Audi <b>", 0.5)]
    assert worst[0].confused_with == [("Audi <b>", 3)]


def test_confusions_are_shares_of_the_true_models_pictures() -> None:
    drawn = confusion(page([0, 1, 0, 0], [0, 0, 1, 1]))
    assert drawn is not None
    assert sorted((cell.count, cell.share, cell.correct) for cell in drawn.cells) == [
        (1, 0.5, False), (1, 0.5, True), (2, 1.0, False),
    ]  # fmt: skip
    assert confusion(page([0, 1], [0, 1])) is None


def test_an_image_that_is_not_jpeg_raises() -> None:
    with pytest.raises(UnreadableImage):
        build_training_page(page([0], [0], examples=[Example(b"GIF", "a", "b", 0.5, True)]))
