"""What changed at each camera: the last weeks against the weeks before, and what is usual there.

Every camera is compared with itself. A change counts as drift if it exceeds a limit and 1.5 times the largest
change between a single earlier week and the others, which weather and season explain.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from index.drift.profile import Features, Profile
from infra.errors import BadSetting

UNUSUAL = 1.5  # times the largest usual change
NOISE = 2.0  # times the change that equal distributions show
FEW = 0.2  # of the usual crops
_WEEK_LIMITS = (1, 520)


@dataclass(frozen=True, slots=True)
class DriftLimits:
    """When a camera has changed.

    weeks: that count as the last ones. min_crops: with fewer, on either side, features are not compared.
    shift: distance of the means, of the root mean square distance of a crop from the mean. length: relative
    change of the mean length. models: total variation distance of the predicted models, 0 to 1.
    """

    weeks: int = 1
    min_crops: int = 50
    shift: float = 0.25
    length: float = 0.1
    models: float = 0.3

    def __post_init__(self) -> None:
        low, high = _WEEK_LIMITS
        if not low <= self.weeks <= high:
            raise BadSetting(f"{self.weeks} weeks", remedy=f"give {low} to {high}")
        if self.min_crops < 1:
            raise BadSetting(f"at least {self.min_crops} crops", remedy="give at least 1")


@dataclass(frozen=True, slots=True)
class Change:
    """A change, and the largest that a single earlier week showed; 0 with fewer than two earlier weeks."""

    value: float
    usual: float

    def exceeds(self, limit: float) -> bool:
        """Whether it is beyond the limit and unusual."""
        return abs(self.value) > max(limit, UNUSUAL * self.usual)


@dataclass(frozen=True, slots=True)
class CameraDrift:
    """One camera. shift, length and models are None where too few crops can be compared.

    usual_crops: a week, before the last ones. alerts: one line each.
    """

    camera_id: str
    crops: int  # in the last weeks
    usual_crops: float
    reference_weeks: int
    shift: Change | None
    length: Change | None
    models: Change | None
    alerts: tuple[str, ...]


def compare(profile: Profile, limits: DriftLimits, last_week: int | None = None) -> list[CameraDrift]:
    """Compare the last weeks of each camera with those before. last_week: the profile's last by default."""
    last = profile.last_week if last_week is None else last_week
    first = last - limits.weeks + 1
    return [_compare(camera, profile, limits, first, last) for camera in profile.cameras]


def _compare(camera: str, profile: Profile, limits: DriftLimits, first: int, last: int) -> CameraDrift:
    crops = {
        week: count for (name, week), count in profile.crops.items() if name == camera and 0 <= week <= last
    }
    by_week = {
        week: sums for (name, week), sums in profile.features.items() if name == camera and week in crops
    }
    before = [week for week in crops if week < first]
    recent_crops = sum(count for week, count in crops.items() if week >= first)
    # A week without crops counts too: from the camera's first one.
    num_weeks = first - min(before) if before else 0
    usual = sum(crops[week] for week in before) / num_weeks if num_weeks else 0.0
    recent = _merged(sums for week, sums in by_week.items() if week >= first)
    earlier = {week: sums for week, sums in by_week.items() if week < first}
    reference = _merged(earlier.values())
    shift = length = models = None
    if min(_crops(recent), _crops(reference)) >= limits.min_crops and recent and reference:
        pairs = list(_each_week_and_rest(earlier, limits.min_crops))
        shift = Change(_shift(recent, reference), max((_shift(*pair) for pair in pairs), default=0.0))
        length = Change(_length(recent, reference), max((abs(_length(*pair)) for pair in pairs), default=0.0))
        models = Change(_models(recent, reference), max((_models(*pair) for pair in pairs), default=0.0))
    return CameraDrift(
        camera,
        recent_crops,
        usual,
        num_weeks,
        shift,
        length,
        models,
        tuple(_alerts(limits, recent_crops, usual, shift, length, models)),
    )


def _each_week_and_rest(weeks: Mapping[int, Features], min_crops: int) -> Iterator[tuple[Features, Features]]:
    """Yield each week with enough crops, and all others together."""
    for week, sums in weeks.items():
        rest = _merged(each for other, each in weeks.items() if other != week)
        if rest is not None and min(sums.crops, rest.crops) >= min_crops:
            yield sums, rest


def _alerts(
    limits: DriftLimits,
    crops: int,
    usual: float,
    shift: Change | None,
    length: Change | None,
    models: Change | None,
) -> Iterable[str]:
    expected = usual * limits.weeks
    if expected >= limits.min_crops and crops < FEW * expected:
        yield f"{crops:,} crops instead of about {expected:,.0f}: look at the camera"
    if shift and shift.exceeds(limits.shift):
        yield f"its features moved by {shift.value:.2f} of their spread (usual: up to {shift.usual:.2f})"
    if length and length.exceeds(limits.length):
        word = "longer" if length.value > 0 else "shorter"
        yield f"its features are {abs(length.value):.0%} {word} (usual: up to {length.usual:.0%})"
    if models and models.exceeds(limits.models):
        yield f"{models.value:.0%} of its predicted models changed (usual: up to {models.usual:.0%})"


def _merged(sums: Iterable[Features]) -> Features | None:
    parts = list(sums)
    return reduce(Features.merge, parts) if parts else None


def _crops(sums: Features | None) -> int:
    return sums.crops if sums else 0


def _shift(recent: Features, reference: Features) -> float:
    """Distance of the means over the spread of the reference, less what samples of one distribution show."""
    if not reference.variance:
        return 0.0 if np.array_equal(recent.mean, reference.mean) else np.inf
    difference = recent.mean - reference.mean
    squared = float(difference @ difference) / reference.variance
    return float(np.sqrt(max(0.0, squared - 1 / recent.crops - 1 / reference.crops)))


def _length(recent: Features, reference: Features) -> float:
    return recent.mean_length / reference.mean_length - 1 if reference.mean_length else 0.0


def _models(recent: Features, reference: Features) -> float:
    """Total variation distance of the predicted models; 0 if equal distributions often show as much."""
    known = sorted({*recent.models, *reference.models})
    new, old = _shares(recent.models, known), _shares(reference.models, known)
    distance = float(np.abs(new - old).sum() / 2)
    pooled = (new * recent.crops + old * reference.crops) / (recent.crops + reference.crops)
    deviation = np.sqrt(pooled * (1 - pooled) * (1 / recent.crops + 1 / reference.crops))
    expected = float(deviation.sum() * np.sqrt(2 / np.pi) / 2)
    return distance if distance > NOISE * expected else 0.0


def _shares(models: Mapping[int, int], known: Sequence[int]) -> NDArray[np.float64]:
    counts = np.array([models.get(model, 0) for model in known], np.float64)
    return np.asarray(counts / counts.sum())
