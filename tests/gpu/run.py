"""Run every GPU path of clvr_model and index on this machine: the CPU's results, and how fast.

make gpu                                     on a machine with a CUDA device, in less than 8 minutes
make gpu GPU="--device cpu --scale tiny"     the same checks without one

Prints a table, writes `gpu.json`, and exits with 1 if a result differs from the CPU's. Ray takes no part.
"""

import argparse
import io
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from clvr_model.checkpoint import Card, Checkpoint, save_checkpoint
from clvr_model.embedder import Embedder
from clvr_model.engines import reduced_precisions
from clvr_model.network import Clvr
from clvr_model.precision import Precision
from clvr_model.preprocessing import decode
from clvr_model.recipe import Stage
from clvr_model.serving import ServingModule
from clvr_model.torch_engine import rounding
from clvr_model.training import (
    DeviceTotals,
    make_optimizer,
    reestimate_batch_statistics,
    train_epoch,
    train_step,
    training_mode,
)
from index.evaluation.cmc import LabeledFeatures, cmc
from index.exact.knn import nearest
from infra.errors import BadSetting, TrainingDiverged

CLASSES = 228
# Of features, the length of the error as a share of the length: several times the rounding of a product.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "tf32": 0.02, "bf16": 0.2}
# Of the losses of a few steps, relative. torch rounds convolutions to TF32 by default when it trains.
LOSS_TOLERANCE = {"fp32": 0.02, "bf16": 0.1}
STAGE = Stage(name="target", epochs=1, optimizer="sgd", lr=1e-3, momentum=0.9)


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of the checks: images to compare and to time, training batch, probes, gallery, seconds a rate."""

    network: str
    compared: int
    timed: int
    batch: int
    probes: int
    gallery: int
    seconds: float


SCALES = {
    "full": Scale("inception_v3", 64, 2048, 64, 512, 200_000, 5.0),
    "tiny": Scale("efficientnet_lite0", 4, 8, 4, 24, 500, 0.0),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A measured value, and whether it is as it must be; None for a value that nothing is compared with."""

    path: str
    what: str
    value: float | str
    unit: str = ""
    passed: bool | None = None

    def line(self) -> str:
        """Return a row of the table."""
        value = self.value if isinstance(self.value, str) else f"{self.value:,.4g}"
        mark = {None: "", True: "ok", False: "WRONG"}[self.passed]
        return f"{self.path:<11} {self.what:<44} {value:>14} {self.unit:<14} {mark}"


class Checks:
    """The checks of a device."""

    def __init__(self, device: str, scale: Scale) -> None:
        self.device, self.scale = device, scale
        self.is_cuda = device.startswith("cuda")
        rng = np.random.default_rng(0)
        network = Clvr(CLASSES, backbone=scale.network, seed=0)
        self.size = network.architecture.image_size
        shape = (max(scale.compared, scale.batch), self.size, self.size, 3)
        self.images: NDArray[np.uint8] = rng.integers(0, 256, shape, np.uint8)
        # With initial statistics of the batches, the features of all images are almost equal.
        sample = torch.from_numpy(self.images[: scale.compared])
        reestimate_batch_statistics(network, [(sample, torch.zeros(1))])
        self.network = network
        self.precisions: list[Precision] = ["fp32", *reversed(reduced_precisions(device))]

    def machine(self) -> Iterator[Finding]:
        """Name the hardware and the software."""
        name = torch.cuda.get_device_name(self.device) if self.is_cuda else platform.processor() or "CPU"
        yield Finding("machine", "device", name)
        yield Finding("machine", "CPU cores", float(len(os.sched_getaffinity(0))))
        yield Finding("machine", "torch, CUDA", f"{torch.__version__}, {torch.version.cuda}")
        yield Finding("machine", "precisions", " ".join(self.precisions))

    def embedding(self, checkpoint: Checkpoint) -> Iterator[Finding]:
        """Compare features with those of the CPU, and measure images a second and the share of the peak."""
        compared = self.images[: self.scale.compared]
        exact = Embedder(checkpoint, device="cpu", engine="torch", threads=0)(compared)
        timed = np.resize(self.images, (self.scale.timed, *self.images.shape[1:]))
        flops = _flops(self.network, self.images[:1])
        for precision in self.precisions:
            peak = self._peak_flops(precision)
            yield Finding("embedding", f"{precision}: largest product", peak / 1e12, "TFLOP/s")
            for compiled in (False, True) if self.is_cuda else (False,):
                embedder = Embedder(
                    checkpoint,
                    device=self.device,
                    engine="torch",
                    precision=precision,
                    threads=0,
                    compiled=compiled,
                )
                title = f"{precision}{', compiled' if compiled else ''}"
                started = time.perf_counter()
                features = embedder(compared).features
                yield Finding("embedding", f"{title}: first batch", time.perf_counter() - started, "s")
                error = float(np.linalg.norm(features - exact.features) / np.linalg.norm(exact.features))
                passed = error <= TOLERANCE[precision]
                yield Finding("embedding", f"{title}: error of the features", error, "", passed)
                rate = self._rate(partial(embedder, timed), len(timed))
                yield Finding("embedding", f"{title}: rate", rate, "images/s")
                share = 100 * rate * flops / peak
                yield Finding("embedding", f"{title}: share of that product", share, "%")

    def training(self) -> Iterator[Finding]:
        """Compare the losses of a few steps with the CPU's, measure steps, and look for waits."""
        expected = self._losses("cpu", "fp32")
        batch = self.images[: self.scale.batch]
        precisions = [each for each in self.precisions if each in LOSS_TOLERANCE]
        for precision in precisions:
            error = float(np.abs(self._losses(self.device, precision) / expected - 1).max())
            passed = error <= LOSS_TOLERANCE[precision]
            yield Finding("training", f"{precision}: largest error of a loss", error, "", passed)
            if self.is_cuda:
                yield Finding("training", f"{precision}: steps wait for the GPU", *self._waits(precision))
            rate = self._rate(self._step(batch, precision)[0], len(batch))
            yield Finding("training", f"{precision}: batch of {len(batch)}", rate, "images/s")
        if self.is_cuda:  # to decide whether `clvr train` should compile
            rate = self._rate(self._step(batch, precisions[-1], compiled=True)[0], len(batch))
            yield Finding("training", f"{precisions[-1]}: batch of {len(batch)}, compiled", rate, "images/s")

    def memory(self) -> Iterator[Finding]:
        """Train with little memory: the error names a micro_batch, and that one fits."""
        if not self.is_cuda:
            return
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3 * 2**30) / total)
        images = np.resize(self.images, (256, *self.images.shape[1:]))
        try:
            try:
                self._epoch(images, STAGE)
                yield Finding("memory", "256 images in 3 GiB", "fit", "", False)
                return
            except BadSetting as error:
                advice = int((error.remedy or "").partition("micro_batch=")[2].partition(",")[0] or 0)
            yield Finding("memory", "advised micro_batch in 3 GiB", float(advice), "images", advice > 0)
            self._epoch(images, STAGE.model_copy(update={"micro_batch": advice}))
            yield Finding("memory", "the advised micro_batch fits", "yes", "", True)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    def divergence(self) -> Iterator[Finding]:
        """Train at a rate that destroys the weights: the epoch ends with an error and not with a result."""
        stage = STAGE.model_copy(update={"lr": 1e38})
        try:
            self._epoch(self.images[: self.scale.batch], stage, steps=3)
        except TrainingDiverged:
            yield Finding("training", "a loss that is not finite is an error", "yes", "", True)
        else:
            yield Finding("training", "a loss that is not finite is an error", "no", "", False)

    def exact(self) -> Iterator[Finding]:
        """Compare the exact scan and CMC with the CPU's: equal ids and ranks."""
        rng = np.random.default_rng(1)
        vehicles = np.arange(self.scale.gallery) % max(2, self.scale.gallery // 20)
        centers = rng.standard_normal((vehicles.max() + 1, 1024), np.float32)
        gallery = centers[vehicles] + rng.standard_normal((len(vehicles), 1024), np.float32)
        rows = np.arange(self.scale.probes) * len(gallery) // self.scale.probes
        probes = gallery[rows] + np.float32(0.1) * rng.standard_normal((len(rows), 1024), np.float32)
        scans, scan_seconds, ranks, rank_seconds = [], [], [], []
        for device in ("cpu", self.device):
            blocks = [(np.arange(len(gallery)), gallery)]
            started = time.perf_counter()
            scans.append(nearest(probes, blocks, 50, device=device)[0])
            scan_seconds.append(time.perf_counter() - started)
            labelled = LabeledFeatures(probes, vehicles[rows]), LabeledFeatures(gallery, vehicles)
            started = time.perf_counter()
            ranks.append(cmc(*labelled, device=device).first_ranks)
            rank_seconds.append(time.perf_counter() - started)
        title = f"{len(probes):,} probes, {len(gallery):,} rows"
        yield Finding("exact scan", f"{title}: ids", "compared", "", bool(np.array_equal(*scans)))
        yield Finding("exact scan", f"{title}: CPU", scan_seconds[0], "s")
        yield Finding("exact scan", f"{title}: {self.device}", scan_seconds[1], "s")
        yield Finding("CMC", f"{title}: ranks", "compared", "", bool(np.array_equal(*ranks)))
        yield Finding("CMC", f"{title}: CPU", rank_seconds[0], "s")
        yield Finding("CMC", f"{title}: {self.device}", rank_seconds[1], "s")

    def feed(self) -> Iterator[Finding]:
        """Measure how many images the cores of this machine decode for the device."""
        cores = len(os.sched_getaffinity(0))
        tasks = [(_jpeg(number), self.size, self.scale.seconds) for number in range(cores)]
        with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
            rates = list(pool.map(_decode_rate, tasks))
        kilobytes = np.mean([len(data) for data, *_ in tasks]) / 1000
        yield Finding("feed", f"{cores} cores decode JPEG of {kilobytes:.0f} KB", sum(rates), "images/s")

    def _rate(self, run: Callable[[], Any], images: int) -> float:
        run()
        self._wait()
        done, started = 0, time.perf_counter()
        while not done or time.perf_counter() - started < self.scale.seconds:
            run()
            done += images
        self._wait()
        return done / (time.perf_counter() - started)

    def _wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def _peak_flops(self, precision: Precision) -> float:
        """Measure a large matrix product: what a network can reach at most."""
        side = 8192 if self.is_cuda else 512
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        x, y = (torch.rand(side, side, device=self.device, dtype=kind) for _ in range(2))
        with rounding(torch.device(self.device), precision):
            return self._rate(lambda: torch.mm(x, y), 1) * 2 * side**3

    def _step(
        self, images: NDArray[np.uint8], precision: str, *, device: str = "", compiled: bool = False
    ) -> tuple[Callable[[], Any], DeviceTotals]:
        """Return a training step on a fresh network, and the totals to which it adds."""
        device = device or self.device
        network = Clvr(CLASSES, backbone=self.scale.network, seed=0)
        network.load_state_dict(self.network.state_dict())
        network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(network, STAGE)
        training_mode(network, STAGE)
        if compiled:
            network.compile()
        batch = torch.from_numpy(images).to(device), torch.arange(len(images), device=device)
        totals = DeviceTotals()
        return lambda: train_step(network, optimizer, *batch, precision=precision, totals=totals), totals

    def _losses(self, device: str, precision: str) -> NDArray[np.float64]:
        """Return the summed loss after each of three steps."""
        step, totals = self._step(self.images[: self.scale.compared], precision, device=device)
        losses = []
        for _ in range(3):
            step()
            losses.append(totals.read().loss)
        return np.array(losses)

    def _waits(self, precision: str) -> tuple[str, str, bool]:
        """Let torch raise an error where a step waits for the GPU."""
        step, _ = self._step(self.images[: self.scale.batch], precision)
        step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        except RuntimeError as error:
            return str(error).partition("\n")[0][:14], "", False
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return "never", "", True

    def _epoch(self, images: NDArray[np.uint8], stage: Stage, *, steps: int = 1) -> None:
        network = Clvr(CLASSES, backbone=self.scale.network, seed=0).to(self.device)
        classes = torch.arange(len(images), device=self.device) % CLASSES
        batch = torch.from_numpy(images).to(self.device), classes
        train_epoch(network, make_optimizer(network, stage), [batch] * steps, stage)


def _flops(network: Clvr, image: NDArray[np.uint8]) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        ServingModule(network.eval())(torch.from_numpy(image))
    return float(counter.get_total_flops())


def _jpeg(seed: int) -> bytes:
    """Return a smooth image with some noise, about as large as a vehicle crop."""
    rng = np.random.default_rng(seed)
    colors = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    smooth = np.asarray(colors.resize((280, 240), Image.Resampling.BICUBIC), np.int16)
    pixels = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def _decode_rate(task: tuple[bytes, int, float]) -> float:
    data, size, seconds = task
    done, started = 0, time.perf_counter()
    while not done or time.perf_counter() - started < seconds:
        decode(data, size)
        done += 1
    return done / (time.perf_counter() - started)


@contextmanager
def _checkpoint(network: Clvr) -> Iterator[Checkpoint]:
    with tempfile.TemporaryDirectory() as folder:
        yield save_checkpoint(folder, network, Card(label_ids=tuple(range(CLASSES))))


def run(device: str, scale: Scale) -> list[Finding]:
    """Run all checks; a check that raises an error is a wrong result, and the others still run."""
    findings: list[Finding] = []
    checks = Checks(device, scale)
    with _checkpoint(checks.network) as checkpoint:
        for check in (
            checks.machine,
            partial(checks.embedding, checkpoint),
            checks.training,
            checks.divergence,
            checks.memory,
            checks.exact,
            checks.feed,
        ):
            try:
                for finding in check():
                    findings.append(finding)
                    print(finding.line(), flush=True)
            except Exception as error:
                traceback.print_exc()
                message = str(error).partition("\n")[0]
                findings.append(Finding("error", type(error).__name__, message, "", False))
    return findings


def main() -> None:
    """Parse the options, run the checks, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} finds no CUDA device: install one for this driver's CUDA")
    findings = run(args.device, SCALES[args.scale])
    args.json.write_text(json.dumps([asdict(each) for each in findings], indent=2) + "\n")
    wrong = [each for each in findings if each.passed is False]
    num_checks = sum(each.passed is not None for each in findings)
    print(f"{len(wrong)} of {num_checks} checks are wrong; {args.json}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
