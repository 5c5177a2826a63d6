"""The body of a vehicle model: a side profile with a width at every height, and its faces.

Coordinates are metres in the vehicle's frame: x forward, y to the left, z up, the origin on the road under
the middle of the vehicle.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

STYLES: Final = ("sedan", "hatchback", "suv", "wagon", "coupe", "van", "minivan", "pickup", "lorry")

_CROWN_SHARE: Final = 0.72
_CORNER: Final = 0.16
# Width of the flank at shares of its height: widest just above the middle, like doors.
_FLANK: Final = ((0.0, 0.945), (0.22, 0.98), (0.5, 1.0), (0.8, 0.99), (1.0, 0.965))


@dataclass(frozen=True, slots=True)
class Body:
    """One body shape.

    `profile` is the upper outline seen from the side, from the front bumper to the rear bumper: (n, 2) of
    x (strictly falling) and z. `cowl`, `roof_front`, `roof_rear` and `deck` are the outline's corners at the
    lower and upper ends of the two screens, as (x, z).
    """

    style: str
    length: float
    width: float
    height: float
    sill: float
    belt: float
    tumblehome: float
    nose_taper: float
    wheel_radius: float
    front_axle: float
    rear_axle: float
    cowl: tuple[float, float]
    roof_front: tuple[float, float]
    roof_rear: tuple[float, float]
    deck: tuple[float, float]
    cargo_from: float | None
    profile: Points

    def half_width(self, x: float | Points, z: float | Points) -> Points:
        """Return half of the width at (x, z): narrower at the ends, below the waist and at the roof."""
        along = np.abs(np.asarray(x)) / (self.length / 2)
        plan = 1.0 - self.nose_taper * along**7
        levels = [self.flank_level(share) for share, _ in _FLANK] + [max(self.height, self.belt + 0.1)]
        height = np.interp(z, levels, [wide for _, wide in _FLANK] + [self.tumblehome])
        return np.asarray(self.width / 2 * plan * height, dtype=np.float64)

    def flank_level(self, share: float) -> float:
        """Return the height at a share of the way from the sill (0) to the belt line (1)."""
        return self.sill + share * (self.belt - self.sill)

    def top(self, x: float | Points) -> Points:
        """Return the height of the outline at x."""
        return np.asarray(np.interp(-np.asarray(x), -self.profile[:, 0], self.profile[:, 1]))

    def on_side(self, x: float, z: float, side: int) -> Points:
        """Return the point of the flank at (x, z); side is +1 (left) or -1 (right)."""
        return np.array([x, side * float(self.half_width(x, z)), z])

    def on_front(self, across: float, z: float) -> Points:
        """Return the point of the front at height z; `across` runs from -1 (right edge) to 1."""
        return self._on_end(self.profile, across, z)

    def on_rear(self, across: float, z: float) -> Points:
        """Return the point of the rear at height z; `across` runs from -1 (right edge) to 1."""
        return self._on_end(self.profile[::-1], across, z)

    def _on_end(self, outline: Points, across: float, z: float) -> Points:
        climb = outline[: int(np.argmax(outline[:, 1])) + 1]
        x = float(np.interp(z, np.maximum.accumulate(climb[:, 1]), climb[:, 0]))
        return np.array([x, across * float(self.half_width(x, z)), z])

    def on_screen(self, rear: bool, across: float, up: float) -> Points:
        """Return a point of the windscreen or the rear window; `up` runs from 0 (base) to 1 (roof)."""
        base, head = (self.deck, self.roof_rear) if rear else (self.cowl, self.roof_front)
        x = base[0] + up * (head[0] - base[0])
        z = base[1] + up * (head[1] - base[1])
        bulge = 0.025 * (1.0 - across * across)
        return np.array(
            [x + (-bulge if rear else bulge), across * float(self.half_width(x, z)), z + bulge * 0.6]
        )

    def faces(self) -> list[tuple[Points, bool]]:
        """Return the shell's quadrilaterals (4, 3), and whether each belongs to the cargo box."""
        x, top = self.profile[:, 0], self.profile[:, 1]
        levels = [np.minimum(self.flank_level(share), top) for share, _ in _FLANK]
        edge = self.half_width(x, top)
        half = [np.stack([x, self.half_width(x, z), z], axis=1) for z in levels]
        half.append(np.stack([x, edge, top], axis=1))
        half.append(np.stack([x, _CROWN_SHARE * edge, top + 0.03], axis=1))
        mirror = np.array([1.0, -1.0, 1.0])
        columns = [*half, *(column * mirror for column in reversed(half))]
        faces = []
        for near, far in pairwise(columns):
            for i in range(len(x) - 1):
                corners = np.stack([near[i], near[i + 1], far[i + 1], far[i]])
                cargo = self.cargo_from is not None and x[i] <= self.cargo_from + 1e-6
                faces.append((corners, cargo))
        return faces


def _rounded(corners: list[tuple[float, float]], cut: float) -> Points:
    """Replace each inner corner by a small curve, for smooth shading."""
    points = np.array(corners, dtype=np.float64)
    smooth = [points[0]]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        reach_in = min(0.4, cut / max(float(np.linalg.norm(corner - before)), 1e-6))
        reach_out = min(0.4, cut / max(float(np.linalg.norm(after - corner)), 1e-6))
        enter, leave = corner + reach_in * (before - corner), corner + reach_out * (after - corner)
        smooth += [enter, 0.25 * enter + 0.5 * corner + 0.25 * leave, leave]
    smooth.append(points[-1])
    return np.stack(smooth)


def make_body(rng: np.random.Generator, style: str) -> Body:
    """Draw one body shape of the given style (one of STYLES)."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    build = _BUILDS[style]
    length, width = between(*build.length), between(*build.width)
    height, sill = between(*build.height), between(*build.sill)
    belt = sill + (height - sill) * between(*build.belt)
    nose = belt * between(*build.nose)
    cowl_z = max(belt * between(1.0, 1.07), nose + 0.05)
    nose_at = between(0.06, 0.16)
    cowl = max(length * between(*build.cowl), nose_at + 0.05)
    rake = (height - cowl_z) * between(*build.rake)
    roof_end = max(length * between(*build.roof_end), cowl + rake + 0.3)
    tail_drop = between(*build.tail_drop)
    deck_z = belt * between(1.0, 1.1) if tail_drop > 0.2 else belt * between(1.0, 1.05)
    deck = max(min(roof_end + tail_drop * (height - deck_z), length - 0.1), roof_end + 0.01)
    outline = [(0.0, sill), (between(0.01, 0.04), 0.5 * (sill + nose)), (nose_at, nose)]
    outline += [
        (cowl, cowl_z),
        (cowl + rake, height * 0.97),
        (cowl + rake + 0.4 * (roof_end - cowl - rake), height),
    ]
    roof_rear = (roof_end, height * between(0.95, 0.99))
    outline += [roof_rear, (deck, deck_z)]
    cargo_from = None
    if style == "lorry":
        box = cowl + rake + between(0.9, 1.1)
        roof_rear, deck, deck_z = (length - 0.02, height), length - 0.01, belt
        outline = [*outline[:4], (cowl + rake, height * 0.74), (box - 0.06, height * 0.76)]
        outline += [(box, height), roof_rear, (deck, deck_z)]
        cargo_from = length / 2 - box
    if length - 0.05 > deck + 0.12:
        outline.append((length - between(0.03, 0.06), deck_z * between(0.95, 1.0)))
    outline += [(length - 0.005, 0.55 * deck_z), (length, sill + 0.03)]
    centred = [(length / 2 - x, z) for x, z in outline]
    radius = between(*build.wheel)
    return Body(
        style=style,
        length=length,
        width=width,
        height=height,
        sill=sill,
        belt=belt,
        tumblehome=between(*build.tumblehome),
        nose_taper=between(0.08, 0.2) if style not in ("van", "lorry") else between(0.03, 0.08),
        wheel_radius=radius,
        front_axle=length / 2 - max(length * between(*build.front_axle), radius + 0.25),
        rear_axle=-length / 2 + max(length * between(0.16, 0.21), radius + 0.25),
        cowl=centred[3],
        roof_front=centred[4],
        roof_rear=(length / 2 - roof_rear[0], roof_rear[1]),
        deck=(length / 2 - deck, deck_z),
        cargo_from=cargo_from,
        profile=_rounded(centred, _CORNER),
    )


Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Build:
    """Ranges of a style: metres, or shares of the length or height where noted."""

    length: Range
    width: Range
    height: Range
    sill: Range
    belt: Range  # share of the height above the sill
    nose: Range  # height of the bonnet's front edge, share of the belt
    cowl: Range  # start of the windscreen, share of the length
    rake: Range  # metres back for each metre up, windscreen
    roof_end: Range  # share of the length
    tail_drop: Range  # metres back for each metre down, rear window
    tumblehome: Range
    wheel: Range
    front_axle: Range


_SEDAN: Final = _Build(
    length=(4.45, 5.0),
    width=(1.74, 1.86),
    height=(1.42, 1.5),
    sill=(0.2, 0.26),
    belt=(0.52, 0.58),
    nose=(0.74, 0.86),
    cowl=(0.26, 0.31),
    rake=(1.2, 1.7),
    roof_end=(0.66, 0.73),
    tail_drop=(1.0, 1.6),
    tumblehome=(0.72, 0.8),
    wheel=(0.29, 0.33),
    front_axle=(0.17, 0.2),
)

_BUILDS: Final[dict[str, _Build]] = {
    "sedan": _SEDAN,
    "hatchback": replace(
        _SEDAN,
        length=(3.6, 4.2),
        width=(1.62, 1.78),
        height=(1.45, 1.55),
        cowl=(0.22, 0.27),
        rake=(1.0, 1.4),
        roof_end=(0.86, 0.93),
        tail_drop=(0.25, 0.6),
    ),
    "suv": replace(
        _SEDAN,
        length=(4.3, 4.9),
        width=(1.8, 1.95),
        height=(1.65, 1.85),
        sill=(0.3, 0.4),
        belt=(0.54, 0.6),
        nose=(0.84, 0.95),
        cowl=(0.25, 0.3),
        rake=(0.7, 1.1),
        roof_end=(0.9, 0.95),
        tail_drop=(0.2, 0.5),
        wheel=(0.35, 0.4),
    ),
    "wagon": replace(_SEDAN, length=(4.5, 4.9), roof_end=(0.9, 0.94), tail_drop=(0.3, 0.6)),
    "coupe": replace(
        _SEDAN,
        length=(4.2, 4.6),
        width=(1.78, 1.9),
        height=(1.27, 1.36),
        sill=(0.16, 0.2),
        cowl=(0.3, 0.36),
        rake=(1.6, 2.1),
        roof_end=(0.66, 0.7),
        tail_drop=(2.0, 2.6),
        wheel=(0.32, 0.35),
    ),
    "van": replace(
        _SEDAN,
        length=(4.3, 5.6),
        width=(1.7, 2.0),
        height=(1.9, 2.4),
        sill=(0.26, 0.34),
        belt=(0.42, 0.5),
        nose=(0.8, 0.95),
        cowl=(0.07, 0.17),
        rake=(0.45, 0.8),
        roof_end=(0.965, 0.98),
        tail_drop=(0.03, 0.08),
        tumblehome=(0.84, 0.92),
        front_axle=(0.14, 0.17),
    ),
    "minivan": replace(
        _SEDAN,
        length=(4.4, 5.0),
        width=(1.75, 1.9),
        height=(1.62, 1.78),
        belt=(0.48, 0.54),
        cowl=(0.17, 0.22),
        rake=(1.1, 1.5),
        roof_end=(0.93, 0.96),
        tail_drop=(0.12, 0.3),
        tumblehome=(0.76, 0.84),
    ),
    "pickup": replace(
        _SEDAN,
        length=(4.9, 5.4),
        width=(1.78, 1.95),
        height=(1.7, 1.85),
        sill=(0.36, 0.46),
        belt=(0.5, 0.56),
        nose=(0.86, 0.95),
        cowl=(0.25, 0.29),
        rake=(0.7, 1.0),
        roof_end=(0.58, 0.63),
        tail_drop=(0.1, 0.25),
        wheel=(0.36, 0.42),
    ),
    "lorry": replace(
        _SEDAN,
        length=(5.4, 6.2),
        width=(1.9, 2.15),
        height=(2.6, 3.1),
        sill=(0.4, 0.5),
        belt=(0.32, 0.38),
        nose=(0.7, 0.9),
        cowl=(0.02, 0.06),
        rake=(0.15, 0.35),
        roof_end=(0.99, 0.991),
        tail_drop=(0.005, 0.006),
        tumblehome=(0.95, 0.98),
        wheel=(0.36, 0.42),
        front_axle=(0.13, 0.16),
    ),
}
