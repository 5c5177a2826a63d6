"""A vehicle model: its body with windows, wheels, doors and mirrors, and its front and rear."""

from dataclasses import dataclass
from itertools import pairwise, product
from typing import Final

import numpy as np

from clvr_model.synthetic.body import STYLES, Body, Points, make_body
from clvr_model.synthetic.mesh import Builder, Layer, Material, Mesh

FRONT: Final = (1, 0, 0.2)
REAR: Final = (-1, 0, 0.2)

Place = tuple[float, float]  # across -1..1, height 0 (sill) .. 1 (bonnet edge, or boot edge)
_STYLE_SHARES: Final = (0.26, 0.16, 0.18, 0.06, 0.06, 0.08, 0.08, 0.06, 0.06)
_SEAM: Final = np.array([0.012, 0.0, 0.0])


@dataclass(frozen=True, slots=True)
class VehicleModel:
    """A make and model: the parts that all its vehicles share."""

    body: Body
    mesh: Mesh
    paints: Points  # (k, 3) RGB 0..1
    paint_names: tuple[int, ...]  # VehicleID colour ids, one a paint
    paint_shares: Points  # (k,) frequency of each paint
    bumper_painted: bool
    two_tone: bool
    plates: tuple[Points, Points]  # front and rear, (4, 3) each, counted from the lower right corner


# By VehicleID's colour ids.
COLORS: Final = ("black", "blue", "gray", "red", "silver", "white", "yellow")
_PAINT: Final = np.array(
    [
        [0.045, 0.045, 0.055],
        [0.07, 0.16, 0.42],
        [0.25, 0.26, 0.28],
        [0.5, 0.05, 0.06],
        [0.58, 0.59, 0.61],
        [0.88, 0.88, 0.86],
        [0.85, 0.63, 0.1],
    ]
)
_PAINT_SHARES: Final = (0.21, 0.1, 0.15, 0.1, 0.17, 0.24, 0.03)


def make_model(rng: np.random.Generator) -> VehicleModel:
    """Draw one vehicle model."""
    style = STYLES[rng.choice(len(STYLES), p=_STYLE_SHARES)]
    body = make_body(rng, style)
    builder = Builder()
    for corners, cargo in body.faces():
        centre = corners.mean(axis=0)
        material = Material.CARGO if cargo else Material.PAINT
        if not cargo and centre[2] > body.height * 0.96 and style != "lorry":
            material = Material.ROOF
        if centre[2] < body.sill + 0.28 * (body.belt - body.sill):
            material = Material.BUMPER
        builder.add(corners, material, Layer.SHELL)
    _add_underside(builder, body)
    _add_wheels(builder, body, rng)
    _add_screens(builder, body)
    _add_bonnet(builder, body, rng)
    _add_side_windows(builder, body, rng)
    plates = add_front(builder, body, rng), add_rear(builder, body, rng)
    _add_mirrors(builder, body, rng)
    if style == "pickup":
        _add_bed(builder, body)
    names = rng.choice(7, size=4, replace=False, p=_PAINT_SHARES)
    return VehicleModel(
        body=body,
        mesh=builder.build(),
        paints=np.clip(
            _PAINT[names] * rng.uniform(0.85, 1.15, (4, 1)) + rng.normal(0, 0.012, (4, 3)), 0.02, 0.95
        ),
        paint_names=tuple(int(name) for name in names),
        paint_shares=np.take(_PAINT_SHARES, names) / np.take(_PAINT_SHARES, names).sum(),
        bumper_painted=bool(rng.random() < (0.3 if style in ("van", "pickup", "lorry", "suv") else 0.9)),
        two_tone=bool(rng.random() < 0.08),
        plates=plates,
    )


def disc(centre: tuple[float, float, float], radius: float, corners: int = 16, turn: float = 0.0) -> Points:
    """Make a regular polygon in a vertical plane along the vehicle (corners, 3)."""
    angle = np.arange(corners) * (2 * np.pi / corners) + turn
    ring = np.stack([np.cos(angle), np.zeros(corners), np.sin(angle)], axis=1)
    return np.asarray(np.array(centre) + radius * ring, dtype=np.float64)


def _add_underside(builder: Builder, body: Body) -> None:
    x, y, z = body.length * 0.46, body.width * 0.44, body.sill
    for sign in (-1, 1):
        flank = [(x, sign * y, z), (-x, sign * y, z), (-x, sign * y, z * 0.45), (x, sign * y, z * 0.45)]
        builder.add(flank, Material.UNDERSIDE, Layer.UNDER, facing=(0, sign, 0))
        end = [
            (sign * x, y, z + 0.05),
            (sign * x, -y, z + 0.05),
            (sign * x, -y, z * 0.5),
            (sign * x, y, z * 0.5),
        ]
        builder.add(end, Material.UNDERSIDE, Layer.UNDER, facing=(sign, 0, 0))


def _add_wheels(builder: Builder, body: Body, rng: np.random.Generator) -> None:
    radius, spokes = body.wheel_radius, int(rng.integers(5, 11))
    rim, hub = radius * rng.uniform(0.62, 0.74), radius * rng.uniform(0.12, 0.22)
    arch = radius * rng.uniform(1.1, 1.2)
    wide = rng.uniform(0.1, 0.24)
    for x in (body.front_axle, body.rear_axle):
        for side in (-1, 1):
            y = side * (float(body.half_width(x, radius * 1.2)) - 0.005)
            outward = (0, side, 0)
            for end in (-1, 1):
                tread = [(x + end * radius * 0.8, y, 0.02), (x + end * radius * 0.8, y - side * 0.2, 0.02)]
                tread += [
                    (x + end * radius * 0.95, y - side * 0.2, radius),
                    (x + end * radius * 0.95, y, radius),
                ]
                builder.add(tread, Material.TYRE, Layer.UNDER, facing=(end, 0, 0))
            opening = disc((x, y + side * 0.012, radius * 1.02), arch)
            opening[:, 2] = np.maximum(opening[:, 2], body.sill * 0.95)
            builder.add(opening, Material.UNDERSIDE, Layer.FITTING, facing=outward)
            builder.add(
                disc((x, y + side * 0.015, radius), radius), Material.TYRE, Layer.DETAIL, facing=outward
            )
            builder.add(disc((x, y + side * 0.018, radius), rim), Material.RIM, Layer.DETAIL, facing=outward)
            for k in range(spokes):
                middle = 2 * np.pi * k / spokes
                step = np.pi / spokes * (1 - wide)
                inner, outer = rim * 0.35, rim * 0.9
                angles = ((inner, middle), (outer, middle - step), (outer, middle + step))
                hole = [(x + r * np.cos(a), y + side * 0.021, radius + r * np.sin(a)) for r, a in angles]
                builder.add(hole, Material.TYRE, Layer.MARK, facing=outward)
            builder.add(disc((x, y + side * 0.024, radius), hub, 8), Material.RIM, Layer.MARK, facing=outward)


def _add_screens(builder: Builder, body: Body) -> None:
    """Add panes of several facets, which reflect several parts of the sky."""
    for rear in (False, True) if body.style != "lorry" else (False,):
        low, high = (0.3, 0.86) if rear and body.style in ("van", "suv", "minivan") else (0.07, 0.92)
        facing = REAR if rear else FRONT
        across = np.linspace(-0.88, 0.88, 6)
        ring = [body.on_screen(rear, a * 1.04, low - 0.03) for a in across]
        ring += [body.on_screen(rear, a * 1.01, high + 0.03) for a in across[::-1]]
        builder.add(ring, Material.TRIM, Layer.FRAME, facing=facing)
        heights = np.linspace(low, high, 4)
        for (left, right), (below, above) in product(pairwise(across), pairwise(heights)):
            pane = ((left, below), (right, below), (right, above), (left, above))
            corners = [body.on_screen(rear, a * (1 - 0.03 * u), u) for a, u in pane]
            builder.add(corners, Material.GLASS if rear else Material.SCREEN, Layer.FITTING, facing=facing)
        if not rear:
            _add_inside(builder, body)


def _add_inside(builder: Builder, body: Body) -> None:
    """Add dashboard, head rests and wipers on the windscreen."""

    def add(ring: list[tuple[float, float]], material: Material) -> None:
        builder.add([body.on_screen(False, a, u) for a, u in ring], material, Layer.DETAIL, facing=FRONT)

    add([(-0.84, 0.09), (0.84, 0.09), (0.78, 0.2), (-0.78, 0.2)], Material.INTERIOR)
    for side in (-1, 1):
        seat = [(0.22, 0.3), (0.6, 0.3), (0.56, 0.55), (0.5, 0.68), (0.32, 0.68), (0.26, 0.55)]
        add([(side * a, u) for a, u in seat], Material.INTERIOR)
        add(
            [(side * 0.75, 0.07), (side * 0.05, 0.1), (side * 0.05, 0.125), (side * 0.75, 0.095)],
            Material.TRIM,
        )


def _add_bonnet(builder: Builder, body: Body, rng: np.random.Generator) -> None:
    """Add the bonnet's side gaps, and on some models a pair of creases."""
    begin, end = body.length / 2 - 0.2, body.cowl[0] + 0.06
    if begin - end < 0.5:
        return
    creases = [0.86] if rng.random() < 0.5 else [0.86, float(rng.uniform(0.3, 0.6))]
    for share, side in product(creases, (-1, 1)):
        line = []
        for x, wide in ((begin, 0.0), (end, 0.0), (end, 0.022), (begin, 0.022)):
            z = float(body.top(x))
            line.append((x, side * (share * float(body.half_width(x, z)) - wide), z + 0.025))
        builder.add(line, Material.SEAM, Layer.BONNET, facing=(0, 0, 1))


def _add_side_windows(builder: Builder, body: Body, rng: np.random.Generator) -> None:
    low = body.belt + 0.05
    head = body.roof_front[1] if body.style == "lorry" else body.height
    high = head - (head - body.belt) * rng.uniform(0.14, 0.2)

    def screen_x(rear: bool, z: float) -> float:
        base, top = (body.deck, body.roof_rear) if rear else (body.cowl, body.roof_front)
        return float(np.interp(z, [base[1], top[1]], [base[0], top[0]]))

    pillar = rng.uniform(0.1, 0.16)
    front_low, front_high = screen_x(False, low) - pillar, screen_x(False, high) - pillar
    rear_low, rear_high = screen_x(True, low) + 2 * pillar, screen_x(True, high) + 2 * pillar
    if body.cargo_from is not None:
        rear_low = rear_high = body.cargo_from + 0.25
    doors = {"coupe": 2, "pickup": 2, "lorry": 1, "sedan": 2}.get(body.style, 3)
    cuts = np.linspace(0, 1, doors + 1)
    if doors == 3:
        cuts = np.array([0.0, rng.uniform(0.34, 0.42), rng.uniform(0.68, 0.76), 1.0])
    panelled = body.style == "van" and rng.random() < 0.5
    chrome = rng.random() < 0.3
    for side in (-1, 1):
        outward = (0, side, 0.1)
        for i, (begin, end) in enumerate(pairwise(cuts)):
            if panelled and i > 0:
                break
            gap = 0.035 if i else 0.0

            def corner(share: float, z: float, inset: float, side: int = side) -> Points:
                upper = (z - low) / (high - low)
                front = front_low + upper * (front_high - front_low)
                rear = rear_low + upper * (rear_high - rear_low)
                return body.on_side(front + share * (rear - front) - inset, z, side)

            pane = np.array(
                [corner(begin, low, gap), corner(end, low, 0), corner(end, high, 0), corner(begin, high, gap)]
            )
            middle = pane.mean(axis=0)
            builder.add(
                middle + (pane - middle) * 1.05,
                Material.CHROME if chrome else Material.TRIM,
                Layer.FITTING,
                facing=outward,
            )
            builder.add(pane, Material.GLASS, Layer.DETAIL, facing=outward)
            seam = corner(end, low, 0)[0]
            if i < 2 and abs(seam) < body.length * 0.42:
                _add_door(builder, body, float(seam), side)
        first = float(corner(0, low, 0)[0]) + 0.1
        _add_seam(builder, body, first, side)


def _add_seam(builder: Builder, body: Body, x: float, side: int) -> None:
    heights = (body.sill + 0.04, body.sill + 0.45 * (body.belt - body.sill), body.belt)
    rail = [body.on_side(x, z, side) for z in heights]
    for low, high in pairwise(rail):
        line = [low + _SEAM, high + _SEAM, high - _SEAM, low - _SEAM]
        builder.add(line, Material.SEAM, Layer.DETAIL, facing=(0, side, 0))


def _add_door(builder: Builder, body: Body, x: float, side: int) -> None:
    _add_seam(builder, body, x, side)
    z = body.belt - 0.09
    handle = [
        body.on_side(x + dx, z + dz, side) for dx, dz in ((0.08, 0), (0.26, 0), (0.26, 0.035), (0.08, 0.035))
    ]
    builder.add(handle, Material.SEAM, Layer.DETAIL, facing=(0, side, 0))


def _add_mirrors(builder: Builder, body: Body, rng: np.random.Generator) -> None:
    x, z = body.cowl[0] - rng.uniform(0.3, 0.4), body.belt + 0.06
    if body.style == "lorry":
        x, z = body.cowl[0] - 0.05, body.belt + 0.25
    material = Material.PAINT if rng.random() < 0.7 else Material.TRIM
    for side in (-1, 1):
        y = side * float(body.half_width(x, z))
        low, high = sorted((y, y + side * rng.uniform(0.17, 0.22)))
        builder.box((x - 0.07, low, z), (x + 0.07, high, z + 0.15), material)


def _add_bed(builder: Builder, body: Body) -> None:
    begin, end = body.deck[0] - 0.12, -body.length / 2 + 0.16
    z = body.deck[1] + 0.035
    y = float(body.half_width(0.5 * (begin + end), body.deck[1])) - 0.12
    builder.add(
        [(begin, y, z), (end, y, z), (end, -y, z), (begin, -y, z)],
        Material.UNDERSIDE,
        Layer.BED,
        facing=(0, 0, 1),
    )


@dataclass(frozen=True, slots=True)
class _End:
    """Front or rear of the body, to which polygons are added."""

    builder: Builder
    body: Body
    rear: bool
    span: float

    def at(self, across: float, height: float) -> Points:
        on = self.body.on_rear if self.rear else self.body.on_front
        return on(across, self.body.sill + self.span * height)

    def add(self, ring: list[Place], material: Material, layer: Layer = Layer.FITTING) -> None:
        self.builder.add(
            [self.at(*place) for place in ring], material, layer, facing=REAR if self.rear else FRONT
        )

    def bar(self, across: Place, heights: Place, material: Material, layer: Layer = Layer.FITTING) -> None:
        (left, right), (low, high) = across, heights
        self.add([(left, low), (right, low), (right, high), (left, high)], material, layer)

    def flank(self, side: int, back: float, reach: float, heights: Place, material: Material) -> None:
        """Add a triangle on the flank, `back` metres from the end and `reach` long, for a lamp."""
        sign = -1 if self.rear else 1
        x = sign * (self.body.length / 2 - back)
        low, high = (self.body.sill + self.span * height for height in heights)
        ring = [(x, low), (x, high), (x - sign * reach, high)]
        corners = [self.body.on_side(a, z, side) for a, z in ring]
        self.builder.add(corners, material, Layer.FITTING, facing=(0.3 * sign, side, 0))

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
            for grow, material, layer in (*rounds, (0.5, Material.CHROME, Layer.DETAIL)):
                ring = [
                    (side * 0.74 + grow * wide * np.cos(a), middle + grow * tall * np.sin(a)) for a in angle
                ]
                end.add([(float(a), float(h)) for a, h in ring], material, layer)
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
