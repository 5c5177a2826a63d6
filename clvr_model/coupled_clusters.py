"""The coupled clusters loss: images of a vehicle near their center, images of others outside a margin.

Source: Liu et al., "Deep Relative Distance Learning", CVPR 2016. We have seen its equations, but no statement
of the margin, of the center's place in the gradient or of the normalization; public implementations differ in
all three.
"""

from typing import Literal

import torch
from torch import Tensor

from clvr_model.journeys import Journeys
from infra.errors import BadInput

Center = Literal["constant", "differentiated"]
Negatives = Literal["any", "same_model", "other_model", "proven"]


def coupled_clusters(
    features: Tensor,
    vehicles: Tensor,
    *,
    margin: float,
    center: Center = "constant",
    negatives: Negatives = "any",
    models: Tensor | None = None,
    journeys: Journeys | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss, summed over the images, and the number of images nearer to their center than others.

    features: float32 (n, d). vehicles: int64 (n,), the vehicle of each image. Each vehicle's images are the
    positive set of one pair of clusters, all others its negative set. With center c and the negative x* that
    is nearest to c, every positive x adds max(0, |x - c|^2 + margin - |x* - c|^2) / 2. The second value
    counts the images with |x - c| < |x* - c|.

    center: 'constant' keeps the center out of the gradient: x moves towards c, and x* away from it once for
    every positive inside the margin. 'differentiated' follows the mean, so that the whole cluster also moves
    away from x*. A vehicle with one image is its own center, and only pushes x* away.
    negatives: which images of other vehicles count, by their vehicle models (int64 (n,)). 'same_model': those
    of the same model, and of all models where that has no other vehicle. 'other_model': those of another
    model, both known (from 0); without any, a positive adds |x - c|^2 / 2, which pulls only. 'proven': those
    that `journeys` prove to show another vehicle; without any, a set adds nothing, because pulling alone
    draws all into one point.
    Raises BadInput for images of fewer than two vehicles, which have no negatives.
    """
    known, sets = torch.unique(vehicles, return_inverse=True)
    if len(known) < 2:
        raise BadInput(
            f"the coupled clusters loss got images of {len(known)} vehicle and has no negative",
            remedy="give it images of two vehicles or more",
        )
    members = torch.nn.functional.one_hot(sets, len(known)).to(features.dtype)  # (n, vehicles)
    centers = (members.T @ features) / members.sum(dim=0)[:, None]
    if center == "constant":
        centers = centers.detach()
    distances = _squared_distances(features, centers)  # (n, vehicles)
    own = distances.gather(1, sets[:, None])[:, 0]
    is_negative = ~members.bool()
    if negatives == "proven":
        if journeys is None:
            raise BadInput("no journeys of the tracks", remedy="train with --tracks RUN")
        different = torch.from_numpy(journeys.are_different(known.cpu().numpy()))
        is_negative &= different.to(features.device)[sets]
    elif negatives != "any" and models is not None:
        is_negative = _by_model(is_negative, sets, models, negatives)
    nearest_negative = distances.masked_fill(~is_negative, torch.inf).min(dim=0).values[sets]
    terms = (own + margin - nearest_negative).clamp(min=0)
    alone = torch.zeros_like(own) if negatives == "proven" else own
    loss = torch.where(nearest_negative.isinf(), alone, terms).sum() / 2
    return loss, (own < nearest_negative).sum()


def _by_model(is_negative: Tensor, sets: Tensor, models: Tensor, negatives: Negatives) -> Tensor:
    """Restrict the negatives (n, vehicles) of each vehicle by the model of its images."""
    model_of_set = models.new_empty(is_negative.shape[1]).scatter_(0, sets, models)
    is_same = models[:, None] == model_of_set
    if negatives == "other_model":
        return is_negative & ~is_same & (models >= 0)[:, None] & (model_of_set >= 0)
    rivals = is_negative & is_same
    return torch.where(rivals.any(dim=0), rivals, is_negative)


def _squared_distances(features: Tensor, centers: Tensor) -> Tensor:
    """Squared L2 distances (n, k) from differences: the expansion by products loses small distances."""
    return torch.stack([(features - center).square().sum(dim=1) for center in centers], dim=1)
