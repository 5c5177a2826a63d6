"""What a vehicle model carries on its body: windows, lamps, grille, bumpers, wheels, mirrors."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from clvr_model.datasets.body import STYLES, Body, Points, make_body
from clvr_model.datasets.solid import Builder, Layer, Material, Solid

_STYLE_SHARES: Final = (0.26, 0.16, 0.18, 0.06, 0.06, 0.08, 0.08, 0.06, 0.06)
_FRONT: Final = (1, 0, 0.2)
_REAR: Final = (-1, 0, 0.2)


@dataclass(frozen=True, slots=True)
class VehicleModel:
    """One make and model: its body and everything that all its vehicles share."""

    body: Body
    solid: Solid
    paints: Points  # (k, 3) RGB 0..1, the colours it is sold in
    paint_names: tuple[int, ...]  # VehicleID colour ids, one a paint
    bumper_painted: bool
    two_tone: bool
    plates: tuple[Points, Points]  # front and rear, (4, 3) each, from the lower right corner round


# VehicleID's colour ids 0-6: black, blue, gray, red, silver, white, yellow.
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
_PAINT_SHARES: Final = (0.2, 0.1, 0.14, 0.1, 0.16, 0.24, 0.06)


def make_model(rng: np.random.Generator) -> VehicleModel:
    """Draw one vehicle model."""
    style = STYLES[rng.choice(len(STYLES), p=_STYLE_SHARES)]
    body = make_body(rng, style)
    builder = Builder()
    for corners, cargo in body.mesh():
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
    _add_side_windows(builder, body, rng)
    plates = _add_front(builder, body, rng), _add_rear(builder, body, rng)
    _add_mirrors(builder, body, rng)
    if style == "pickup":
        _add_bed(builder, body)
    names = rng.choice(7, size=4, replace=False, p=_PAINT_SHARES)
    return VehicleModel(
        body=body,
        solid=builder.solid(),
        paints=np.clip(
            _PAINT[names] * rng.uniform(0.85, 1.15, (4, 1)) + rng.normal(0, 0.012, (4, 3)), 0.02, 0.95
        ),
        paint_names=tuple(int(name) for name in names),
        bumper_painted=bool(rng.random() < (0.3 if style in ("van", "pickup", "lorry", "suv") else 0.9)),
        two_tone=bool(rng.random() < 0.08),
        plates=plates,
    )


def disc(centre: tuple[float, float, float], radius: float, corners: int = 16, turn: float = 0.0) -> Points:
    """A regular polygon in a vertical plane along the vehicle (corners, 3)."""
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
            seen = (0, side, 0)
            for end in (-1, 1):
                tread = [(x + end * radius * 0.8, y, 0.02), (x + end * radius * 0.8, y - side * 0.2, 0.02)]
                tread += [
                    (x + end * radius * 0.95, y - side * 0.2, radius),
                    (x + end * radius * 0.95, y, radius),
                ]
                builder.add(tread, Material.TYRE, Layer.UNDER, facing=(end, 0, 0))
            opening = disc((x, y + side * 0.012, radius * 1.02), arch)
            opening[:, 2] = np.maximum(opening[:, 2], body.sill * 0.95)
            builder.add(opening, Material.UNDERSIDE, Layer.FITTING, facing=seen)
            builder.add(disc((x, y + side * 0.015, radius), radius), Material.TYRE, Layer.DETAIL, facing=seen)
            builder.add(disc((x, y + side * 0.018, radius), rim), Material.RIM, Layer.DETAIL, facing=seen)
            for k in range(spokes):
                middle = 2 * np.pi * k / spokes
                step = np.pi / spokes * (1 - wide)
                inner, outer = rim * 0.35, rim * 0.9
                angles = ((inner, middle), (outer, middle - step), (outer, middle + step))
                hole = [(x + r * np.cos(a), y + side * 0.021, radius + r * np.sin(a)) for r, a in angles]
                builder.add(hole, Material.TYRE, Layer.MARK, facing=seen)
            builder.add(disc((x, y + side * 0.024, radius), hub, 8), Material.RIM, Layer.MARK, facing=seen)


def _add_screens(builder: Builder, body: Body) -> None:
    screens = [(False, Material.SCREEN)]
    if body.style != "lorry":
        screens.append((True, Material.GLASS))
    for rear, material in screens:
        low, high = (0.3, 0.86) if rear and body.style in ("van", "suv", "minivan") else (0.07, 0.92)
        if rear and body.style == "van":
            low, high = 0.25, 0.88
        across = (-0.88, -0.72, 0.72, 0.88)
        ring = [body.on_screen(rear, a, low) for a in across]
        ring += [body.on_screen(rear, a * 0.97, high) for a in reversed(across)]
        facing = _REAR if rear else _FRONT
        frame = np.array(ring)
        middle = frame.mean(axis=0)
        builder.add(middle + (frame - middle) * 1.035, Material.TRIM, Layer.FITTING, facing=facing)
        builder.add(frame, material, Layer.FITTING, facing=facing)


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
        seen = (0, side, 0.1)
        for i, (begin, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
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
                facing=seen,
            )
            builder.add(pane, Material.GLASS, Layer.DETAIL, facing=seen)
            seam = corner(end, low, 0)[0]
            if i < 2 and abs(seam) < body.length * 0.42:
                _add_door(builder, body, float(seam), side)
        first = float(corner(0, low, 0)[0]) + 0.1
        _add_seam(builder, body, first, side)


def _add_seam(builder: Builder, body: Body, x: float, side: int) -> None:
    heights = (body.sill + 0.04, body.sill + 0.45 * (body.belt - body.sill), body.belt)
    rail = [body.on_side(x, z, side) for z in heights]
    for low, high in zip(rail, rail[1:], strict=False):
        line = [low + (0.012, 0, 0), high + (0.012, 0, 0), high - (0.012, 0, 0), low - (0.012, 0, 0)]
        builder.add(line, Material.SEAM, Layer.DETAIL, facing=(0, side, 0))


def _add_door(builder: Builder, body: Body, x: float, side: int) -> None:
    _add_seam(builder, body, x, side)
    z = body.belt - 0.09
    handle = [
        body.on_side(x + dx, z + dz, side) for dx, dz in ((0.08, 0), (0.26, 0), (0.26, 0.035), (0.08, 0.035))
    ]
    builder.add(handle, Material.SEAM, Layer.DETAIL, facing=(0, side, 0))


def _strip(
    body: Body, rear: bool, across: tuple[float, float], heights: tuple[float, float, float, float]
) -> Points:
    """A quadrilateral on the front or rear: heights are low and high at the first and second edge."""
    on = body.on_rear if rear else body.on_front
    left, right = across
    low_left, high_left, low_right, high_right = heights
    return np.stack([on(left, low_left), on(right, low_right), on(right, high_right), on(left, high_left)])


def _add_front(builder: Builder, body: Body, rng: np.random.Generator) -> Points:
    nose = float(body.profile[:, 1][body.profile[:, 0] > body.length / 2 - 0.25].max())
    if body.style == "lorry":
        nose = body.belt * 0.9
    span = nose - body.sill

    def add(
        across: tuple[float, float],
        heights: tuple[float, float, float, float],
        what: Material,
        layer: Layer = Layer.FITTING,
    ) -> None:
        shares = tuple(body.sill + span * h for h in heights)
        builder.add(_strip(body, False, across, shares), what, layer, facing=_FRONT)  # type: ignore[arg-type]

    lamp_low, lamp_high = rng.uniform(0.52, 0.66), rng.uniform(0.8, 0.93)
    inner, slant = rng.uniform(0.45, 0.68), rng.uniform(-0.1, 0.14)
    grille_low, grille_high = rng.uniform(0.36, 0.58), rng.uniform(0.76, 0.9)
    grille_top, grille_bottom = rng.uniform(0.25, inner - 0.08), rng.uniform(0.2, inner - 0.08)
    add((-0.86, 0.86), (0.04, 0.3, 0.04, 0.3), Material.BUMPER, Layer.FITTING)
    intake = rng.uniform(0.35, 0.7)
    add((-intake, intake), (0.08, 0.25, 0.08, 0.25), Material.TRIM)
    corners = [
        body.on_front(a, body.sill + span * h)
        for a, h in (
            (-grille_bottom, grille_low),
            (grille_bottom, grille_low),
            (grille_top, grille_high),
            (-grille_top, grille_high),
        )
    ]
    builder.add(corners, Material.TRIM, Layer.FITTING, facing=_FRONT)
    bars = int(rng.integers(0, 6))
    vertical = bars > 3 and rng.random() < 0.4
    for k in range(bars):
        t = (k + 0.5) / bars
        half = grille_bottom + t * (grille_top - grille_bottom)
        z = grille_low + t * (grille_high - grille_low)
        if vertical:
            a = (2 * t - 1) * min(grille_bottom, grille_top)
            add(
                (a - 0.015, a + 0.015),
                (grille_low, grille_high, grille_low, grille_high),
                Material.CHROME,
                Layer.DETAIL,
            )
        else:
            add((-half, half), (z - 0.015, z + 0.015, z - 0.015, z + 0.015), Material.CHROME, Layer.DETAIL)
    if rng.random() < 0.4:
        add(
            (-grille_top, grille_top),
            (grille_high, grille_high + 0.05, grille_high, grille_high + 0.05),
            Material.CHROME,
            Layer.DETAIL,
        )
    if rng.random() < 0.75:
        z = 0.5 * (grille_low + grille_high) + rng.uniform(-0.05, 0.1)
        add((-0.06, 0.06), (z - 0.06, z + 0.06, z - 0.06, z + 0.06), Material.CHROME, Layer.MARK)
    round_lamps = rng.random() < 0.2
    fogs = rng.random() < 0.6
    wrap = rng.uniform(0.15, 0.45)
    for side in (-1, 1):
        if round_lamps:
            angle = np.arange(12) * (np.pi / 6)
            tall = 0.5 * span * (lamp_high - lamp_low) + 0.03
            z0 = body.sill + span * 0.5 * (lamp_low + lamp_high)
            wide = tall / float(body.half_width(body.length / 2 - 0.05, z0))
            builder.add(
                [body.on_front(side * 0.72 + wide * np.cos(a), z0 + tall * np.sin(a)) for a in angle],
                Material.HEADLAMP,
                Layer.FITTING,
                facing=_FRONT,
            )
        else:
            heights = (lamp_low + slant * 0.5, lamp_high - 0.08, lamp_low + slant, lamp_high)
            add((side * inner, side * 0.96), heights, Material.HEADLAMP)
            bulb = 0.5 * (inner + 0.96)
            middle = 0.5 * (lamp_low + slant + lamp_high) - 0.03
            add(
                (side * (bulb - 0.07), side * (bulb + 0.07)),
                (middle - 0.08, middle + 0.08) * 2,
                Material.CHROME,
                Layer.DETAIL,
            )
            x = body.length / 2 - 0.08
            z_low, z_high = body.sill + span * (lamp_low + slant), body.sill + span * lamp_high
            flank = [
                body.on_side(x, z_low, side),
                body.on_side(x, z_high, side),
                body.on_side(x - wrap, z_high, side),
            ]
            builder.add(flank, Material.HEADLAMP, Layer.FITTING, facing=(0.3, side, 0))
        if fogs:
            add((side * 0.66, side * 0.8), (0.14, 0.26, 0.14, 0.26), Material.CHROME, Layer.DETAIL)
    return _add_plate(builder, body, rear=False, z=body.sill + span * rng.uniform(0.26, 0.36))


def _add_plate(builder: Builder, body: Body, *, rear: bool, z: float) -> Points:
    half = 0.22 / float(body.half_width(body.length / 2 - 0.03, z))
    plate = _strip(body, rear, (-half, half), (z - 0.07, z + 0.07, z - 0.07, z + 0.07))
    builder.add(plate, Material.PLATE, Layer.DETAIL, facing=_REAR if rear else _FRONT)
    return plate


def _add_rear(builder: Builder, body: Body, rng: np.random.Generator) -> Points:
    deck = body.deck[1] if body.style != "lorry" else body.belt
    span = deck - body.sill
    tall = body.style in ("van", "suv", "minivan", "hatchback", "wagon")
    vertical = tall and rng.random() < 0.6
    low = rng.uniform(0.55, 0.68)
    high = rng.uniform(1.02, 1.3) if vertical else rng.uniform(0.82, 0.96)
    inner = rng.uniform(0.74, 0.84) if vertical else rng.uniform(0.45, 0.7)
    slant = rng.uniform(-0.08, 0.12)
    if body.style == "lorry":
        low, high, inner, slant = 0.1, 0.25, 0.75, 0.0

    def add(
        across: tuple[float, float],
        heights: tuple[float, float, float, float],
        what: Material,
        layer: Layer = Layer.FITTING,
    ) -> None:
        shares = tuple(body.sill + span * h for h in heights)
        builder.add(_strip(body, True, across, shares), what, layer, facing=_REAR)  # type: ignore[arg-type]

    add((-0.86, 0.86), (0.02, 0.28, 0.02, 0.28), Material.BUMPER)
    for side in (-1, 1):
        add((side * inner, side * 0.96), (low + slant, high, low, high), Material.TAIL_LAMP)
        cut = low + 0.35 * (high - low)
        add(
            (side * (inner + 0.04), side * 0.94),
            (cut, cut + 0.08, cut, cut + 0.08),
            Material.BLINKER,
            Layer.DETAIL,
        )
        if body.style != "lorry":
            x = -body.length / 2 + 0.06
            zs = [body.sill + span * h for h in (low, min(high, 0.97))]
            flank = [
                body.on_side(x, zs[0], side),
                body.on_side(x, zs[1], side),
                body.on_side(x + 0.25, zs[1], side),
            ]
            builder.add(flank, Material.TAIL_LAMP, Layer.FITTING, facing=(-0.3, side, 0))
    if rng.random() < 0.5 and body.style != "lorry":
        z = rng.uniform(0.66, 0.8)
        add((-0.4, 0.4), (z, z + 0.05, z, z + 0.05), Material.CHROME, Layer.DETAIL)
    if body.style != "lorry":
        add((-0.9, 0.9), (0.34, 0.355, 0.34, 0.355), Material.SEAM, Layer.DETAIL)
    return _add_plate(builder, body, rear=True, z=body.sill + span * rng.choice([0.2, 0.52, 0.58]))


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
        Layer.FITTING,
        facing=(0, 0, 1),
    )
