"""Training does what the paper says, stops when it diverges, and resumes exactly.

Images of 75 x 75, the least that Inception-V3 takes, keep the real network fast enough.
"""

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clvr_model.ema import ExponentialMovingAverage
from clvr_model.network import Clvr
from clvr_model.normalization import to_input
from clvr_model.objective import Objective
from clvr_model.recipe import Stage
from clvr_model.training import (
    Batch,
    EpochResult,
    cached_batches,
    drop_last,
    epoch_order,
    learning_rate,
    make_optimizer,
    pooled_features,
    reestimate_batch_statistics,
    stage_order,
    train_epoch,
    train_step,
)
from clvr_model.training_state import TrainingState
from clvr_model.validation import predict, score
from infra.errors import BadCheckpoint, BadInput, CorruptObject, TrainingDiverged
from infra.store.sealed import seal, unseal

WARMUP = Stage(name="warmup", epochs=2, optimizer="rmsprop", lr=1e-3, trainable="head")
TARGET = Stage(name="target", epochs=2, optimizer="sgd", lr=1e-3, momentum=0.9)
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 75, 75, 3), np.uint8))
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2])
SEED = 11


def _network(seed: int = 1) -> Clvr:
    return Clvr(3, feature_dim=8, seed=seed)


def _batches(stage: int, batch: int = 2, images: int = 6) -> Callable[[int], Iterable[Batch]]:
    def of(epoch: int) -> Iterable[Batch]:
        order = torch.from_numpy(epoch_order(images, seed=SEED, stage=stage, epoch=epoch))
        return [(IMAGES[rows], CLASSES[rows]) for rows in order.split(batch)]

    return of


def _train_stage(
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: Stage,
    batches_of: Callable[[int], Iterable[Batch]],
    first_epoch: int = 0,
) -> list[EpochResult]:
    return [
        train_epoch(module, optimizer, batches_of(epoch), stage, epoch=epoch)
        for epoch in range(first_epoch, stage.epochs)
    ]


def _equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 500), st.integers(0, 2**63 - 1), st.integers(0, 3), st.integers(0, 100))
def test_an_epochs_order_is_a_permutation_and_repeatable(
    count: int, seed: int, stage: int, epoch: int
) -> None:
    order = epoch_order(count, seed=seed, stage=stage, epoch=epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, epoch_order(count, seed=seed, stage=stage, epoch=epoch))


def test_epochs_stages_and_seeds_have_different_orders() -> None:
    orders = {
        tuple(epoch_order(50, seed=seed, stage=stage, epoch=epoch).tolist())
        for seed in (0, 1)
        for stage in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 8


def test_the_frozen_stage_changes_the_head_alone_and_no_batch_statistics() -> None:
    network, before = _network(), _network()
    result = train_epoch(network, make_optimizer(network, WARMUP), _batches(0)(0), WARMUP)
    assert _equal(network.backbone, before.backbone)
    assert not torch.equal(network.head.dense.weight, before.head.dense.weight)
    assert (result.stage, result.epoch, result.pictures) == ("warmup", 0, 6)
    assert 0 <= result.accuracy <= 1


def test_the_second_stage_changes_all_layers() -> None:
    network, before = _network(), _network()
    make_optimizer(network, WARMUP)  # what the first stage froze, the second frees
    train_step(network, make_optimizer(network, TARGET), IMAGES[:2], CLASSES[:2])
    changed = [
        name
        for (name, value), old in zip(network.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(value, old)
    ]
    assert {"backbone.Conv2d_1a_3x3.conv.weight", "head.classifier.weight"} <= set(changed)


def test_cached_features_train_the_head_like_images() -> None:
    plain = _network()
    results = _train_stage(plain, make_optimizer(plain, WARMUP), WARMUP, _batches(0))

    kept = _network()
    cache = pooled_features(kept, [(IMAGES[:4], CLASSES[:4]), (IMAGES[4:], CLASSES[4:])])
    assert cache[0].shape == (6, 2048)

    def batches_of(epoch: int) -> Iterable[Batch]:
        return cached_batches(cache, epoch_order(6, seed=SEED, stage=0, epoch=epoch), 2)

    make_optimizer(kept, WARMUP)
    from_cache = _train_stage(kept.head, make_optimizer(kept.head, WARMUP), WARMUP, batches_of)
    for name, value in plain.head.state_dict().items():
        # RMSprop divides by the gradient's size, which enlarges rounding where a gradient is tiny.
        assert torch.allclose(value, kept.head.state_dict()[name], atol=2e-4), name
    for a, b in zip(results, from_cache, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-3)


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    pooled = torch.rand(7, 2048, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    stage = TARGET.model_copy(update={"lr": 0.01})
    whole, portions = _network().head, _network().head
    first = train_step(whole, make_optimizer(whole, stage), pooled, classes)
    second = train_step(portions, make_optimizer(portions, stage), pooled, classes, micro_batch=3)
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, portions.state_dict()[name], atol=1e-6), name
    a, b = first.read(), second.read()
    assert a.loss == pytest.approx(b.loss, rel=1e-5)
    assert (a.correct, a.pictures) == (b.correct, b.pictures)


def test_the_head_learns_separable_classes() -> None:
    classes = torch.arange(60) % 3
    pooled = torch.rand(60, 2048, generator=torch.Generator().manual_seed(0))
    pooled[torch.arange(60), classes] += 5
    head = Clvr(3, feature_dim=64, seed=1).head
    stage = WARMUP.model_copy(update={"epochs": 15})
    results = _train_stage(
        head,
        make_optimizer(head, stage),
        stage,
        lambda epoch: cached_batches((pooled, classes), epoch_order(60, seed=SEED, stage=0, epoch=epoch), 20),
    )
    assert results[-1].loss < results[0].loss
    assert score(predict(head, [(pooled, classes)]), classes.numpy(), 3).micro > 0.9


def test_divergence_names_stage_epoch_and_batch_and_keeps_the_weights() -> None:
    head, stage = _network().head, WARMUP.model_copy(update={"epochs": 3})
    good = torch.rand(2, 2048)
    batches = [(good, CLASSES[:2]), (good * torch.nan, CLASSES[:2])]
    with pytest.raises(TrainingDiverged, match=r"stage warmup, epoch 2, batch 2: the loss is nan"):
        _train_stage(head, make_optimizer(head, stage), stage, lambda epoch: batches[: epoch + 1])
    assert all(torch.isfinite(parameter).all() for parameter in head.parameters())


def test_a_stage_without_images_is_refused() -> None:
    head = _network().head
    with pytest.raises(BadInput, match="no images to train on"):
        train_epoch(head, make_optimizer(head, WARMUP), [], WARMUP)
    with pytest.raises(BadInput, match="no images to train on"):
        pooled_features(_network(), [])


def test_a_resumed_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    straight = _network()
    optimizer = make_optimizer(straight, TARGET)
    _train_stage(straight, optimizer, TARGET, _batches(1, batch=3, images=3))

    killed = _network()
    optimizer = make_optimizer(killed, TARGET)
    history = [train_epoch(killed, optimizer, _batches(1, batch=3, images=3)(0), TARGET)]
    TrainingState.capture(killed, optimizer, stage=1, epoch=1, seed=SEED, history=history).save(tmp_path)

    state = TrainingState.load(tmp_path)
    resumed = _network(seed=99)
    optimizer = make_optimizer(resumed, TARGET)
    state.restore(resumed, optimizer)
    assert (state.stage, state.epoch, state.seed) == (1, 1, SEED)
    assert state.history[0]["loss"] == history[0].loss
    _train_stage(resumed, optimizer, TARGET, _batches(1, batch=3, images=3), first_epoch=state.epoch)
    assert _equal(straight, resumed)


@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
def test_the_optimizers_state_is_restored(name: str, tmp_path: Path) -> None:
    stage = WARMUP.model_copy(update={"optimizer": name})
    head, copy = _network().head, _network(seed=5).head
    pooled = torch.rand(4, 2048)
    optimizer, other = make_optimizer(head, stage), make_optimizer(copy, stage)
    train_step(head, optimizer, pooled, CLASSES[:4])
    TrainingState.capture(head, optimizer, stage=0, epoch=1, seed=0).save(tmp_path)
    TrainingState.load(tmp_path).restore(copy, other)
    for module, opt in ((head, optimizer), (copy, other)):
        train_step(module, opt, pooled, CLASSES[:4])
    assert _equal(head, copy)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    head = _network().head
    TrainingState.capture(head, None, stage=1, epoch=0, seed=0).save(tmp_path)
    return tmp_path


def test_a_state_between_two_stages_has_no_optimizer(saved: Path) -> None:
    head = _network(seed=5).head
    TrainingState.load(saved).restore(head, make_optimizer(head, TARGET))
    assert _equal(head, _network().head)


@pytest.mark.parametrize("damage", ["no values", "no tensors", "truncated", "altered", "no seed"])
def test_a_damaged_state_is_refused(saved: Path, damage: str) -> None:
    values, tensors = saved / "state.json", saved / "state.safetensors"
    data = tensors.read_bytes()
    match damage:
        case "no values":
            values.unlink()
        case "no tensors":
            tensors.unlink()
        case "truncated":
            tensors.write_bytes(data[:-10])
        case "altered":
            tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "no seed":
            stored = unseal(values.read_bytes(), "")
            del stored["seed"]
            values.write_bytes(seal(stored))
    with pytest.raises(BadCheckpoint, match="no complete training state"):
        TrainingState.load(saved)


def test_altered_values_of_a_state_are_noticed(saved: Path) -> None:
    values = saved / "state.json"
    for altered in (b"{", values.read_bytes().replace(b'"stage": 1', b'"stage": 0')):
        values.write_bytes(altered)
        with pytest.raises(CorruptObject, match=r"state\.json"):
            TrainingState.load(saved)


def test_the_state_of_another_network_is_refused(saved: Path) -> None:
    with pytest.raises(BadCheckpoint, match="does not fit"):
        TrainingState.load(saved).restore(Clvr(4, feature_dim=8).head)


def test_a_wrapped_network_is_trained_like_a_plain_one() -> None:
    class Wrapper(torch.nn.Module):  # as DistributedDataParallel wraps
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x)

    plain, inner = _network(), _network()
    wrapped = Wrapper(inner)
    train_epoch(plain, make_optimizer(plain, WARMUP), _batches(0)(0), WARMUP)
    train_epoch(wrapped, make_optimizer(wrapped, WARMUP), _batches(0)(0), WARMUP)
    assert _equal(plain, inner)
    state = TrainingState.capture(wrapped, None, stage=0, epoch=1, seed=0)
    assert state.network.keys() == plain.state_dict().keys()


def test_workers_exchange_gradients_once_a_step_and_not_once_a_portion(
    tmp_path: Path,
) -> None:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        plain, wrapped = _network().head, torch.nn.parallel.DistributedDataParallel(_network().head)
        exchanged = []
        wrapped.register_forward_hook(lambda *_: exchanged.append(wrapped.require_backward_grad_sync))
        pooled = torch.rand(7, 2048, generator=torch.Generator().manual_seed(0))
        classes = torch.tensor([0, 1, 2, 0, 1, 2, 0])
        for module in (plain, wrapped):
            train_step(module, make_optimizer(module, TARGET), pooled, classes, micro_batch=3)
        assert exchanged == [False, False, True]
        assert _equal(plain, wrapped.module)
    finally:
        torch.distributed.destroy_process_group()


def test_reestimated_statistics_are_those_of_the_images_and_change_nothing_else() -> None:
    network, before = _network(), _network().state_dict()
    reestimate_batch_statistics(network, [(IMAGES, CLASSES)])
    first = network.backbone.Conv2d_1a_3x3
    expected = first.conv(to_input(IMAGES)).mean(dim=(0, 2, 3))
    assert torch.allclose(first.bn.running_mean, expected, atol=1e-4)
    assert first.bn.momentum is not None
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("running_" in name or "num_batches_tracked" in name for name in changed)


def test_frozen_statistics_stay_while_all_layers_learn() -> None:
    network = _network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stage = TARGET.model_copy(update={"epochs": 1, "frozen_statistics": True})
    _train_stage(network, make_optimizer(network, stage), stage, _batches(0))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("backbone.") for name in changed)
    assert not any("running_" in name for name in changed)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=120), st.integers(0, 2**40), st.integers(0, 30))
def test_balanced_sampling_shows_every_class_and_its_images_equally_often(
    classes: list[int], seed: int, epoch: int
) -> None:
    stage = WARMUP.model_copy(update={"sampling": "balanced"})
    known = np.array(classes)
    order = stage_order(stage, known, seed=seed, number=1, epoch=epoch)
    assert len(order) == len(known)
    shown = np.bincount(known[order], minlength=9)[np.unique(known)]
    assert shown.max() - shown.min() <= 1
    times = np.bincount(order, minlength=len(known))
    for each in np.unique(known):
        assert np.ptp(times[known == each]) <= 1
    assert np.array_equal(order, stage_order(stage, known, seed=seed, number=1, epoch=epoch))


def test_plain_sampling_is_the_papers_order() -> None:
    order = stage_order(WARMUP, np.array([0, 0, 1, 2]), seed=3, number=1, epoch=2)
    assert np.array_equal(order, epoch_order(4, seed=3, stage=1, epoch=2))


def test_the_learning_rate_follows_the_schedule_of_the_stage() -> None:
    plain = TARGET.model_copy(update={"lr": 0.1, "epochs": 10})
    assert {learning_rate(plain, position) for position in (0.0, 3.3, 10.0)} == {0.1}
    rising = plain.model_copy(update={"warmup_epochs": 2.0})
    assert [learning_rate(rising, position) for position in (0.0, 1.0, 2.0, 9.0)] == [0.0, 0.05, 0.1, 0.1]
    both = rising.model_copy(update={"schedule": "cosine"})
    rates = [learning_rate(both, position) for position in (0.0, 1.0, 2.0, 6.0, 10.0)]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.05, 0.0])


def test_an_epoch_steps_at_the_scheduled_rates_and_a_plain_stage_leaves_them_alone() -> None:
    head = _network().head
    pooled = torch.rand(6, 2048, generator=torch.Generator().manual_seed(0))
    stage = TARGET.model_copy(update={"epochs": 2, "lr": 0.1, "schedule": "cosine"})
    seen: list[float] = []
    optimizer = make_optimizer(head, stage)
    for epoch in range(2):
        train_epoch(
            head,
            optimizer,
            cached_batches((pooled, CLASSES), np.arange(6), 3),
            stage,
            epoch=epoch,
            steps=2,
            on_step=lambda step, totals: seen.append(optimizer.param_groups[0]["lr"]),
        )
    assert seen == pytest.approx([learning_rate(stage, position) for position in (0.25, 0.75, 1.25, 1.75)])

    optimizer = make_optimizer(head, TARGET)
    optimizer.param_groups[0]["lr"] = 0.25
    train_epoch(head, optimizer, cached_batches((pooled, CLASSES), np.arange(6), 3), TARGET)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_label_smoothing_follows_its_definition() -> None:
    head = _network().head
    pooled = torch.rand(3, 2048, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logs = head(pooled)[1].log_softmax(dim=1)
        smooth = torch.full((3, 3), 0.3 / 3) + 0.7 * torch.eye(3)
        expected = float(-(smooth * logs).sum())
    result = train_step(
        head, make_optimizer(head, WARMUP), pooled, torch.arange(3), objective=Objective(label_smoothing=0.3)
    )
    assert result.read().loss == pytest.approx(expected, rel=1e-5)


def test_a_clipped_gradient_has_the_limit_as_its_norm_and_the_same_direction() -> None:
    pooled = 10 * torch.rand(3, 2048, generator=torch.Generator().manual_seed(0))
    stage = TARGET.model_copy(update={"lr": 1.0, "momentum": 0.0})
    steps = []
    for clip in (0.0, 0.5):
        head = _network().head
        before = torch.cat([parameter.detach().flatten().clone() for parameter in head.parameters()])
        train_step(head, make_optimizer(head, stage), pooled, CLASSES[:3], max_grad_norm=clip)
        steps.append(before - torch.cat([parameter.detach().flatten() for parameter in head.parameters()]))
    assert float(steps[0].norm()) > 0.6
    assert float(steps[1].norm()) == pytest.approx(0.5, rel=1e-3)
    assert float(torch.cosine_similarity(steps[0], steps[1], dim=0)) > 0.999


def test_a_gradient_that_is_not_finite_stops_training_and_keeps_the_weights() -> None:
    class Blows(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * torch.inf

    class Exploding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = _network().head

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            feature, logits = self.head(x)
            return feature, Blows.apply(logits)

    network, stage = Exploding(), TARGET.model_copy(update={"max_grad_norm": 1.0})
    with pytest.raises(TrainingDiverged, match=r"stage target, epoch 1, batch 1: the gradient's norm is"):
        train_epoch(network, make_optimizer(network, stage), [(torch.rand(2, 2048), CLASSES[:2])], stage)
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


def test_the_moving_average_includes_every_step() -> None:
    network = _network()
    stage = WARMUP.model_copy(update={"ema_decay": 0.9})
    optimizer = make_optimizer(network, stage)
    average = ExponentialMovingAverage.of(network, stage)
    assert average is not None
    pooled = torch.rand(6, 2048)
    batches = cached_batches((pooled, CLASSES), np.arange(6), 2)
    train_epoch(network.head, optimizer, batches, stage, average=average)
    assert average.steps == 3
    last = network.head.dense.weight.detach().clone()
    average.install()
    assert not torch.equal(last, network.head.dense.weight)


@pytest.mark.parametrize(
    ("images", "learned"), [(4908, 4900), (4900, 4900), (100, 100), (99, 99), (1, 1), (0, 0)]
)
def test_an_epoch_uses_whole_batches_only(images: int, learned: int) -> None:
    assert drop_last(images, 100) == learned


def test_micro_batches_have_about_one_size() -> None:
    # The last of 16 + 16 + 2 would have the batch statistics of two images.
    seen: list[int] = []

    class Spy(torch.nn.Linear):
        def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append(len(pooled))
            logits = super().forward(pooled)
            return logits, logits

    head = Spy(8, 3)
    optimizer = torch.optim.SGD(head.parameters(), 0.1)
    train_step(head, optimizer, torch.rand(34, 8), torch.zeros(34, dtype=torch.int64), micro_batch=16)
    assert seen == [12, 11, 11]


def test_the_error_of_exhausted_memory_names_a_micro_batch_that_fits() -> None:
    # The only way here: a limit of the operating system on a process of its own.
    code = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from pathlib import Path
from clvr_model.network import Clvr
from clvr_model.objective import Objective
from clvr_model.recipe import Stage
from clvr_model.training import make_optimizer, train_epoch, train_step
from infra.errors import BadSetting
network = Clvr(3, 8, seed=1)
stage = Stage(name="target", epochs=1, optimizer="sgd", lr=1e-3)
images = torch.zeros(40, 139, 139, 3, dtype=torch.uint8)
classes = torch.zeros(40, dtype=torch.int64)
train_step(network, make_optimizer(network, stage), images[:1], classes[:1])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)
try:
    train_epoch(network, make_optimizer(network, stage), [(images, classes)], stage)
except BadSetting as error:
    message, remedy = error.message, error.remedy
# Here, and not above: until the block ends, the error keeps what the pass had allocated.
print(message, "|", remedy)
fits = int(remedy.split("micro_batch=")[1].split(",")[0])
smaller = stage.model_copy(update={"micro_batch": fits})
train_epoch(network, make_optimizer(network, smaller), [(images, classes)], smaller)
print("fits", fits)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "stage target, epoch 1, batch 1: out of memory with 40 images a pass" in done.stdout, done.stderr
    assert "--set target.micro_batch=" in done.stdout
    assert "fits" in done.stdout.splitlines()[-1], done.stderr


def test_lower_layers_learn_more_slowly_and_adamw_decays_no_scale() -> None:
    network = Clvr(2, 8, backbone="resnet50", seed=1)
    stage = Stage(
        name="target",
        epochs=2,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.1,
        layer_decay=0.5,
        schedule="cosine",
    )
    optimizer = make_optimizer(network, stage)
    of = {id(one): group for group in optimizer.param_groups for one in group["params"]}
    assert len(of) == len(list(network.parameters()))
    depth = len(network.backbone.layers())
    groups = [of[id(one)] for one in (network.head.dense.weight, network.backbone.layer4[2].conv3.weight)]
    assert [group["lr"] for group in groups] == [1e-3, 0.5e-3]
    assert of[id(network.backbone.conv1.weight)]["lr"] == pytest.approx(1e-3 * 0.5**depth)
    assert of[id(network.head.dense.weight)]["weight_decay"] == 0.1
    assert of[id(network.head.dense.bias)]["weight_decay"] == 0
    assert of[id(network.backbone.bn1.weight)]["weight_decay"] == 0
    train_epoch(network, optimizer, _batches(1, images=2, batch=2)(0), stage, epoch=1, steps=1)
    half = learning_rate(stage, 1.5)
    assert groups[0]["lr"] == half and groups[1]["lr"] == half / 2
    assert optimizer.param_groups[0]["lr"] == half  # the log has the head's
