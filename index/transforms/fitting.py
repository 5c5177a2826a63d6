"""Fit a transform to the moments of an archive: shrinkage whitening and means of cameras, without labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from index.transforms.moments import ANY_HOUR, Group, GroupMean, Moments, groups_of
from index.transforms.transform import FeatureTransform, normalized, offset_of
from infra.errors import BadInput, BadSetting

Kind = Literal["whiten", "camera", "whiten-camera"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MIN_ROWS = 2
MIN_GROUP_ROWS = 10
"""A camera, or a camera at an hour, with fewer crops has no mean: that of a single crop is the crop."""
_ROW_CHUNK = 8192


@dataclass(frozen=True, slots=True)
class TransformSettings:
    """What is fitted.

    kind: `whiten` equalises the variances of the principal components, `camera` subtracts the mean of the
    crop's camera, `whiten-camera` does both. dimensions: how many principal components are kept, the largest
    first; None keeps all. shrinkage: this share of the mean eigenvalue is added to each eigenvalue, so small
    ones are not blown up. camera_prior: the mean of a camera moves towards the mean of all crops as if so
    many of them were among its own; so do the means of hours towards that of their camera. by_hour: subtract
    the mean of the camera at the hour of the day, UTC.
    """

    kind: Kind = "whiten"
    dimensions: int | None = None
    shrinkage: float = 0.3
    camera_prior: float = 20.0
    by_hour: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadSetting(f"unknown transform '{self.kind}'", remedy=f"use one of: {', '.join(KINDS)}")
        if not (np.isfinite(self.shrinkage) and self.shrinkage > 0):
            raise BadSetting(
                f"a shrinkage of {self.shrinkage} is not positive", remedy="give 0.3, or another"
            )
        if not (np.isfinite(self.camera_prior) and self.camera_prior >= 0):
            raise BadSetting(f"a camera prior of {self.camera_prior} crops is negative")
        if self.dimensions is not None and not (self.whitens and self.dimensions >= 1):
            raise BadSetting(
                f"{self.dimensions} dimensions of a transform of kind {self.kind}",
                remedy="only whitening reduces dimensions: use --kind whiten or whiten-camera",
            )
        if self.by_hour and not self.by_camera:
            raise BadSetting(f"hours of a transform of kind {self.kind}", remedy="leave out --by-hour")

    @property
    def whitens(self) -> bool:
        """Whether it whitens."""
        return self.kind in ("whiten", "whiten-camera")

    @property
    def by_camera(self) -> bool:
        """Whether it subtracts the means of cameras."""
        return self.kind in ("camera", "whiten-camera")


def fit(moments: Moments, settings: TransformSettings) -> FeatureTransform:
    """Fit a transform to the moments of L2-normalised features, with groups if it is by camera.

    Raises BadInput for fewer than two rows or features that are all equal, BadSetting for more dimensions
    than the features have.
    """
    if moments.count < MIN_ROWS:
        raise BadInput(f"a transform of {moments.count} crops", remedy="fit it on a run with more crops")
    offsets, left, scatter = _after_removal(moments, settings)
    matrix = whitening_matrix(scatter / moments.count, settings) if settings.whitens else None
    return _transform(settings, matrix, moments.mean + left, offsets)


def fit_features(
    features: NDArray[np.float32],
    settings: TransformSettings,
    cameras: Sequence[str] | None = None,
    captured_at: NDArray[np.int64] | None = None,
) -> FeatureTransform:
    """Fit a transform to features (n, d) in memory; cameras (n,) and captured_at (n,) as in the transform."""
    groups = None
    if settings.by_camera:
        if cameras is None:
            raise BadInput("the cameras of the crops are not known", remedy="use --transform whiten")
        groups = groups_of(cameras, captured_at, by_hour=settings.by_hour)
    count, dimension = features.shape
    moments = Moments.empty(dimension)
    for start in range(0, count, _ROW_CHUNK):
        chunk = slice(start, start + _ROW_CHUNK)
        rows = normalized(np.asarray(features[chunk], np.float64))
        moments = moments.merge(Moments.of(rows, groups and groups[chunk]))
    if not (settings.whitens and MIN_ROWS <= count < dimension and (settings.dimensions or 0) <= count):
        return fit(moments, settings)
    # Fewer rows than dimensions, as in an evaluation: their singular vectors cost less than eigenvectors.
    rows = normalized(np.asarray(features, np.float64))
    offsets, left, _ = _after_removal(moments, settings)
    offset = moments.mean + left
    rows -= offset if groups is None else np.stack([offset_of(offsets, group, offset) for group in groups])
    return _transform(settings, _thin_whitening_matrix(rows, settings), offset, offsets)


def whitening_matrix(covariance: NDArray[np.float64], settings: TransformSettings) -> NDArray[np.float64]:
    """Return the matrix (k, d) that whitens features of this covariance (d, d).

    Row i is the i-th eigenvector over the square root of its eigenvalue plus `shrinkage` times the mean
    eigenvalue. Raises BadInput for a covariance of zero, BadSetting for k > d.
    """
    dimension = len(covariance)
    kept = settings.dimensions or dimension
    if kept > dimension:
        raise BadSetting(f"{kept} dimensions of features that have {dimension}")
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values[::-1], 0.0)[:kept]
    vectors = vectors[:, ::-1][:, :kept]
    ridge = _ridge(float(np.trace(covariance)), dimension, settings)
    return np.ascontiguousarray(_with_sign(vectors.T) / np.sqrt(values + ridge)[:, None])


def _thin_whitening_matrix(rows: NDArray[np.float64], settings: TransformSettings) -> NDArray[np.float64]:
    """As `whitening_matrix`, from rows (n, d) of mean zero with n < d.

    With all dimensions it is the symmetric square root, a rotation of the other one, which has the same
    distances. Source: Kessy, Lewin, Strimmer, "Optimal whitening and decorrelation", 2018.
    """
    count, dimension = rows.shape
    _, singular, vectors = np.linalg.svd(rows, full_matrices=False)
    values = singular**2 / count
    ridge = _ridge(float(values.sum()), dimension, settings)
    scales = 1 / np.sqrt(values + ridge)
    if settings.dimensions is not None:
        kept = slice(settings.dimensions)
        return np.ascontiguousarray(_with_sign(vectors[kept]) * scales[kept, None])
    rest = 1 / np.sqrt(ridge)
    matrix: NDArray[np.float64] = (vectors.T * (scales - rest)) @ vectors
    matrix[np.diag_indices(dimension)] += rest
    return matrix


def _with_sign(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return vectors (k, d) whose sign is free with a fixed one, so that equal crops give an equal matrix."""
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
    signed: NDArray[np.float64] = vectors * np.sign(largest)
    return signed


def _ridge(trace: float, dimension: int, settings: TransformSettings) -> float:
    ridge = settings.shrinkage * trace / dimension
    if not ridge > 0:
        raise BadInput("the features of all crops are equal", remedy="check the checkpoint of the run")
    return ridge


def _transform(
    settings: TransformSettings,
    matrix: NDArray[np.float64] | None,
    offset: NDArray[np.float64],
    offsets: dict[Group, NDArray[np.float64]],
) -> FeatureTransform:
    if matrix is None:
        return FeatureTransform(settings.kind, None, offset, offsets, settings.by_hour)
    moved = {group: matrix @ mean for group, mean in offsets.items()}
    return FeatureTransform(settings.kind, matrix, matrix @ offset, moved, settings.by_hour)


def _group_means(moments: Moments, settings: TransformSettings) -> dict[Group, NDArray[np.float64]]:
    """Return the shrunk means of cameras, and of cameras at hours.

    There is none for the unknown camera, and of fewer than MIN_GROUP_ROWS crops.
    """
    cameras: dict[str, GroupMean] = {}
    for (camera, _), mean in moments.groups.items():
        cameras[camera] = cameras[camera].merge(mean) if camera in cameras else mean
    offsets: dict[Group, NDArray[np.float64]] = {}
    for camera, mean in sorted(cameras.items()):
        if camera and mean.count >= MIN_GROUP_ROWS:
            offsets[camera, ANY_HOUR] = _shrunk(mean, moments.mean, settings.camera_prior)
    for (camera, hour), mean in sorted(moments.groups.items()):
        if camera and hour != ANY_HOUR and mean.count >= MIN_GROUP_ROWS:
            offsets[camera, hour] = _shrunk(mean, offsets[camera, ANY_HOUR], settings.camera_prior)
    return offsets


def _shrunk(group: GroupMean, towards: NDArray[np.float64], prior: float) -> NDArray[np.float64]:
    return towards + (group.mean - towards) * (group.count / (group.count + prior))


def _after_removal(
    moments: Moments, settings: TransformSettings
) -> tuple[dict[Group, NDArray[np.float64]], NDArray[np.float64], NDArray[np.float64]]:
    """Return what is subtracted by group, and the mean (d,) and the scatter (d, d) that group means leave.

    That mean is subtracted too: it is in the offsets already. The scatter within groups does not change; that
    between groups becomes the one of what the shrunk means leave.
    """
    means = _group_means(moments, settings) if settings.by_camera else {}
    if not means:
        return {}, np.zeros_like(moments.mean), moments.scatter
    groups = list(moments.groups)
    counts = np.array([moments.groups[group].count for group in groups], np.float64)[:, None]
    rows = np.stack([moments.groups[group].mean for group in groups])
    between = rows - moments.mean
    left = rows - np.stack([offset_of(means, group, moments.mean) for group in groups])
    scatter = moments.scatter - (between * counts).T @ between + (left * counts).T @ left
    mean = (left * counts).sum(axis=0) / moments.count
    offsets = {group: offset + mean for group, offset in means.items()}
    return offsets, mean, scatter - np.outer(mean, mean) * moments.count
