"""What makes training faster on a CPU: memory order, bfloat16, torch.compile, and the kept features.

    python tests/benchmarks/bench_train.py [--pictures 8] [--turns 3] [--network inception_v3] [--compile]

One thread. Ways take turns in one run; pictures a CPU second are told, which a machine that others use
changes less than pictures a second, and the ratio is the median over the turns against the first way. The
frozen stage is a pass forward (what fills the cache); the full stage is a step of SGD over all layers.
torch.compile is left out unless asked for: it needs a minute or more before its first step.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from clvr_model.network import Clvr
from clvr_model.preprocessing import IMAGE_SIZE, to_input
from clvr_model.recipe import Stage
from clvr_model.training import (
    cached_batches,
    epoch_order,
    make_optimizer,
    pooled_features,
    train_epoch,
    train_step,
)

HEAD = Stage(name="warmup", epochs=10, optimizer="rmsprop", lr=1e-3, trainable="head")
FULL = Stage(name="target", epochs=1, optimizer="sgd", lr=1e-4, momentum=0.9)


def cpu_seconds(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def race(title: str, pictures: int, ways: dict[str, Callable[[], Any]], turns: int) -> None:
    for work in ways.values():
        work()  # buffers, primitives and graphs are made once
    seconds = {name: [] for name in ways}  # type: dict[str, list[float]]
    for _ in range(turns):
        for name, work in ways.items():
            seconds[name].append(cpu_seconds(work))
    first = next(iter(ways))
    print(f"\n{title}")
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[first], taken, strict=True))
        print(
            f"  {name:32} {pictures / statistics.median(taken):7.2f} pictures/CPU-s   x {ratio:5.2f}",
            flush=True,
        )


def ways_of(given: argparse.Namespace, *, full: bool) -> dict[str, Callable[[], Any]]:
    pictures = torch.randint(0, 256, (given.pictures, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8)
    classes = torch.arange(given.pictures) % 4

    def way(order: torch.memory_format, precision: str, compiled: bool = False) -> Callable[[], Any]:
        network = Clvr(228, backbone=given.network).to(memory_format=order)  # type: ignore[call-overload]
        optimizer = make_optimizer(network, FULL if full else HEAD)
        # `to_input` gives channels_last, and a convolution follows its input whatever the weights' order.
        inputs = pictures if order == torch.channels_last else to_input(pictures).contiguous()
        if compiled:
            (network if full else network.backbone).compile()
        if full:
            return lambda: train_step(network, optimizer, inputs, classes, precision=precision)
        return lambda: pooled_features(network, [(inputs, classes)], precision=precision)

    ways = {
        "fp32, NCHW": way(torch.contiguous_format, "fp32"),
        "fp32, channels_last": way(torch.channels_last, "fp32"),
        "bf16, NCHW": way(torch.contiguous_format, "bf16"),
        "bf16, channels_last": way(torch.channels_last, "bf16"),
    }
    if given.compile:
        ways["fp32, channels_last, compiled"] = way(torch.channels_last, "fp32", compiled=True)
        ways["bf16, channels_last, compiled"] = way(torch.channels_last, "bf16", compiled=True)
    return ways


def cache(given: argparse.Namespace) -> None:
    """The paper's first stage, ten epochs, once as a plain loop and once over kept features."""
    count = 2 * given.pictures
    pictures = torch.randint(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8)
    classes = torch.arange(count) % 4
    networks = [Clvr(228, backbone=given.network).to(memory_format=torch.channels_last) for _ in range(2)]

    def plain() -> None:
        optimizer = make_optimizer(networks[0], HEAD)
        for epoch in range(HEAD.epochs):
            order = torch.from_numpy(epoch_order(count, seed=0, stage=0, epoch=epoch))
            batches = [(pictures[rows], classes[rows]) for rows in order.split(given.pictures)]
            train_epoch(networks[0], optimizer, batches, HEAD, epoch=epoch)

    def kept() -> None:
        optimizer = make_optimizer(networks[1], HEAD)
        batches = list(zip(pictures.split(given.pictures), classes.split(given.pictures), strict=True))
        features = pooled_features(networks[1], batches)
        for epoch in range(HEAD.epochs):
            order = epoch_order(count, seed=0, stage=0, epoch=epoch)
            train_epoch(
                networks[1].head,
                optimizer,
                cached_batches(features, order, given.pictures),
                HEAD,
                epoch=epoch,
            )

    slow, fast = cpu_seconds(plain), cpu_seconds(kept)
    most = max(
        float((a - b).detach().abs().max())
        for a, b in zip(networks[0].head.parameters(), networks[1].head.parameters(), strict=True)
    )
    print(f"\nStage 1, {HEAD.epochs} epochs of {count} pictures, fp32, channels_last")
    print(f"  plain loop     {slow:7.1f} CPU-s")
    print(f"  kept features  {fast:7.1f} CPU-s   x {slow / fast:5.2f}; weights differ by {most:.1e} at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=8, help="in a batch")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--network", default="inception_v3")
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{given.network}, batches of {given.pictures}, load average {os.getloadavg()[0]:.1f}")
    race("Frozen stage, a pass forward", given.pictures, ways_of(given, full=False), given.turns)
    race("Full stage, a step over all layers", given.pictures, ways_of(given, full=True), given.turns)
    cache(given)


if __name__ == "__main__":
    main()
