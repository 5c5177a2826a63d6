"""The coupled clusters loss: images of a vehicle near their center, images of others outside a margin.

Source: Liu et al., "Deep Relative Distance Learning", CVPR 2016. We have seen its equations, but no statement
of the margin, of the center's place in the gradient or of the normalization; public implementations differ in
all three.
"""

from typing import Literal

import torch
from torch import Tensor

from infra.errors import BadInput

Center = Literal["constant", "differentiated"]


def coupled_clusters(
    features: Tensor,
    vehicles: Tensor,
    *,
    margin: float,
    center: Center = "constant",
    models: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Return the loss, summed over the images, and the number of images nearer to their center than others.

    features: float32 (n, d). vehicles: int64 (n,), the vehicle of each image. Each vehicle's images are the
    positive set of one pair of clusters, all others its negative set. With center c and the negative x* that
    is nearest to c, every positive x adds max(0, |x - c|^2 + margin - |x* - c|^2) / 2. The second value
    counts the images with |x - c| < |x* - c|.

    center: 'constant' keeps the center out of the gradient: x moves towards c, and x* away from it once for
    every positive inside the margin. 'differentiated' follows the mean, so that the whole cluster also moves
    away from x*. A vehicle with one image is its own center, and only pushes x* away.
    models: int64 (n,), the vehicle model of each image: a vehicle's negatives are then those of its model,
    and of all models where its own has no other vehicle.
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
    excluded = members.bool()
    if models is not None:
        excluded = excluded | _other_models(models, sets, members)
    nearest_negative = distances.masked_fill(excluded, torch.inf).min(dim=0).values[sets]
    loss = (own + margin - nearest_negative).clamp(min=0).sum() / 2
    return loss, int((own < nearest_negative).sum())


def _other_models(models: Tensor, sets: Tensor, members: Tensor) -> Tensor:
    """Which images (n, vehicles) are of another model than a vehicle that has negatives of its own."""
    model_of_set = models.new_empty(members.shape[1]).scatter_(0, sets, models)
    is_other = models[:, None] != model_of_set
    has_rivals = (~is_other & ~members.bool()).any(dim=0)
    return is_other & has_rivals


def _squared_distances(features: Tensor, centers: Tensor) -> Tensor:
    """Squared L2 distances (n, k) from differences: the expansion by products loses small distances."""
    return torch.stack([(features - center).square().sum(dim=1) for center in centers], dim=1)
