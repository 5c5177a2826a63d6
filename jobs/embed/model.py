"""The model of a run, on the device that Ray assigned to a process.

On a CPU for which the network is converted already, it needs no torch.
"""

import numpy as np
import ray
from numpy.typing import NDArray

from clvr_model.card import CARD_FILE, read_card, store_of, verified_fingerprint
from clvr_model.embedder import Embedder, check_precision
from clvr_model.engines import default_cache, reduced_precisions
from clvr_model.graph_cache import has_graph
from clvr_model.precision import Precision, PrecisionCheck, PrecisionOption
from index.archive.reader import ArchiveReader
from index.schema import EMBEDDING_DIM
from infra.errors import BadCheckpoint
from infra.store import Store
from jobs.runtime.image_stream import ImageFailure, stream_images


def fingerprint_for_runs(model: str) -> str:
    """Return the fingerprint of a checkpoint to embed with, before anything is started for it.

    Its weights are read too, unless this machine has their network converted. Raises what `load_checkpoint`
    raises, and BadCheckpoint if its features have another length than the rows of a run.
    """
    store = store_of(model)
    card = read_card(store)
    fingerprint = verified_fingerprint(card, store.uri_of(CARD_FILE))
    length = card.architecture.get("feature_dim", EMBEDDING_DIM)
    if length != EMBEDDING_DIM:
        raise BadCheckpoint(
            f"the features of {model} have {length:,} numbers, the rows of a run {EMBEDDING_DIM:,}",
            remedy=f"Train it with feature_dim={EMBEDDING_DIM}; shorter vectors: `clvr fit-transform`.",
        )
    if not has_graph(default_cache(), card):
        from clvr_model.checkpoint import load_checkpoint

        load_checkpoint(store)
    return fingerprint


def is_converted(model: str) -> bool:
    """Whether this machine has the network of a checkpoint converted for its CPU."""
    return has_graph(default_cache(), read_card(model))


def open_model(model: str, precision: Precision, guard: PrecisionCheck | None) -> Embedder:
    """Load the model of a run on the device that Ray assigned to this actor, at the run's precision."""
    device = _device()
    return Embedder(
        model,
        device=device,
        precision=precision,
        guard=guard,
        cache=default_cache(),
        compiled=device == "cuda",
    )


def convert_model(model: str) -> None:
    """Convert the network of a checkpoint for this node's CPU, and leave it in the cache."""
    Embedder(model, device="cpu", cache=default_cache())


def guard_on_sample(
    model: str, uris: list[str], archive: Store, option: PrecisionOption
) -> PrecisionCheck | None:
    """Compare a reduced precision with fp32 on some crops.

    option: the precision, or 'auto' for those of the device, the fastest first, until one passes; None if it
    has none. Raises BadSetting for a precision that the device lacks.
    """
    device = _device()
    candidates = reduced_precisions(device) if option == "auto" else (option,)
    if not candidates:
        return None
    from clvr_model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(model)
    sample = _read_images(uris, archive, checkpoint.network.architecture.image_size)
    for precision in candidates:
        if len(sample) < 2:
            return PrecisionCheck(0.0, 0.0, len(sample), precision)
        check = check_precision(checkpoint, sample, precision=precision, device=device, cache=default_cache())
        if check.passed:
            break
    return check


def _device() -> str:
    """Return the device that Ray assigned to this process."""
    return "cuda" if ray.get_gpu_ids() else "cpu"


def _read_images(uris: list[str], archive: Store, size: int) -> NDArray[np.uint8]:
    """uint8 (n, size, size, 3) of the crops that can be read, in order."""
    loaded = sorted(stream_images(ArchiveReader(archive), uris, size=size), key=lambda pair: pair[0])
    images = [image for _, image in loaded if not isinstance(image, ImageFailure)]
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
