"""Feature transforms in an evaluation, fitted to the gallery of each split without labels."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from index.evaluation.cmc import LabeledFeatures, Split
from index.evaluation.metrics import Ranking
from index.evaluation.protocols import JUNK, ProtocolResult, Ranker, cpu_ranker, with_rankings
from index.transforms.fitting import KINDS, TransformSettings, fit_features
from index.transforms.transform import FeatureTransform
from infra.errors import BadLabels
from jobs.evaluate.dataset import LabelledRun

FITTED = "fitted to the gallery without labels"
"""What a row of a transformed protocol says."""


def transformed_results(
    labelled: LabelledRun, results: Sequence[ProtocolResult], kinds: Sequence[str], rank: Ranker
) -> Iterator[ProtocolResult]:
    """Rank the splits of each protocol by transformed features, one result a kind and protocol.

    The transform of a split is fitted to the features and cameras of its gallery images: what an archive
    knows before anybody labels it. Raises BadLabels for a kind by camera if the cameras are unknown.
    """
    for result in results:
        for kind in KINDS:
            if kind not in kinds:
                continue
            settings = TransformSettings(kind)
            require_cameras(settings, labelled.camera_ids)
            ranked = [
                rank(
                    labelled.images(
                        fitted_to_gallery(labelled.features, labelled.camera_ids, settings, split)(
                            labelled.features, labelled.camera_ids.tolist()
                        )
                    ),
                    [split],
                    max_rank=result.curves.shape[1],
                    same_camera_is_junk=result.name in JUNK,
                    skip_unmatched=True,
                )[0]
                for split in result.splits
            ]
            yield with_rankings(result, ranked, f"{kind}, {FITTED}")


def transformed_ranking(
    labelled: LabelledRun, transform: FeatureTransform, split: Split, *, junk: bool
) -> tuple[LabeledFeatures, Ranking]:
    """Return the images with the vectors of a generation, and their exact ranking of one split."""
    crops = labelled.crops
    features = transform(
        labelled.features, crops["camera_id"].to_pylist(), np.asarray(crops["captured_at"], np.int64)
    )
    images = replace(labelled.images(), features=features)
    (ranked,) = cpu_ranker(images, [split], max_rank=1, same_camera_is_junk=junk, skip_unmatched=True)
    return images, ranked.ranking


def require_cameras(settings: TransformSettings, camera_ids: NDArray[np.str_]) -> None:
    """Raise BadLabels for a kind by camera if no camera (n,) is known; '' stands for an unknown one."""
    if settings.by_camera and not (camera_ids != "").any():
        raise BadLabels(
            f"the transform {settings.kind} needs the cameras of the images, which are unknown",
            remedy="embed with a --key-pattern that has {camera_id}, or give labels with camera_id",
        )


def fitted_to_gallery(
    features: NDArray[np.float32], camera_ids: NDArray[np.str_], settings: TransformSettings, split: Split
) -> FeatureTransform:
    """Fit a transform to features (n, d) and cameras (n,) of the gallery of a split."""
    gallery = split.gallery
    return fit_features(features[gallery], settings, camera_ids[gallery].tolist())
