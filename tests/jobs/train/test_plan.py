"""`clvr train --plan` measures a training without Ray and writes nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from json_documents import read_result
from PIL import Image

from infra.errors import BadSetting
from jobs.train import plan
from jobs.train.train import TrainRequest


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    lines = ["uri,model_id"]
    for number in range(26):
        image = tmp_path / "crops" / f"{number}.png"
        image.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), number, np.uint8)).save(image)
        lines.append(f"{image},{number % 2}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return tmp_path / "labels.csv"


@pytest.fixture(autouse=True)
def _one_batch_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(plan, "PROBE_BATCH", 2)


def request(labels: Path, *overrides: str, workers: int = 1) -> TrainRequest:
    return TrainRequest(
        str(labels),
        str(labels.parent / "model"),
        weights="random",
        overrides=("batch=8", *overrides),
        workers=workers,
        price_per_node_hour=3.0,
    )


def test_plan_counts_images_and_the_steps_of_whole_batches(labels: Path) -> None:
    planned = plan.plan_training(request(labels, "stage2.epochs=5", workers=2))
    assert (planned.pictures, planned.held_out, planned.classes) == (20, 6, 2)
    assert [(stage.epochs, stage.steps) for stage in planned.stages] == [(10, 20), (5, 10)]


def test_plan_adds_up_hours_and_multiplies_them_by_the_price(labels: Path) -> None:
    planned = plan.plan_training(request(labels))
    assert read_result("train", planned)["held_out"] == planned.held_out
    assert planned.forward_per_second > 0
    assert planned.hours == pytest.approx(sum(stage.hours for stage in planned.stages))
    assert planned.cost == pytest.approx(3.0 * planned.hours)
    assert "in all" in planned.to_text()


def test_held_out_models_are_no_classes(labels: Path) -> None:
    lines = labels.read_text().splitlines()
    rows = [f"{line.rpartition(',')[0]},{number % 5}" for number, line in enumerate(lines[1:])]
    labels.write_text("\n".join([lines[0], *rows]))
    planned = plan.plan_training(replace(request(labels), hold_out="models"))
    assert planned.classes == 4
    assert planned.pictures + planned.held_out < 26
    with pytest.raises(BadSetting, match="--hold-out is 'vehicles'"):
        plan.plan_training(replace(request(labels), hold_out="vehicles"))


def test_stage_without_epochs_takes_no_time(labels: Path) -> None:
    target = plan.plan_training(request(labels, "stage2.epochs=0")).stages[1]
    assert (target.steps, target.hours) == (0, 0.0)


def test_plan_writes_nothing(labels: Path) -> None:
    plan.plan_training(request(labels))
    assert not (labels.parent / "model").exists()


def test_invalid_override_is_rejected_before_the_measurement(labels: Path) -> None:
    with pytest.raises(BadSetting, match="epoch"):
        plan.plan_training(request(labels, "stage2.epoch=5"))
