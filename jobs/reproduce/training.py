"""The checkpoint of a method, trained or taken, and the images of its training."""

from dataclasses import dataclass, replace

import numpy as np

from clvr_model.checkpoint import Card, read_card
from clvr_model.datasets.labelled import LabeledImages
from clvr_model.recipe import Recipe, recipe_of
from index.runs.tombstones import read_tombstones
from infra.errors import BadLabels, BadSetting, ObjectExists
from infra.logging import logger
from infra.settings import Settings
from infra.store import Store, open_store
from jobs.reproduce.request import Method, ReproduceRequest
from jobs.runtime.ray_cluster import connect
from jobs.train.dataset import (
    check_sets,
    data_digest,
    drop_erased_images,
    drop_unreadable_images,
    read_labelled,
    split_for,
)
from jobs.train.train import requested_recipe, train_checkpoint


@dataclass(frozen=True, slots=True)
class Trained:
    """A method's network. images: of its training, held-out ones included; None if they are unknown."""

    method: Method
    uri: str
    card: Card
    is_taken: bool
    images: LabeledImages | None


def checkpoint_of(method: Method, request: ReproduceRequest, folder: Store, settings: Settings) -> Trained:
    """Take the checkpoint that the request names, or train one, or continue or find the training.

    Raises BadSetting for a taken checkpoint of other labels than its method's, BadCheckpoint, and the errors
    of `train_checkpoint`.
    """
    taken = request.checkpoint_of(method)
    if taken is None:
        logger.info(f"{method.title}: training by the recipe {method.recipe}")
        try:
            train_checkpoint(request.training_of(method, folder), settings)
        except ObjectExists as error:
            raise ObjectExists(
                error.message, remedy=f"give another --to, or take it with --checkpoint {method.name}=FOLDER"
            ) from error
    uri = open_store(taken).uri if taken else folder.uri_of(method.name)
    card = read_card(uri)
    if card.labels_used != method.labels:
        raise BadSetting(
            f"{uri} was trained on the labels {card.labels_used}, "
            f"and {method.title} learns from {method.labels}",
            remedy="give it to the method of its labels: --checkpoint METHOD=FOLDER",
        )
    return Trained(method, uri, card, taken is not None, _images(card, request, settings))


def check_trainable(method: Method, request: ReproduceRequest, folder: Store) -> None:
    """Raise BadLabels or BadSetting if a method cannot be trained on this dataset, before hours of others."""
    if request.checkpoint_of(method) is not None:
        return
    recipe = requested_recipe(request.training_of(method, folder))
    try:
        labelled = _read(request, recipe)
    except BadLabels as error:
        raise BadLabels(
            f"{method.title}: {error.message}", remedy="leave this method out: name the others with --method"
        ) from error
    try:
        check_sets(recipe, split_for(recipe, labelled)[0], request.workers)
    except (BadLabels, BadSetting) as error:
        remedy = error.remedy.replace("--set ", f"--set {method.name}.")
        raise type(error)(f"{method.title}: {error.message}", remedy=remedy) from error


def _images(card: Card, request: ReproduceRequest, settings: Settings) -> LabeledImages | None:
    """Return the images that the card's training read, if they are those of this dataset."""
    try:
        recipe = recipe_of(card.recipe)
        everything = _read(request, recipe)
    except (BadSetting, BadLabels):  # a card that no training here wrote, or data without these labels
        return None
    remaining = drop_erased_images(everything, read_tombstones(open_store(settings.runs)))
    # An image that was erased after the training was part of it; older releases learned no attributes.
    known = [remaining, everything]
    known += [each.with_attributes(()) for each in known]
    return next((each for each in known if data_digest(each) == card.data_digest), None)


def _read(request: ReproduceRequest, recipe: Recipe) -> LabeledImages:
    """Read the images that a recipe learns from, as its training does."""
    return read_labelled(
        request.data,
        root=request.root,
        split="train" if request.has_table else None,
        labels=recipe.labels_used,
        tracks=recipe.uses_tracks,
        attributes=recipe.attributes,
    )


def held_out_images(
    trained: Trained, request: ReproduceRequest, folder: Store, settings: Settings
) -> tuple[LabeledImages, LabeledImages] | None:
    """Return the images that a network was trained on and those that it held out; None if unknown."""
    if trained.images is None:
        return None
    connect(settings)
    job = str(trained.card.metrics.get("job", "taken"))[:12]
    checks = open_store(folder.uri_of(f"{trained.method.name}/training/{job}"))
    if checks.local:
        checks.create_bucket()
    erased = read_tombstones(open_store(settings.runs))
    usable, _ = drop_unreadable_images(trained.images, request.max_bad_fraction, checks, erased)
    training, held_out = split_for(recipe_of(trained.card.recipe), usable)
    return training, drop_erased_images(held_out, erased)


def with_vehicles(request: ReproduceRequest, images: LabeledImages) -> LabeledImages:
    """Return the images with the vehicles that the dataset knows, which a recipe of models leaves out."""
    if images.vehicle_ids is not None:
        return images
    try:
        known = read_labelled(
            request.data,
            root=request.root,
            split="train" if request.has_table else None,
            labels="vehicle",
        )
    except BadLabels:
        return images
    vehicles = dict(zip(known.uris, () if known.vehicle_ids is None else known.vehicle_ids, strict=True))
    return replace(images, vehicle_ids=np.array([vehicles.get(uri, -1) for uri in images.uris], np.int64))
