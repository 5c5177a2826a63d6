"""A vehicle of a model: its paint and its individual marks.

Two vehicles of one model and color share every polygon of the model; only the marks differ.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from clvr_model.synthetic.body import Body, Points
from clvr_model.synthetic.mesh import GLOSS, Builder, Layer, Material, Mesh
from clvr_model.synthetic.parts import VehicleModel, disc

_BRIGHT_COLORS = np.array(
    [
        [0.85, 0.1, 0.1],
        [0.1, 0.55, 0.2],
        [0.95, 0.8, 0.1],
        [0.1, 0.3, 0.8],
        [0.95, 0.95, 0.95],
        [0.9, 0.45, 0.1],
    ]
)


@dataclass(frozen=True, slots=True)
class Vehicle:
    """`palette` (64, 3) is the RGB colour, 0..1, of each material of `mesh`."""

    model: VehicleModel
    colour_id: int
    palette: Points
    mesh: Mesh


@dataclass(slots=True)
class _Marks:
    """A builder whose materials are colors: each new color takes the next free entry of the palette."""

    palette: Points
    builder: Builder = field(default_factory=Builder)
    next_colour: int = max(Material) + 1

    def colour(self, rgb: ArrayLike) -> int:
        place = min(self.next_colour, len(self.palette) - 1)
        self.palette[place] = np.clip(rgb, 0, 1)
        self.next_colour = place + 1
        return place

    def add(self, corners: ArrayLike, rgb: ArrayLike, facing: ArrayLike, layer: Layer = Layer.MARK) -> None:
        self.builder.add(corners, self.colour(rgb), layer, facing=facing)


def make_vehicle(model: VehicleModel, pick: int, rng: np.random.Generator) -> Vehicle:
    """Draw one vehicle of the model in paint number `pick`."""
    body = model.body
    palette = _palette(model, model.paints[pick], rng)
    marks = _Marks(palette)
    _plates(marks, model, rng)
    _behind_the_windscreen(marks, body, rng)
    _on_the_roof(marks, body, rng)
    _on_the_flanks(marks, body, rng, model.paints[pick])
    _on_the_ends(marks, body, rng, model.paints[pick])
    return Vehicle(model, model.paint_names[pick], palette, model.mesh.merged_with(marks.builder.build()))


def _palette(model: VehicleModel, paint: Points, rng: np.random.Generator) -> Points:
    palette = np.zeros((len(GLOSS), 3))
    paint = np.clip(paint * rng.uniform(0.96, 1.04), 0, 1)
    tint = rng.choice([0.02, 0.05, 0.09, 0.13])
    rim = rng.choice([0.12, 0.35, 0.5, 0.65])
    mud = rng.uniform(0.15, 0.5) if rng.random() < 0.2 else 0.0
    bumper = paint if model.bumper_painted else np.array([0.13, 0.13, 0.14])
    palette[Material.PAINT] = paint
    palette[Material.ROOF] = (0.05, 0.05, 0.06) if model.two_tone else paint
    palette[Material.BUMPER] = (1 - mud) * bumper + mud * np.array([0.36, 0.31, 0.25])
    palette[Material.SEAM] = paint * 0.4
    palette[Material.TRIM] = 0.045
    palette[Material.GLASS] = tint * np.array([0.9, 1.0, 1.0])
    palette[Material.SCREEN] = 0.07 * np.array([0.9, 1.0, 1.05])
    palette[Material.TYRE] = 0.04
    palette[Material.RIM] = rim
    palette[Material.CHROME] = 0.68
    palette[Material.HEADLAMP] = (0.72, 0.76, 0.8)
    palette[Material.TAIL_LAMP] = (0.52, 0.03, 0.04)
    palette[Material.BLINKER] = (0.78, 0.42, 0.1) if rng.random() < 0.5 else (0.75, 0.7, 0.68)
    palette[Material.UNDERSIDE] = 0.02
    palette[Material.INTERIOR] = rng.uniform(0.1, 0.2) * np.array([1.0, 0.97, 0.93])
    palette[Material.CARGO] = rng.choice([[0.85, 0.86, 0.87], [0.6, 0.62, 0.64], [0.2, 0.35, 0.6]])
    plates = [(0.05, 0.15, 0.55), (0.85, 0.65, 0.08), (0.55, 0.8, 0.6), (0.9, 0.9, 0.9)]
    palette[Material.PLATE] = plates[
        1 if model.body.style == "lorry" else rng.choice(4, p=[0.8, 0.04, 0.12, 0.04])
    ]
    return palette


def _plates(marks: _Marks, model: VehicleModel, rng: np.random.Generator) -> None:
    """Draw seven strokes instead of characters: plates are unreadable and distinct."""
    ink = marks.colour(
        (0.92, 0.92, 0.92) if marks.palette[Material.PLATE].mean() < 0.4 else (0.08, 0.08, 0.08)
    )
    strokes = rng.uniform(0.3, 1.0, (7, 2))
    for plate, normal_x in zip(model.plates, (1, -1), strict=True):
        origin, right, up = plate[0], plate[1] - plate[0], plate[3] - plate[0]
        for i, (wide, tall) in enumerate(strokes):
            begin = origin + right * (0.07 + i * 0.125) + up * 0.2
            step, rise = right * 0.09 * wide, up * 0.6 * tall
            ring = [begin, begin + step, begin + step + rise, begin + rise]
            marks.builder.add(ring, ink, Layer.MARK, facing=(normal_x, 0, 0))


def _patch(body: Body, across: float, up: float, wide: float, tall: float, *, rear: bool = False) -> Points:
    ring = ((-wide, -tall), (wide, -tall), (wide, tall), (-wide, tall))
    return np.stack([body.on_screen(rear, across + a, up + u) for a, u in ring])


def _behind_the_windscreen(marks: _Marks, body: Body, rng: np.random.Generator) -> None:
    front = (1, 0, 0.5)
    side = rng.choice([-1, 1])
    for i in range(int(rng.integers(0, 5))):
        across = side * (0.74 - 0.15 * (i % 3)) + rng.uniform(-0.03, 0.03)
        up = 0.82 - 0.14 * (i // 3) - rng.uniform(0, 0.06)
        marks.add(_patch(body, across, up, rng.uniform(0.035, 0.06), 0.05), rng.choice(_BRIGHT_COLORS), front)
    for _ in range(int(rng.choice(4, p=[0.4, 0.3, 0.2, 0.1]))):
        rgb = rng.choice([[0.85, 0.85, 0.82], [0.6, 0.45, 0.25], [0.7, 0.12, 0.1], [0.3, 0.4, 0.5]])
        marks.add(_patch(body, rng.uniform(-0.6, 0.6), 0.16, rng.uniform(0.05, 0.14), 0.05), rgb, front)
    if rng.random() < 0.25:
        marks.add(_patch(body, 0, 0.66, 0.02, 0.12), (0.75, 0.1, 0.1), front)
    if rng.random() < 0.15:
        marks.add(_patch(body, 0, 0.86, 0.82, 0.05), rng.uniform(0.02, 0.2) * np.ones(3), front)
    if body.style != "lorry" and rng.random() < 0.3:
        spot = _patch(
            body, rng.uniform(-0.6, 0.6), rng.uniform(0.4, 0.7), rng.uniform(0.05, 0.12), 0.09, rear=True
        )
        marks.add(spot, rng.choice(_BRIGHT_COLORS), (-1, 0, 0.5))


def _on_the_roof(marks: _Marks, body: Body, rng: np.random.Generator) -> None:
    front, back = body.roof_front[0] - 0.2, max(body.roof_rear[0], body.cargo_from or -9.0) + 0.2
    top = float(body.top(0.5 * (front + back)))
    half = float(body.half_width(front, top))
    roomy = body.style in ("suv", "wagon", "minivan", "van")
    if body.style != "lorry" and rng.random() < 0.25 and front - back > 0.6:
        a, b = front - 0.05, max(front - 0.75, back)
        roof = [(a, half * 0.6), (b, half * 0.6), (b, -half * 0.6), (a, -half * 0.6)]
        marks.add([(x, y, float(body.top(x)) + 0.04) for x, y in roof], (0.03, 0.03, 0.04), (0, 0, 1))
    if body.style != "lorry" and rng.random() < (0.4 if roomy else 0.04):
        metal = marks.colour(rng.choice([[0.08, 0.08, 0.08], [0.6, 0.6, 0.62]]))
        for side in (-1, 1):
            y = sorted((side * half * 0.86, side * (half * 0.86 - 0.05)))
            marks.builder.box((back, y[0], top + 0.02), (front, y[1], top + 0.1), metal)
        if rng.random() < 0.15:
            box = marks.colour(rng.choice([[0.07, 0.07, 0.08], [0.6, 0.6, 0.6]]))
            middle = 0.5 * (front + back)
            marks.builder.box((middle - 0.6, -0.35, top + 0.08), (middle + 0.6, 0.35, top + 0.38), box)
    if body.style in ("sedan", "hatchback", "wagon", "minivan") and rng.random() < 0.08:
        sign = marks.colour((0.9, 0.75, 0.15))
        x = front - 0.3
        marks.builder.box((x - 0.12, -0.3, top), (x + 0.12, 0.3, top + 0.18), sign)


def _flank(body: Body, side: int, x: tuple[float, float], z: tuple[float, float]) -> Points:
    ring = ((x[0], z[0]), (x[1], z[0]), (x[1], z[1]), (x[0], z[1]))
    return np.stack([body.on_side(a, b, side) for a, b in ring])


def _on_the_flanks(marks: _Marks, body: Body, rng: np.random.Generator, paint: Points) -> None:
    low, high = body.sill + 0.12, body.belt - 0.06
    begin, end = body.front_axle - body.wheel_radius * 1.3, body.rear_axle + body.wheel_radius * 1.3
    working = body.style in ("van", "lorry", "pickup")
    if rng.random() < (0.35 if working else 0.07):
        rgb = rng.choice(_BRIGHT_COLORS)
        bars = [(rng.uniform(end, begin), rng.uniform(0.3, 0.8)) for _ in range(int(rng.integers(1, 4)))]
        z = rng.uniform(low, high - 0.2)
        for side in (-1, 1):
            for x, wide in bars:
                marks.add(_flank(body, side, (x, max(x - wide, end)), (z, z + 0.16)), rgb, (0, side, 0))
    if rng.random() < 0.1:
        rgb, z = rng.choice(_BRIGHT_COLORS), rng.uniform(low, high - 0.1)
        for side in (-1, 1):
            marks.add(_flank(body, side, (begin, end), (z, z + 0.07)), rgb, (0, side, 0))
    for side in (-1, 1):
        if rng.random() < 0.1:
            middle = 0.5 * (begin + end)
            door = (begin, middle) if rng.random() < 0.5 else (middle, end)
            marks.add(
                _flank(body, side, door, (low, high)),
                paint * rng.uniform(0.78, 1.2),
                (0, side, 0),
                Layer.FITTING,
            )
        if rng.random() < 0.25:
            x, z = rng.uniform(end, begin), rng.uniform(low, high - 0.1)
            scratch = _flank(body, side, (x, x - rng.uniform(0.3, 1.1)), (z, z + 0.025))
            scratch[2:, 2] += rng.uniform(-0.12, 0.12)
            marks.add(scratch, 0.5 * paint + 0.4, (0, side, 0))
        if rng.random() < 0.2:
            x, z, size = rng.uniform(end, begin), rng.uniform(low + 0.1, high), rng.uniform(0.08, 0.2)
            dent = np.array([body.on_side(p[0], min(p[2], high), side) for p in disc((x, 0, z), size, 8)])
            marks.add(dent, paint * 0.62, (0, side, 0))
        if rng.random() < 0.06:
            x = rng.choice([body.front_axle, body.rear_axle])
            y = side * (float(body.half_width(x, body.wheel_radius * 1.2)) + 0.022)
            marks.add(
                disc((x, y, body.wheel_radius), body.wheel_radius * 0.72, 12),
                (0.06, 0.06, 0.06),
                (0, side, 0),
            )


def _on_the_ends(marks: _Marks, body: Body, rng: np.random.Generator, paint: Points) -> None:
    for on, sign in ((body.on_front, 1), (body.on_rear, -1)):
        if rng.random() < 0.3:
            a, z = rng.uniform(-0.75, 0.75), body.sill + rng.uniform(0.05, 0.5) * (body.belt - body.sill)
            size = rng.uniform(0.05, 0.16)
            ring = [
                (a - size, z),
                (a + size, z - 0.02),
                (a + size * 0.7, z + 0.1),
                (a - size * 0.6, z + 0.07),
            ]
            shade = paint * 0.55 if rng.random() < 0.5 else 0.5 * paint + 0.35
            marks.add(
                [on(p, q) for p, q in ring], shade, (sign, 0, 0), Layer.BONNET if sign > 0 else Layer.MARK
            )
    if rng.random() < 0.2:
        a, z = rng.uniform(-0.6, 0.6), body.sill + 0.75 * (body.belt - body.sill)
        ring = [(a, z), (a + 0.12, z), (a + 0.12, z + 0.07), (a, z + 0.07)]
        marks.add([body.on_rear(p, q) for p, q in ring], rng.choice(_BRIGHT_COLORS), (-1, 0, 0))
    if body.style in ("suv", "pickup") and rng.random() < 0.12:
        metal = marks.colour((0.55, 0.55, 0.57))
        x = body.length / 2
        for z in (body.sill + 0.1, body.sill + 0.4):
            marks.builder.box((x, -0.5, z), (x + 0.08, 0.5, z + 0.06), metal, Layer.BONNET)
