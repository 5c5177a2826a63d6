"""A checkpoint of a pretrained backbone alone: its pooled feature at the length of the index, L2-normalized.

It has no classifier and needs no labels. The dense layer holds a fixed projection instead of learned weights.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from clvr_model.backbones import BACKBONES, imagenet_weights, is_timm
from clvr_model.checkpoint import NO_LABELS, Card
from clvr_model.network import FEATURE_DIM, Clvr
from clvr_model.weights import BackboneSource, load_backbone
from infra.errors import BadCheckpoint, BadSetting

PROJECTION_SEED = 0


def pretrained_network(source: str, backbone: str | None = None) -> tuple[Clvr, Card]:
    """Return the network of a backbone with published weights, in eval mode, and its card.

    source: the name of a backbone, for its ImageNet weights, or any source that `weights.load_backbone`
    takes. backbone: of such a source; by default the registered one whose parameters it has. Raises
    BadSetting for `random` and for a name with another backbone, BadCheckpoint for weights of no registered
    backbone, and the errors of `load_backbone`.
    """
    if source in BACKBONES or is_timm(source):
        if backbone not in (None, source):
            raise BadSetting(f"{source} is a backbone, and so is {backbone}", remedy="name one of them")
        backbone, weights = source, imagenet_weights(source)
    else:
        weights = source
    network, loaded = _load(weights, backbone)
    with torch.no_grad():
        network.head.dense.weight.copy_(
            torch.from_numpy(projection(network.backbone.pooled_dim, FEATURE_DIM))
        )
        network.head.dense.bias.zero_()
    card = Card(
        label_ids=(),
        backbone={
            "source": loaded.source,
            "sha256": loaded.sha256,
            "projection": describe_projection(network.backbone.pooled_dim, FEATURE_DIM),
        },
        labels_used=NO_LABELS,
    )
    return network.eval(), card


def projection(inputs: int, outputs: int, seed: int = PROJECTION_SEED) -> NDArray[np.float32]:
    """Return the matrix (outputs, inputs) that brings a feature to another length and keeps L2 distances.

    Up to `outputs` dimensions it appends zeros, and distances stay equal. From more dimensions it projects
    onto a random subspace, scaled so that the mean squared distance stays equal (Johnson and Lindenstrauss,
    1984): 1280 to 1024 changes a distance by about 1 %, 2048 to 1024 by about 2 % (standard deviation).
    """
    if inputs <= outputs:
        return np.eye(outputs, inputs, dtype=np.float32)
    gaussian = np.random.default_rng(seed).standard_normal((inputs, outputs))
    orthonormal, triangle = np.linalg.qr(gaussian)
    orthonormal *= np.sign(np.diag(triangle))  # LAPACK leaves the signs open
    return np.ascontiguousarray(orthonormal.T * np.sqrt(inputs / outputs), dtype=np.float32)


def describe_projection(inputs: int, outputs: int) -> str:
    """Say in words what `projection` does, for the card."""
    if inputs <= outputs:
        return f"{inputs} dimensions and {outputs - inputs} zeros"
    return f"{inputs} dimensions projected onto {outputs} random ones, seed {PROJECTION_SEED}"


def _load(weights: str, backbone: str | None) -> tuple[Clvr, BackboneSource]:
    for name in [backbone] if backbone else BACKBONES:
        network = Clvr(0, FEATURE_DIM, backbone=name, feature_relu=False, l2_normalized=True)
        try:
            loaded = load_backbone(network, weights)
        except BadCheckpoint:
            if backbone:
                raise
            continue
        if not loaded.sha256:
            raise BadSetting("random weights are not pretrained", remedy="give a backbone's name or weights")
        return network, loaded
    raise BadCheckpoint(
        f"{weights} is weights of none of {', '.join(BACKBONES)}", remedy="name it: --network NAME"
    )
