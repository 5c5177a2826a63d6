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
    """timm's model without its classifier: float32 (n, 3, h, w) in [-1, 1] -> (n, pooled_dim).

    With pooling 'mean' the model uses its own pool; 'gem' needs a model whose features are a map. size: h and
    w; 0 for 299, which a model of a fixed input size then resizes. Raises BadSetting without timm, for an
    unknown model, and for one that cannot be built for that size.
    """

    def __init__(self, name: str, *, pooling: Pooling = "mean", seed: int = 0, size: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = _model(name, size)
        config = self.model.pretrained_cfg
        self._mean, self._std = tuple(config["mean"]), tuple(config["std"])
        is_fixed = config.get("fixed_input_size") and not size
        self._size = tuple(config["input_size"][1:]) if is_fixed else None
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
        """float32 (n, 3, h, w) -> (n, pooled_dim)."""
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


def _model(name: str, size: int) -> Any:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise BadSetting(
            f"the backbone {name} needs timm, which cannot be imported: {error}",
            remedy="pip install 'clvr-archive[timm]', or use another backbone",
        ) from error
    known = name.removeprefix(TIMM_PREFIX)
    try:
        model = timm.create_model(known, pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise BadSetting(
            f"timm has no model {known!r}",
            remedy="`python -c 'import timm; print(timm.list_models())'` lists those it has",
        ) from error
    if not size or not model.pretrained_cfg.get("fixed_input_size"):
        return model
    try:
        return timm.create_model(known, pretrained=False, num_classes=0, img_size=size)
    except (TypeError, ValueError, AssertionError) as error:
        own = model.pretrained_cfg["input_size"][1]
        raise BadSetting(f"image_size is {size}", remedy=f"{name} takes images of {own} pixels") from error
