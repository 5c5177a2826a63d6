"""Any model of the timm package as a backbone, where timm is installed."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clvr_model.backbones.base import Backbone
from clvr_model.layers import Pooling, make_pool
from clvr_model.preprocessing import normalised
from infra.errors import BadSetting

TIMM_PREFIX = "timm:"


class TimmBackbone(Backbone):
    """timm's model without its classifier: float32 (n, 3, 299, 299) in [-1, 1] -> (n, pooled_dim).

    With pooling 'mean' the model pools as timm made it; 'gem' needs a model whose features are a map. A model
    of one fixed input size gets its pictures resized. Raises BadSetting without timm, and for what it does
    not know.
    """

    def __init__(self, name: str, *, pooling: Pooling = "mean", seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = _model(name)
        facts = self.model.pretrained_cfg
        self._mean, self._std = tuple(facts["mean"]), tuple(facts["std"])
        self._size = tuple(facts["input_size"][1:]) if facts.get("fixed_input_size") else None
        self.pooled_dim = int(self.model.num_features)
        classifier = facts.get("classifier") or ()
        self.heads = tuple(
            f"{part}." for part in ([classifier] if isinstance(classifier, str) else classifier)
        )
        self.pool = None if pooling == "mean" else make_pool(pooling)

    @property
    def published_part(self) -> nn.Module:
        """timm's model, whose parameters have timm's names."""
        model: nn.Module = self.model
        return model

    def forward(self, x: Tensor) -> Tensor:
        """float32 (n, 3, 299, 299) -> (n, pooled_dim)."""
        x = normalised(x, self._mean, self._std)
        if self._size:
            x = functional.interpolate(x, self._size, mode="bilinear", antialias=True)
        if self.pool is None:
            whole: Tensor = self.model(x)
            return whole
        features = self.model.forward_features(x)
        if features.ndim != 4 or int(features.shape[1]) != self.pooled_dim:
            raise BadSetting("pooling is 'gem', but this timm model gives no map", remedy="set pooling=mean")
        pooled: Tensor = self.pool(features)
        return pooled


def _model(name: str) -> Any:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise BadSetting(
            f"the backbone {name} needs timm, which cannot be imported here: {error}",
            remedy="pip install 'clvr-archive[timm]', or use another backbone",
        ) from error
    try:
        return timm.create_model(name.removeprefix(TIMM_PREFIX), pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise BadSetting(
            f"timm has no model {name.removeprefix(TIMM_PREFIX)!r}",
            remedy="`python -c 'import timm; print(timm.list_models())'` lists those it has",
        ) from error
