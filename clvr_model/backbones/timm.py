"""Any model of the timm package as a backbone, where timm is installed."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clvr_model.backbones.base import Backbone
from clvr_model.layers import Pooling, make_pool
from clvr_model.normalization import normalize
from infra.errors import BadSetting

TIMM_PREFIX = "timm:"


class TimmBackbone(Backbone):
    """timm's model without its classifier: float32 (n, 3, 299, 299) in [-1, 1] -> (n, pooled_dim).

    With pooling 'mean' the model uses its own pool; 'gem' needs a model whose features are a map. Images are
    resized for a model of a fixed input size. Raises BadSetting without timm, and for an unknown model.
    """

    def __init__(self, name: str, *, pooling: Pooling = "mean", seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = _model(name)
        config = self.model.pretrained_cfg
        self._mean, self._std = tuple(config["mean"]), tuple(config["std"])
        self._size = tuple(config["input_size"][1:]) if config.get("fixed_input_size") else None
        self.pooled_dim = int(self.model.num_features)
        classifier = config.get("classifier") or ()
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
        x = normalize(x, self._mean, self._std)
        if self._size:
            x = functional.interpolate(x, self._size, mode="bilinear", antialias=True)
        if self.pool is None:
            output: Tensor = self.model(x)
            return output
        features = self.model.forward_features(x)
        if features.ndim != 4 or int(features.shape[1]) != self.pooled_dim:
            raise BadSetting(
                "pooling is 'gem', but this timm model has no feature map", remedy="set pooling=mean"
            )
        pooled: Tensor = self.pool(features)
        return pooled


def _model(name: str) -> Any:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise BadSetting(
            f"the backbone {name} needs timm, which cannot be imported: {error}",
            remedy="pip install 'clvr-archive[timm]', or use another backbone",
        ) from error
    try:
        return timm.create_model(name.removeprefix(TIMM_PREFIX), pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise BadSetting(
            f"timm has no model {name.removeprefix(TIMM_PREFIX)!r}",
            remedy="`python -c 'import timm; print(timm.list_models())'` lists those it has",
        ) from error
