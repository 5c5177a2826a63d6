"""Training speed on a CPU by memory order, bfloat16, torch.compile and cached features.

    python tests/benchmarks/bench_train.py [--images 8] [--turns 3] [--network inception_v3] [--compile]

One thread. The variants take turns in one run, and the ratio is the median over the turns against fp32,
NCHW. The unit is images a CPU second, which other processes distort less than images a second. The frozen
stage is a forward pass, which fills the feature cache; the full stage is a step of SGD over all layers.
bfloat16 is skipped where the processor has none. torch.compile needs `--compile`: it takes a minute or more
before its first step.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import Row, add_json_option, machine, save_rows

from clvr_model.engines import has_bf16
from clvr_model.network import Clvr
from clvr_model.normalization import to_input
from clvr_model.preprocessing import IMAGE_SIZE
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
    started = time.process_time()
    work()
    return time.process_time() - started


def race(title: str, images: int, ways: dict[str, Callable[[], Any]], turns: int) -> list[Row]:
    for work in ways.values():
        work()  # allocates buffers, primitives and graphs
    seconds = {name: [] for name in ways}  # type: dict[str, list[float]]
    for _ in range(turns):
        for name, work in ways.items():
            seconds[name].append(cpu_seconds(work))
    first = next(iter(ways))
    base = images / statistics.median(seconds[first])
    print(f"\n{title}")
    rows = []
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[first], taken, strict=True))
        rate = images / statistics.median(taken)
        print(f"  {name:32} {rate:7.2f} images/CPU-s   x {ratio:5.2f}", flush=True)
        if name != first:
            rows.append(Row(f"{title}: {name}", f"{rate:.2f} images/CPU-s", f"{first}: {base:.2f}", ratio))
    return rows


def ways_of(args: argparse.Namespace, *, full: bool) -> dict[str, Callable[[], Any]]:
    images = torch.randint(0, 256, (args.images, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8)
    classes = torch.arange(args.images) % 4

    def way(order: torch.memory_format, precision: str, compiled: bool = False) -> Callable[[], Any]:
        network = Clvr(228, backbone=args.network).to(memory_format=order)  # type: ignore[call-overload]
        optimizer = make_optimizer(network, FULL if full else HEAD)
        # `to_input` gives channels_last, and a convolution follows its input whatever the weights' order.
        inputs = images if order == torch.channels_last else to_input(images).contiguous()
        if compiled:
            (network if full else network.backbone).compile()
        if full:
            return lambda: train_step(network, optimizer, inputs, classes, precision=precision)
        return lambda: pooled_features(network, [(inputs, classes)], precision=precision)

    ways = {
        "fp32, NCHW": way(torch.contiguous_format, "fp32"),
        "fp32, channels_last": way(torch.channels_last, "fp32"),
    }
    if has_bf16("cpu"):
        ways["bf16, NCHW"] = way(torch.contiguous_format, "bf16")
        ways["bf16, channels_last"] = way(torch.channels_last, "bf16")
    if args.compile:
        ways["fp32, channels_last, compiled"] = way(torch.channels_last, "fp32", compiled=True)
        if has_bf16("cpu"):
            ways["bf16, channels_last, compiled"] = way(torch.channels_last, "bf16", compiled=True)
    return ways


def cache(args: argparse.Namespace) -> Row:
    """Run the paper's first stage, ten epochs, as a plain loop and over cached features."""
    count = 2 * args.images
    images = torch.randint(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8)
    classes = torch.arange(count) % 4
    networks = [Clvr(228, backbone=args.network).to(memory_format=torch.channels_last) for _ in range(2)]

    def plain() -> None:
        optimizer = make_optimizer(networks[0], HEAD)
        for epoch in range(HEAD.epochs):
            order = torch.from_numpy(epoch_order(count, seed=0, stage=0, epoch=epoch))
            batches = [(images[rows], classes[rows]) for rows in order.split(args.images)]
            train_epoch(networks[0], optimizer, batches, HEAD, epoch=epoch)

    def cached() -> None:
        optimizer = make_optimizer(networks[1], HEAD)
        batches = list(zip(images.split(args.images), classes.split(args.images), strict=True))
        features = pooled_features(networks[1], batches)
        for epoch in range(HEAD.epochs):
            order = epoch_order(count, seed=0, stage=0, epoch=epoch)
            train_epoch(
                networks[1].head,
                optimizer,
                cached_batches(features, order, args.images),
                HEAD,
                epoch=epoch,
            )

    slow, fast = cpu_seconds(plain), cpu_seconds(cached)
    difference = max(
        float((a - b).detach().abs().max())
        for a, b in zip(networks[0].head.parameters(), networks[1].head.parameters(), strict=True)
    )
    title = f"Stage 1, {HEAD.epochs} epochs of {count} images, fp32, channels_last"
    print(f"\n{title}")
    print(f"  plain loop       {slow:7.1f} CPU-s")
    print(
        f"  cached features  {fast:7.1f} CPU-s   x {slow / fast:5.2f}; "
        f"weights differ by at most {difference:.1e}"
    )
    return Row(f"{title}: cached features", f"{fast:.1f} CPU s", f"plain loop: {slow:.1f} CPU s", slow / fast)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="in a batch")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--network", default="inception_v3")
    parser.add_argument("--compile", action="store_true")
    add_json_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{machine()}\n{args.network}, batches of {args.images}")
    rows = race("Frozen stage, forward", args.images, ways_of(args, full=False), args.turns)
    rows += race("Full stage, one step", args.images, ways_of(args, full=True), args.turns)
    save_rows([*rows, cache(args)], args.json)


if __name__ == "__main__":
    main()
