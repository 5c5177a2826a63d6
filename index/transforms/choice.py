"""Choose a transform on free positives: does it find the last crop of a track by the first one?

The tracks are held out from fitting. A track is of one camera, so the match is searched among the last crops
of other tracks of the same camera, where the look of the camera helps nobody, and, for comparison, among
those of all cameras. So tracks show what whitening brings; they cannot show what the removal of camera means
brings between cameras, for which labels are needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.transforms.fitting import KINDS, TransformSettings, fit
from index.transforms.moments import Moments
from index.transforms.stored import NONE
from index.transforms.tracks import TrackEnds
from index.transforms.transform import FeatureTransform

MIN_TRACKS = 50
"""Tracks of two crops, each beside another one of its camera, below which nothing is decided."""

_RESAMPLES = 2000
_PROBE_CHUNK = 256


@dataclass(frozen=True, slots=True)
class KindFigures:
    """How well one kind finds the last crops of tracks by their first ones.

    rank_1 and mean_reciprocal_rank among crops of the same camera, `_all` among those of all cameras. low and
    high: the 95 % interval of the difference of the mean reciprocal rank from that of plain features, by
    resampled tracks.
    """

    kind: str
    rank_1: float
    mean_reciprocal_rank: float
    rank_1_all: float
    mean_reciprocal_rank_all: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen kind, `none` for plain features, the reason, and the figures that it follows from."""

    kind: str
    reason: str
    tracks: int
    figures: tuple[KindFigures, ...] = ()


def choose(
    moments: Moments,
    tracks: TrackEnds,
    settings: Sequence[TransformSettings],
    *,
    seed: int = 0,
) -> Choice:
    """Choose among plain features and transforms fitted to moments, on tracks that are not among their crops.

    settings: the candidates, simpler ones first. A candidate replaces the choice so far if the interval of
    the difference of their mean reciprocal ranks is above zero.
    """
    first, last = tracks.pairs()
    is_usable = has_rival(first.camera)
    usable = int(is_usable.sum())
    if usable < MIN_TRACKS:
        reason = (
            f"{usable} held-out tracks of two crops have another such track at their camera, at least "
            f"{MIN_TRACKS} are needed to decide: the features stay as they are"
        )
        return Choice(NONE, reason, usable)
    reciprocal: dict[str, NDArray[np.float64]] = {}
    figures = []
    rng = np.random.default_rng(seed)
    draws = rng.integers(usable, size=(_RESAMPLES, usable))
    for setting in (None, *settings):
        transform = None if setting is None else fit(moments, setting)
        own, everywhere = ranks(first, last, transform)
        kind = NONE if setting is None else setting.kind
        reciprocal[kind] = 1 / own[is_usable]
        low, high = _interval(reciprocal[kind] - reciprocal[NONE], draws)
        figures.append(
            KindFigures(
                kind=kind,
                rank_1=float((own[is_usable] == 1).mean()),
                mean_reciprocal_rank=float(reciprocal[kind].mean()),
                rank_1_all=float((everywhere == 1).mean()),
                mean_reciprocal_rank_all=float((1 / everywhere).mean()),
                low=low,
                high=high,
            )
        )
    kind, reason = NONE, "no transform finds the tracks better beyond chance"
    for candidate in figures[1:]:
        low, high = _interval(reciprocal[candidate.kind] - reciprocal[kind], draws)
        if low > 0:
            gain = f"by {low:+.3f} to {high:+.3f} (95 % interval)"
            reason = f"{candidate.kind} raises the mean reciprocal rank over {kind} {gain}"
            kind = candidate.kind
    return Choice(kind, reason, usable, tuple(figures))


def candidates(settings: TransformSettings, *, has_cameras: bool) -> list[TransformSettings]:
    """Return the settings of all kinds, simpler ones first; without cameras that of whitening alone."""
    return [
        TransformSettings(
            kind=kind,
            dimensions=None if kind == "camera" else settings.dimensions,
            shrinkage=settings.shrinkage,
            camera_prior=settings.camera_prior,
            by_hour=settings.by_hour and kind != "whiten",
        )
        for kind in KINDS
        if has_cameras or kind == "whiten"
    ]


def ranks(
    first: TrackEnds, last: TrackEnds, transform: FeatureTransform | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ranks (m,) of the last crop of each track by L2: among its camera, and among all cameras.

    A crop at the same distance is ahead of it.
    """
    probes, gallery = (_features(ends, transform) for ends in (first, last))
    norms = (gallery**2).sum(axis=1)
    own, everywhere = np.empty(len(probes), np.int64), np.empty(len(probes), np.int64)
    for start in range(0, len(probes), _PROBE_CHUNK):
        rows = np.arange(start, min(start + _PROBE_CHUNK, len(probes)))
        # Squared distances less the square of the probe, which changes no rank.
        distances = norms - 2 * (probes[rows] @ gallery.T)
        is_ahead = distances <= distances[np.arange(len(rows)), rows][:, None]
        everywhere[rows] = is_ahead.sum(axis=1)  # the crop itself is one of them
        own[rows] = (is_ahead & (first.camera[rows, None] == last.camera)).sum(axis=1)
    return own, everywhere


def _features(ends: TrackEnds, transform: FeatureTransform | None) -> NDArray[np.float64]:
    if transform is None:
        return ends.features.astype(np.float64)
    return transform(ends.features, ends.camera.tolist(), ends.captured_at).astype(np.float64)


def has_rival(cameras: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Return which tracks (m,) have another one at their camera."""
    _, inverse, counts = np.unique(cameras, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] > 1) if len(cameras) else np.zeros(0, bool)


def interval_of_mean(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of values (m,) by resampling them."""
    draws = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    return _interval(values, draws)


def _interval(differences: NDArray[np.float64], draws: NDArray[np.int64]) -> tuple[float, float]:
    low, high = np.percentile(differences[draws].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)
