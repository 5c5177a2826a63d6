"""Random first weights that depend on a seed alone."""

import torch
from torch import nn


def initialise(module: nn.Module, seed: int) -> None:
    """Draw all convolution and dense weights anew from `seed`, so that random networks are reproducible.

    Fan-in scaling (He et al. 2015) keeps the activations' size through all layers, also with untrained batch
    statistics. A module on the meta device is left as it is: its weights are about to be loaded.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear) and not part.weight.is_meta:
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu", generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
