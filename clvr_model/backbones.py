"""The backbones that a CLVR network can have, by name, and where their ImageNet weights lie."""

from clvr_model.inception import InceptionV3
from clvr_model.pooling import Pooling
from clvr_model.resnet import ResNet50
from clvr_model.timm_backbone import TIMM_PREFIX, TimmBackbone
from clvr_model.vgg import Vgg16
from infra.errors import BadSetting

INCEPTION = "inception_v3"
# Published weights, all of them trained on ImageNet, under torchvision's parameter names.
IMAGENET_WEIGHTS = {
    INCEPTION: "hf:timm/inception_v3.tv_in1k",
    "resnet50": "hf:timm/resnet50.tv_in1k",
    "vgg16": "hf:timm/vgg16.tv_in1k",
}

Backbone = InceptionV3 | ResNet50 | Vgg16 | TimmBackbone


def build_backbone(
    name: str, *, pooling: Pooling, last_stride: int, pool_counts_padding: bool, seed: int
) -> Backbone:
    """The backbone of that name, with random weights from `seed`.

    `pool_counts_padding` is Inception-V3's. Raises BadSetting as `check_backbone` and TimmBackbone do.
    """
    check_backbone(name)
    match name:
        case "resnet50":
            return ResNet50(pooling=pooling, last_stride=last_stride, seed=seed)
        case "vgg16":
            return Vgg16(pooling=pooling, last_stride=last_stride, seed=seed)
        case "inception_v3":
            return InceptionV3(
                pool_counts_padding=pool_counts_padding, pooling=pooling, last_stride=last_stride, seed=seed
            )
        case _:
            return TimmBackbone(name, pooling=pooling, last_stride=last_stride, seed=seed)


def check_backbone(name: object) -> None:
    """Raise BadSetting unless the name is one of ours or timm:NAME."""
    ours = isinstance(name, str) and name in IMAGENET_WEIGHTS
    if not ours and not (isinstance(name, str) and name.startswith(TIMM_PREFIX) and name != TIMM_PREFIX):
        known = ", ".join(IMAGENET_WEIGHTS)
        raise BadSetting(f"there is no backbone {name!r}", remedy=f"choose {known}, or timm:NAME")


def imagenet_weights(name: str) -> str:
    """Where the backbone's ImageNet weights lie, as `weights.load_backbone` takes it.

    Raises BadSetting for a timm model without the tag that names its weights.
    """
    if name in IMAGENET_WEIGHTS:
        return IMAGENET_WEIGHTS[name]
    check_backbone(name)
    model = name.removeprefix(TIMM_PREFIX)
    if "." not in model:
        raise BadSetting(
            f"{name} does not say which weights", remedy="add timm's tag, such as timm:resnet18.a1_in1k"
        )
    return f"hf:timm/{model}"
