"""Choices of recipes that learn from vehicles, for the card: what no source states, what we took, and why.

CCL and MixedDiff are the CLVR paper's competitors, of Liu et al., "Deep Relative Distance Learning", CVPR
2016. The CLVR paper describes them in section 4.2 in a few sentences; the margin, the sets and the schedule
are in no source that we have seen.
"""

from typing import Any

from clvr_model.recipe import Recipe, Stage

_NEGATIVES = {
    "any": "all images of other vehicles in the pass, of any model; the loss uses the nearest",
    "proven": "images of tracks in the pass that cannot show the same vehicle; the loss uses the nearest",
    "other_model": "images of another vehicle model in the pass; the loss uses the nearest",
    "same_model": (
        "images of other vehicles of the same model in the pass, as a later network of the authors takes its "
        "triplets; of any model where there are none; the loss uses the nearest"
    ),
}


def competitor_choices(recipe: Recipe) -> dict[str, Any]:
    """Return what CCL and MixedDiff leave open, with our choices and their reasons; {} without vehicles."""
    if not recipe.uses_vehicles or recipe.uses_tracks:
        return {}
    clusters = [stage for stage in recipe.stages if stage.uses_clusters]
    sets = [stage for stage in recipe.stages if stage.sampling == "vehicles"]
    choices: dict[str, Any] = {
        "validation": (
            "whole vehicles: images of a vehicle that was trained on would show memory, not recognition"
        ),
        "sets": {stage.name: _sets(recipe, stage) for stage in sets},
        "sampling": (
            "every vehicle equally often; vehicles with one image are left out, which have nothing to pull"
        ),
        "negatives": {stage.name: _NEGATIVES[stage.negatives] for stage in clusters},
        "loss_normalisation": "divided by the images of the batch: a rate means the same for any batch",
    }
    if clusters:
        choices |= {
            "margin": {stage.name: _margin(recipe, stage) for stage in clusters},
            "center": {stage.name: _center(stage) for stage in clusters},
            "length_of_feature": (
                "1: the margin then has the same meaning whatever the network's scale"
                if recipe.l2_normalized
                else "free: the loss decides the scale, and the margin is relative to it"
            ),
            "normalised_over_the_batch": (
                "yes: from random weights the loss otherwise draws all features into one point"
                if recipe.bnneck
                else "no: a loss that stays at half the margin means that all features are in one point"
            ),
        }
    if not recipe.has_classifier:
        choices["softmax_before_clusters"] = "none: the network would have learned to name models too"
    if recipe.head == "mixed":
        choices |= {
            "shared": "everything below the two branches",
            "branch_dim": f"{recipe.branch_dim}: VGG_CNN_M_1024's fc7 has 1024",
            "fusion_dim": f"{recipe.fusion_dim}: the feature's; a later network of the authors has 1000, 300",
            "stages": "; ".join(map(_stage, recipe.stages)),
        }
    if recipe.backbone == "vgg_m":
        choices |= {
            "dropout": "0.5 after fc6 while it learns; none after the last layer, whose output is compared",
            "input": "the whole image at 224 x 224; a later network of the authors crops 224 of 256",
        }
    return choices


def _sets(recipe: Recipe, stage: Stage) -> str:
    vehicles = recipe.batch // stage.images_per_vehicle
    return f"{vehicles} vehicles of {stage.images_per_vehicle} images: by default the paper's batch of 100"


def _margin(recipe: Recipe, stage: Stage) -> str:
    reason = (
        "of at most 4 between features of length 1"
        if recipe.l2_normalized
        else "the default of a public layer"
    )
    return f"{stage.margin:g}, {reason}"


def _center(stage: Stage) -> str:
    return {
        "constant": "constant in the gradient, as in the public Caffe layer",
        "differentiated": "differentiated, as in implementations by automatic differentiation",
    }[stage.center]


def _stage(stage: Stage) -> str:
    learns = {
        "all": "shared layers learn too",
        "head": "shared layers frozen",
        "top": "shared layers below the last reduction frozen",
        "fusion": "shared layers and branches frozen",
    }[stage.trainable]
    return f"{stage.name}: {stage.loss}, {learns}"
