"""The registry of backbones, by name.

A new backbone is a module with a subclass of `Backbone`, which has its facts, and a line in `BACKBONES`.
"""

from clvr_model.backbones.base import Backbone
from clvr_model.backbones.efficientnet_lite import EfficientNetLite0, EfficientNetLite1, EfficientNetLite2
from clvr_model.backbones.inception import InceptionV3
from clvr_model.backbones.resnet import ResNet50, ResNet50Ibn
from clvr_model.backbones.timm import TIMM_PREFIX, TimmBackbone
from clvr_model.backbones.vgg import Vgg16
from clvr_model.backbones.vgg_m import VggM
from clvr_model.layers import Pooling
from infra.errors import BadSetting

BACKBONES: dict[str, type[Backbone]] = {
    InceptionV3.name: InceptionV3,
    ResNet50.name: ResNet50,
    ResNet50Ibn.name: ResNet50Ibn,
    Vgg16.name: Vgg16,
    VggM.name: VggM,
    EfficientNetLite0.name: EfficientNetLite0,
    EfficientNetLite1.name: EfficientNetLite1,
    EfficientNetLite2.name: EfficientNetLite2,
}
DEFAULT_BACKBONE = InceptionV3.name  # the paper's

# Inputs of another size: transformers cut the image into patches of 14 or 16 pixels.
SIZE_STEP = 16
MIN_SIZE, MAX_SIZE = 96, 1024


def build_backbone(
    name: str, *, pooling: Pooling, last_stride: int, pool_counts_padding: bool, seed: int, size: int = 0
) -> Backbone:
    """Build the backbone with random weights from `seed`.

    `pool_counts_padding` has an effect on Inception-V3 only. size: height and width of the input, 0 for the
    backbone's own. Raises BadSetting as `check_last_stride`, `check_size` and TimmBackbone do.
    """
    check_last_stride(name, last_stride)
    check_size(name, size or input_size(name))
    if is_timm(name):
        return TimmBackbone(name, pooling=pooling, seed=seed, size=size)
    backbone = BACKBONES[name]
    options = {"pool_counts_padding": pool_counts_padding} if backbone.takes_pool_counts_padding else {}
    return backbone(pooling=pooling, last_stride=last_stride, seed=seed, **options)


def is_timm(name: str) -> bool:
    """Whether the name is timm:NAME, a model of the timm package."""
    return name.startswith(TIMM_PREFIX)


def check_backbone(name: str) -> None:
    """Raise BadSetting unless the name is registered or timm:NAME."""
    if name not in BACKBONES and (not is_timm(name) or name == TIMM_PREFIX):
        known = ", ".join(BACKBONES)
        raise BadSetting(f"there is no backbone {name!r}", remedy=f"choose {known}, or {TIMM_PREFIX}NAME")


def check_last_stride(name: str, last_stride: int) -> None:
    """Raise BadSetting for an unknown backbone, or a stride that the backbone cannot have."""
    check_backbone(name)
    if (is_timm(name) or not BACKBONES[name].has_pool) and last_stride != 2:
        others = ", ".join(other for other, backbone in BACKBONES.items() if backbone.has_pool)
        raise BadSetting(
            f"last_stride is {last_stride}, which {name} cannot take",
            remedy=f"leave last_stride at 2, or use {others}",
        )


def check_pooling(name: str, pooling: Pooling) -> None:
    """Raise BadSetting for a pool in a backbone that has none."""
    if name in BACKBONES and not BACKBONES[name].has_pool and pooling != "mean":
        raise BadSetting(f"pooling is {pooling!r}, and {name} has no pool", remedy="set pooling=mean")


def has_top(name: str) -> bool:
    """Whether the backbone is divided, so that `trainable: top` can freeze the layers below its top."""
    return name in BACKBONES and bool(BACKBONES[name].top)


def check_size(name: str, size: int) -> None:
    """Raise BadSetting for a height and width of the input that the backbone cannot take."""
    own = input_size(name)
    if size == own:
        return
    if not is_timm(name) and not BACKBONES[name].any_size:
        raise BadSetting(f"image_size is {size}", remedy=f"{name} takes images of {own} pixels")
    if size % SIZE_STEP or not MIN_SIZE <= size <= MAX_SIZE:
        raise BadSetting(
            f"image_size is {size}",
            remedy=f"choose {own}, or a multiple of {SIZE_STEP} from {MIN_SIZE} to {MAX_SIZE}",
        )


def input_size(name: str) -> int:
    """Return the height and width of the backbone's own input, in pixels."""
    return TimmBackbone.input_size if is_timm(name) else BACKBONES[name].input_size


def imagenet_weights(name: str) -> str:
    """Return the address of the backbone's ImageNet weights, as `weights.load_backbone` takes it.

    Raises BadSetting for a timm model without the tag that names its weights, and for a backbone whose
    weights are published in no form that can be read.
    """
    check_backbone(name)
    if name in BACKBONES:
        if not BACKBONES[name].imagenet_weights:
            raise BadSetting(
                f"no weights of {name} have an address that can be read",
                remedy="give a .safetensors or .pth file under its parameter names, or pretrained=random",
            )
        return BACKBONES[name].imagenet_weights
    model = name.removeprefix(TIMM_PREFIX)
    if "." not in model:
        raise BadSetting(
            f"{name} does not name its weights", remedy="add timm's tag, such as timm:resnet18.a1_in1k"
        )
    return f"hf:timm/{model}"
