"""Crops a second that one core embeds, and what a million crops cost at this rate."""

import time

import numpy as np

from clvr_model.embedder import Embedder
from clvr_model.engines import default_cache
from index.runs.run import Run
from infra.capacity import NodeType, Prices, Rates, estimate
from jobs.embed.precision import precision_of

_MIN_SECONDS = 2.0
_MIN_BATCHES = 5
_MILLION = 1_000_000


def crops_per_core_second(run: Run) -> float:
    """Measure the embedder of a run on this machine's CPU: its checkpoint and precision, one thread.

    Fetching and decoding are left out. CPU seconds of the fastest batch are counted, so other processes
    matter little. The pixels are random: they do not change the work. Raises BadCheckpoint, BadSetting as the
    embedder does.
    """
    decision = precision_of(run)
    embedder = Embedder(
        run.info.model,
        device="cpu",
        precision=decision.precision,
        threads=1,
        guard=decision.guard,
        cache=default_cache(),
    )
    shape = (embedder.batch_size, embedder.image_size, embedder.image_size, 3)
    batch = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    embedder(batch)
    seconds: list[float] = []
    while len(seconds) < _MIN_BATCHES or sum(seconds) < _MIN_SECONDS:
        started = time.process_time()
        embedder(batch)
        seconds.append(time.process_time() - started)
    return embedder.batch_size / min(seconds)


def dollars_per_million(rate: float) -> float:
    """Return the compute and requests of a million crops at this rate a core, as `docs/scaling.md` counts."""
    rates, prices = Rates(), Prices()
    core = NodeType("one core", rate * rates.saturated, prices.cpu_core_hour)
    return estimate(_MILLION, core, rates, prices).dollars_per_million
