"""Saved states: a better state replaces the best one, incomplete ones are ignored, stray ones removed."""

from pathlib import Path

import pytest
import torch

from clvr_model.training_state import TrainingState
from infra.store import Store, open_store
from jobs.train.checkpoints import best_state, remove_folders, save_best


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def network(value: float) -> torch.nn.Module:
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, value)
    return layer


def test_better_state_replaces_the_best_one(folder: Store, tmp_path: Path) -> None:
    for epochs, value in ((1, 0.5), (3, 0.75)):
        save_best(folder, network(value), None, [{}] * epochs, seed=0)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["best-00003"]
    best = best_state(folder)
    assert best is not None
    assert float(best.network["weight"]) == 0.75


def test_incomplete_best_state_is_ignored(folder: Store, tmp_path: Path) -> None:
    save_best(folder, network(0.5), None, [{}], seed=0)  # type: ignore[arg-type]
    (tmp_path / "best-00009").mkdir()
    (tmp_path / "best-00009/state.safetensors").write_bytes(b"half")
    best = best_state(folder)
    assert best is not None
    assert float(best.network["weight"]) == 0.5


def test_best_state_is_none_before_the_first(folder: Store) -> None:
    assert best_state(folder) is None


def test_remove_folders_keeps_other_prefixes_and_the_named_ones(folder: Store, tmp_path: Path) -> None:
    for name in ("checkpoint_2026-a", "checkpoint_2026-b", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / "log.jsonl").write_text("")
    remove_folders(folder, "checkpoint_2", kept={"checkpoint_2026-b"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_2026-b", "log.jsonl", "other"]


def test_state_keeps_the_position_in_an_epoch_and_the_average(tmp_path: Path) -> None:
    module = network(0.5)
    average = {"weight": torch.tensor([0.25]), "steps": torch.tensor(7)}
    state = TrainingState.capture(module, None, stage=1, epoch=2, seed=3, average=average)
    state.totals = type(state.totals)(1.5, 2, 3)
    state.save(tmp_path)
    again = TrainingState.load(tmp_path)
    assert (again.stage, again.epoch, again.totals) == (1, 2, state.totals)
    assert int(again.average["steps"]) == 7
