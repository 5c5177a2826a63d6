"""The network that a training starts from: a pretrained backbone, or a whole checkpoint."""

from dataclasses import asdict

from clvr_model.checkpoint import load_checkpoint
from clvr_model.network import Architecture, Clvr
from clvr_model.recipe import Recipe, recipe_of
from clvr_model.weights import load_backbone
from infra.errors import BadSetting

CHECKPOINT_PREFIX = "checkpoint:"
_CLASSIFIERS = ("head.classifier.", "head.attributes.")


def starting_from(recipe: Recipe, architecture: Architecture, uri: str) -> Recipe:
    """Return the recipe for the network of a checkpoint, and with its weights as the first ones.

    architecture, uri: of the checkpoint.

    Raises BadSetting for a mixed head, which one stage alone does not train, and for stages that the
    checkpoint's backbone does not allow.
    """
    if architecture.head != "single":
        raise BadSetting(
            f"{uri} has a mixed head, and a training starts from a single one",
            remedy="give a checkpoint of another recipe",
        )
    values = asdict(architecture)
    # The labels decide about classes and attributes, and a recipe states the size of its images.
    del values["classes"], values["attributes"], values["input_size"]
    changes = {**values, "image_size": architecture.image_size}
    if not architecture.classes:  # then the card says nothing about a classifier
        changes |= {"classifier": recipe.classifier, "cosine_scale": recipe.cosine_scale}
    changes["pretrained"] = f"{CHECKPOINT_PREFIX}{uri}"
    changed = recipe.model_copy(update=changes)
    return recipe_of(changed.as_dict())


def load_start(network: Clvr, source: str) -> None:
    """Load the first weights of a training, in place: `checkpoint:URI`, or a source of `load_backbone`.

    Of a checkpoint, all layers but the classifiers are taken: classes and attributes may be others.
    Raises BadSetting for a checkpoint of another architecture, and what the loaders raise.
    """
    if not source.startswith(CHECKPOINT_PREFIX):
        load_backbone(network, source)
        return
    start = load_checkpoint(source.removeprefix(CHECKPOINT_PREFIX)).network
    if _shape(start.architecture) != _shape(network.architecture):
        raise BadSetting(f"{source} is of another architecture than the recipe", remedy="start anew: --from")
    tensors = {
        name: tensor for name, tensor in start.state_dict().items() if not name.startswith(_CLASSIFIERS)
    }
    network.load_state_dict(tensors, strict=False)


def _shape(architecture: Architecture) -> dict[str, object]:
    """What two networks must share, apart from their classifiers."""
    return {
        name: value
        for name, value in asdict(architecture).items()
        if name not in ("classes", "classifier", "cosine_scale", "attributes")
    }
