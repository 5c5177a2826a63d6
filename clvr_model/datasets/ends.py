"""Front and rear of a vehicle model: bumpers, grille, lamps and plates. A model is told by its face."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from clvr_model.datasets.body import Body, Points
from clvr_model.datasets.solid import Builder, Layer, Material

FRONT: Final = (1, 0, 0.2)
REAR: Final = (-1, 0, 0.2)

Place = tuple[float, float]  # across -1..1, height 0 (sill) .. 1 (bonnet edge, or boot edge)


@dataclass(frozen=True, slots=True)
class _End:
    """One end of the body, to stick polygons on."""

    builder: Builder
    body: Body
    rear: bool
    span: float

    def at(self, across: float, height: float) -> Points:
        on = self.body.on_rear if self.rear else self.body.on_front
        return on(across, self.body.sill + self.span * height)

    def add(self, ring: list[Place], what: Material, layer: Layer = Layer.FITTING) -> None:
        self.builder.add(
            [self.at(*place) for place in ring], what, layer, facing=REAR if self.rear else FRONT
        )

    def bar(self, across: Place, heights: Place, what: Material, layer: Layer = Layer.FITTING) -> None:
        (left, right), (low, high) = across, heights
        self.add([(left, low), (right, low), (right, high), (left, high)], what, layer)

    def flank(self, side: int, back: float, reach: float, heights: Place, what: Material) -> None:
        """A triangle on the flank: a lamp's wrap, `back` metres from the end and `reach` long."""
        sign = -1 if self.rear else 1
        x = sign * (self.body.length / 2 - back)
        low, high = (self.body.sill + self.span * height for height in heights)
        ring = [(x, low), (x, high), (x - sign * reach, high)]
        corners = [self.body.on_side(a, z, side) for a, z in ring]
        self.builder.add(corners, what, Layer.FITTING, facing=(0.3 * sign, side, 0))

    def plate(self, height: float) -> Points:
        z = self.body.sill + self.span * height
        half = 0.22 / float(self.body.half_width(self.body.length / 2 - 0.03, z))
        low, high = (height + d / self.span for d in (-0.07, 0.07))
        self.bar((-half, half), (low, high), Material.PLATE, Layer.DETAIL)
        return np.stack([self.at(-half, low), self.at(half, low), self.at(half, high), self.at(-half, high)])


def add_front(builder: Builder, body: Body, rng: np.random.Generator) -> Points:
    """Add bumper, grille, lamps and plate of the front; return the plate (4, 3)."""
    nose = float(body.profile[:, 1][body.profile[:, 0] > body.length / 2 - 0.25].max())
    end = _End(builder, body, False, (body.belt * 0.9 if body.style == "lorry" else nose) - body.sill)
    inner = float(rng.uniform(0.45, 0.68))
    _bumper(end, 0.3)
    intake = float(rng.uniform(0.35, 0.7))
    end.bar((-intake, intake), (0.08, 0.24), Material.TRIM)
    _grille(end, inner, rng)
    _headlamps(end, inner, rng)
    if rng.random() < 0.6:
        for side in (-1, 1):
            end.bar((side * 0.64, side * 0.84), (0.1, 0.27), Material.TRIM)
            end.bar((side * 0.69, side * 0.79), (0.14, 0.23), Material.CHROME, Layer.DETAIL)
    return end.plate(float(rng.uniform(0.26, 0.36)))


def _bumper(end: _End, height: float) -> None:
    end.bar((-0.9, 0.9), (0.04, height), Material.BUMPER, Layer.FRAME)
    end.bar((-0.93, 0.93), (height, height + 0.018), Material.SEAM)


def _grille(end: _End, inner: float, rng: np.random.Generator) -> None:
    low, high = float(rng.uniform(0.36, 0.56)), float(rng.uniform(0.76, 0.92))
    top, bottom = float(rng.uniform(0.25, inner - 0.06)), float(rng.uniform(0.2, inner - 0.06))
    waist, middle = max(top, bottom) * float(rng.choice([1.0, 1.12])), 0.5 * (low + high)
    ring = [(-bottom, low), (bottom, low), (waist, middle), (top, high), (-top, high), (-waist, middle)]
    if rng.random() < 0.5:
        end.add([(a * 1.07, middle + (h - middle) * 1.16) for a, h in ring], Material.CHROME, Layer.FRAME)
    end.add(ring, Material.TRIM)
    bars, narrow = int(rng.integers(0, 7)), min(top, bottom)
    upright = bars > 3 and rng.random() < 0.45
    for k in range(bars):
        t = (k + 0.5) / bars
        if upright:
            a = (2 * t - 1) * narrow
            end.bar((a - 0.014, a + 0.014), (low + 0.02, high - 0.02), Material.CHROME, Layer.DETAIL)
        else:
            half, height = bottom + t * (top - bottom), low + t * (high - low)
            end.bar((-half, half), (height - 0.014, height + 0.014), Material.CHROME, Layer.DETAIL)
    if rng.random() < 0.8:
        size = float(rng.uniform(0.05, 0.08))
        corners = int(rng.choice([4, 6, 12]))
        angle = np.arange(corners) * (2 * np.pi / corners)
        badge = [(size * np.cos(a), middle + 1.1 * size * np.sin(a)) for a in angle]
        end.add(badge, Material.CHROME, Layer.MARK)


def _headlamps(end: _End, inner: float, rng: np.random.Generator) -> None:
    low, high = float(rng.uniform(0.52, 0.66)), float(rng.uniform(0.82, 0.95))
    slant, tip = float(rng.uniform(-0.1, 0.14)), float(rng.uniform(0.0, 0.16))
    shape, reach = rng.choice(3, p=[0.16, 0.5, 0.34]), float(rng.uniform(0.15, 0.45))
    angle = np.arange(12) * (np.pi / 6)
    for side in (-1, 1):
        if shape == 0:
            middle, tall = 0.5 * (low + high), 0.5 * (high - low) + 0.05
            wide = tall * end.span / (0.5 * end.body.width)
            rounds = ((1.18, Material.TRIM, Layer.FRAME), (1.0, Material.HEADLAMP, Layer.FITTING))
            for grow, what, layer in (*rounds, (0.5, Material.CHROME, Layer.DETAIL)):
                ring = [
                    (side * 0.74 + grow * wide * np.cos(a), middle + grow * tall * np.sin(a)) for a in angle
                ]
                end.add([(float(a), float(h)) for a, h in ring], what, layer)
            continue
        ring = [(inner, low + 0.5 * slant), (0.96, low + slant), (0.96, high), (inner, high - tip)]
        if shape == 2:
            ring = [
                (inner, low + 0.5 * slant + 0.1),
                (0.8, low),
                (0.96, low + 0.14),
                (0.96, high),
                (inner, high - tip),
            ]
        centre = np.mean(ring, axis=0)
        rim = [(side * float(a), float(h)) for a, h in centre + (np.array(ring) - centre) * (1.07, 1.2)]
        end.add(rim, Material.TRIM, Layer.FRAME)
        end.add([(side * a, h) for a, h in ring], Material.HEADLAMP)
        for share in (0.38, 0.74):
            a, h = inner + share * (0.96 - inner), float(centre[1])
            bulb = [(side * (a + 0.055 * np.cos(t)), h + 0.085 * np.sin(t)) for t in angle[::2]]
            end.add([(float(p), float(q)) for p, q in bulb], Material.CHROME, Layer.DETAIL)
        end.flank(side, 0.08, reach, (low + slant, high), Material.HEADLAMP)


def add_rear(builder: Builder, body: Body, rng: np.random.Generator) -> Points:
    """Add bumper, lamps and plate of the rear; return the plate (4, 3)."""
    lorry = body.style == "lorry"
    end = _End(builder, body, True, (body.belt if lorry else body.deck[1]) - body.sill)
    tall = body.style in ("van", "suv", "minivan", "hatchback", "wagon")
    upright = tall and rng.random() < 0.6
    low, high = float(rng.uniform(0.55, 0.68)), float(rng.uniform(0.82, 0.96))
    inner, slant = float(rng.uniform(0.45, 0.7)), float(rng.uniform(-0.08, 0.12))
    if upright:
        high, inner = float(rng.uniform(1.02, 1.3)), float(rng.uniform(0.74, 0.84))
    if lorry:
        low, high, inner, slant = 0.1, 0.25, 0.75, 0.0
    _bumper(end, 0.28)
    cut = low + float(rng.uniform(0.15, 0.6)) * (high - low)
    for side in (-1, 1):
        ring = [(inner, low + slant), (0.96, low), (0.96, high), (inner, high)]
        centre = np.mean(ring, axis=0)
        rim = [(side * float(a), float(h)) for a, h in centre + (np.array(ring) - centre) * (1.08, 1.12)]
        end.add(rim, Material.SEAM, Layer.FRAME)
        end.add([(side * a, h) for a, h in ring], Material.TAIL_LAMP)
        end.bar((side * (inner + 0.04), side * 0.94), (cut, cut + 0.09), Material.BLINKER, Layer.DETAIL)
        if not lorry:
            end.flank(side, 0.06, 0.25, (low, min(high, 0.97)), Material.TAIL_LAMP)
    if not lorry:
        if rng.random() < 0.5:
            height = float(rng.uniform(0.66, 0.8))
            end.bar((-0.4, 0.4), (height, height + 0.05), Material.CHROME, Layer.DETAIL)
        for side in (-1, 1):
            end.bar((side * 0.7, side * 0.715), (0.3, min(low, 0.55)), Material.SEAM, Layer.DETAIL)
        end.bar((-0.05, 0.05), (0.82, 0.88), Material.CHROME, Layer.DETAIL)
    return end.plate(float(rng.choice([0.2, 0.5, 0.56])))
