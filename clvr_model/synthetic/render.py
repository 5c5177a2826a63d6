"""Render a vehicle on a road, in the light of an hour, cropped to its bounding box."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from clvr_model.synthetic.body import Points
from clvr_model.synthetic.camera import Camera, Light, Projection, aim
from clvr_model.synthetic.mesh import GLINT, GLOSS, Layer, Material, Mesh
from clvr_model.synthetic.vehicle import Vehicle

ImageArray = NDArray[np.uint8]

_OVERSAMPLE: Final = 2
_BACKDROP: Final = 4
_TILE: Final = 1536


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another vehicle in the image, `offset` (3,) metres from the vehicle of the crop."""

    vehicle: Vehicle
    offset: Points


def draw(
    vehicle: Vehicle,
    camera: Camera,
    light: Light,
    rng: np.random.Generator,
    *,
    sides: tuple[int, int],
    neighbour: Neighbour | None = None,
) -> ImageArray:
    """Draw one crop: RGB uint8 (height, width, 3) whose long side is within `sides` pixels."""
    view, size = _frame(vehicle, camera, rng, sides)
    canvas = _backdrop(vehicle, camera, light, view, size, rng)
    cast = [(vehicle.mesh, vehicle.palette, np.zeros(3))]
    if neighbour is not None:
        behind = float(neighbour.offset @ view.axes[2]) > 0
        cast.insert(0 if behind else 1, (neighbour.vehicle.mesh, neighbour.vehicle.palette, neighbour.offset))
    for mesh, palette, offset in cast:
        _paint(canvas, mesh, palette, offset, view, light)
    image = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
    if light.lamps:
        _glow(image, vehicle, view, rng)
    if rng.random() < 0.08:
        _pole(image, rng)
    return _expose(image, camera, light, rng)


def _frame(
    vehicle: Vehicle, camera: Camera, rng: np.random.Generator, sides: tuple[int, int]
) -> tuple[Projection, tuple[int, int]]:
    """Return the projection into the oversampled canvas, and the image's (width, height)."""
    view = aim(
        camera.azimuth + float(rng.normal(0, 5)),
        float(np.clip(camera.elevation + rng.normal(0, 2), 4, 40)),
        max(camera.distance * float(rng.uniform(0.75, 1.3)), vehicle.model.body.length * 0.5 + 3),
        vehicle.model.body.height * 0.5,
    )
    seen = view.project(vehicle.mesh.points)
    low, high = seen.min(axis=0), seen.max(axis=0)
    room = rng.uniform(0.01, 0.07, (2, 2)) * (high - low)
    if rng.random() < 0.07:
        room[rng.integers(2), rng.integers(2)] = -0.08 * (high - low).max()
    low, high = low - room[0], high + room[1]
    long_side = float(np.clip(camera.long_side * rng.uniform(0.8, 1.2), *sides))
    scale = long_side / float((high - low).max())
    width, height = (max(16, round(float(extent))) for extent in (high - low) * scale)
    scale *= _OVERSAMPLE
    return replace(view, scale=scale, shift=(-float(low[0]) * scale, -float(low[1]) * scale)), (width, height)


def _shade(mesh: Mesh, palette: Points, light: Light, towards_eye: Points) -> Points:
    """Shade faces by sky, ground and sun, with reflections of paint and glass: RGB 0..1 (faces, 3)."""
    normals = mesh.normals
    colours, gloss = palette[mesh.materials], GLOSS[mesh.materials]
    upward = 0.5 + 0.5 * normals[:, 2]
    ambient = light.ground + upward[:, None] * (light.sky - light.ground)
    direct = np.maximum(normals @ light.sun_towards, 0.0)
    facing = np.einsum("ij,ij->i", normals, towards_eye)
    mirrored = 2.0 * facing[:, None] * normals - towards_eye
    fresnel = gloss * (0.05 + 0.55 * (1.0 - np.clip(facing, 0, 1)) ** 3)
    glance = np.clip(mirrored @ light.sun_towards, 0, 1) ** 24 * gloss * GLINT[mesh.materials]
    sky = light.sky * np.clip(0.5 + mirrored[:, 2:] * 0.8, 0.25, 1.1)
    lit = colours * (ambient + direct[:, None] * light.sun)
    lit += fresnel[:, None] * (sky - lit) + glance[:, None] * light.sun
    if light.lamps:
        lit[mesh.materials == Material.HEADLAMP] = (1.0, 0.97, 0.86)
        lit[mesh.materials == Material.TAIL_LAMP] = (0.85, 0.08, 0.06)
    return np.asarray(lit, dtype=np.float64)


def _paint(
    canvas: ImageArray, mesh: Mesh, palette: Points, offset: Points, view: Projection, light: Light
) -> None:
    points = mesh.points + offset
    towards = view.eye - (mesh.centres + offset)
    depth = -(towards @ view.axes[2])
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    colours = np.clip(_shade(mesh, palette, light, towards) * 255.0, 0, 255).tolist()
    flat = np.rint(np.clip(view.project(points) * 16, -(2**20), 2**20)).astype(np.int32)
    # Parts on the far side, such as a mirror, are hidden by the body and drawn before it.
    far = (mesh.centres[:, 1] * (view.eye[1] - offset[1]) < 0) & (mesh.layers == Layer.TOP)
    far &= mesh.centres[:, 2] < float(mesh.points[:, 2].max()) * 0.75
    layers = np.where(far, Layer.UNDER, mesh.layers)
    ahead = float((view.eye[0] - offset[0]) / np.linalg.norm(view.eye - offset))
    layers[layers == Layer.BONNET] = Layer.MARK if ahead > -0.3 else Layer.UNDER
    layers[layers == Layer.BED] = Layer.MARK if ahead < 0.55 else Layer.UNDER
    visible = np.flatnonzero(np.einsum("ij,ij->i", mesh.normals, towards) > 0.0)
    order = visible[np.lexsort((-depth[visible], layers[visible]))]
    starts, ends = mesh.starts.tolist(), mesh.ends.tolist()
    for i in order.tolist():
        cv2.fillConvexPoly(canvas, flat[starts[i] : ends[i]], colours[i], cv2.LINE_8, 4)


def _backdrop(
    vehicle: Vehicle,
    camera: Camera,
    light: Light,
    view: Projection,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> ImageArray:
    """Draw road, verge, background and the vehicle's shadow at low resolution, which blurs them."""
    width, height = (max(8, -(-side * _OVERSAMPLE // _BACKDROP)) for side in size)
    small = replace(
        view, scale=view.scale / _BACKDROP, shift=(view.shift[0] / _BACKDROP, view.shift[1] / _BACKDROP)
    )
    above = light.ground + 0.9 * (light.sky - light.ground) + 0.8 * light.sun * light.sun_towards[2]
    road = camera.asphalt * above * 255 * rng.uniform(0.9, 1.1)
    ground: ImageArray = np.empty((height, width, 3), np.uint8)
    ground[:] = np.clip(road, 0, 255).astype(np.uint8)

    quads, colours = _markings(camera, rng)
    flat = np.rint(np.clip(small.project(quads.reshape(-1, 3)) * 16, -(2**20), 2**20)).astype(np.int32)
    lit = np.clip(colours * above * 255, 0, 255).tolist()
    for corners, colour in zip(flat.reshape(-1, 4, 2), lit, strict=True):
        cv2.fillConvexPoly(ground, corners, colour, cv2.LINE_AA, 4)
    _background(ground, small, light, rng)
    shade = np.zeros((height, width), np.uint8)
    for throw in (0.0, 1.0):
        if throw and light.sun.max() < 0.2:
            continue
        _shadow(shade, vehicle, small, light, throw)
    shade = cv2.GaussianBlur(shade, (0, 0), 1.5)
    dark = 1.0 - shade[..., None].astype(np.float32) * (0.72 / 255)
    ground = (ground * dark).astype(np.uint8)
    canvas = cv2.resize(
        ground, (size[0] * _OVERSAMPLE, size[1] * _OVERSAMPLE), interpolation=cv2.INTER_LINEAR
    )
    return _grain(canvas, _tile(0), 0.5 * float(np.clip(above.mean(), 0.2, 1.0)), rng)


def _markings(camera: Camera, rng: np.random.Generator) -> tuple[Points, Points]:
    """Return the ground markings as quadrilaterals (n, 4, 3) and their RGB (n, 3), lowest first."""
    far = 40.0
    side = 1 if rng.random() < 0.5 else -1
    kerb = side * float(rng.uniform(2.4, 6.5))
    lane, start = float(rng.uniform(1.5, 1.9)), float(rng.uniform(-3, 3))
    white, yellow = np.array([0.8, 0.8, 0.77]), np.array([0.75, 0.6, 0.15])
    strips = [
        (-far, far, kerb, kerb * 6, camera.verge),
        (-far, far, kerb, kerb + side * 0.25, np.full(3, 0.58)),
    ]
    if rng.random() < 0.75:
        strips += [(start + k * 6, start + k * 6 + 3, lane, lane + 0.15, white) for k in range(-2, 3)]
        strips.append((-far, far, -lane - 0.15, -lane, white if rng.random() < 0.8 else yellow))
    quads = [[(x0, y0, 0.0), (x1, y0, 0.0), (x1, y1, 0.0), (x0, y1, 0.0)] for x0, x1, y0, y1, _ in strips]
    return np.array(quads), np.stack([rgb for *_, rgb in strips])


def _background(ground: ImageArray, small: Projection, light: Light, rng: np.random.Generator) -> None:
    """Draw walls and trees as blocks of color before the sky."""
    forward = small.axes[2]
    level = np.array([forward[0], forward[1], 0.0])
    horizon = float((small.project((small.eye + 1000 * level)[None])[0])[1])
    row = round(horizon)
    if row <= 0:
        return
    height, width = ground.shape[:2]
    row = min(row, height)
    ground[:row] = np.clip(light.sky * 300, 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(2, 6))):
        x, wide, tall = (
            rng.integers(-width // 4, width),
            rng.integers(4, width),
            rng.uniform(0.2, 1.2) * (row + 4),
        )
        green = rng.random() < 0.5
        rgb = rng.uniform(0.1, 0.25, 3) * (0.8, 1.2, 0.6) if green else np.full(3, rng.uniform(0.2, 0.6))
        ground[max(0, row - int(tall)) : row, max(0, x) : max(0, x + wide)] = np.clip(
            rgb * light.sky * 300, 0, 255
        )


def _shadow(shade: ImageArray, vehicle: Vehicle, small: Projection, light: Light, throw: float) -> None:
    body = vehicle.model.body
    x, y = body.length * 0.5, body.width * 0.5
    base = np.array([(x, y, 0), (x, -y, 0), (-x, -y, 0), (-x, y, 0)], dtype=np.float64)
    if throw:
        slope = light.sun_towards[:2] / light.sun_towards[2]
        front, back = body.roof_front[0], body.roof_rear[0]
        roof = np.array([(front, y, 0), (front, -y, 0), (back, -y, 0), (back, y, 0)], dtype=np.float64)
        roof[:, 0] -= slope[0] * body.height
        roof[:, 1] = roof[:, 1] * 0.8 - slope[1] * body.height
        base = np.concatenate([base, roof])
    flat = np.rint(np.clip(small.project(base) * 16, -(2**20), 2**20)).astype(np.int32)
    cv2.fillConvexPoly(shade, cv2.convexHull(flat), 150 if throw else 255, cv2.LINE_AA, 4)


def _glow(image: ImageArray, vehicle: Vehicle, view: Projection, rng: np.random.Generator) -> None:
    """Draw the glow of the lamps at night."""
    mesh = vehicle.mesh
    halo = np.zeros_like(image)
    for material, rgb, strength in (
        (Material.HEADLAMP, (255, 245, 215), rng.uniform(0.5, 1.0)),
        (Material.TAIL_LAMP, (230, 25, 20), 0.6),
    ):
        faces = np.flatnonzero(mesh.materials == material)
        towards = view.eye - mesh.centres[faces]
        seen = faces[np.einsum("ij,ij->i", towards, mesh.normals[faces]) > 0]
        for x, y in view.project(mesh.centres[seen]) / _OVERSAMPLE:
            radius = max(2, int(0.035 * image.shape[1] * strength * 1.5))
            cv2.circle(halo, (int(x), int(y)), radius, [c * strength for c in rgb], -1)
    cv2.add(image, cv2.blur(cv2.blur(halo, (17, 17)), (17, 17)), dst=image)


def _pole(image: ImageArray, rng: np.random.Generator) -> None:
    """Draw a pole between the camera and the vehicle."""
    height, width = image.shape[:2]
    x, lean = rng.uniform(0.1, 0.9) * width, rng.uniform(-0.1, 0.1) * width
    wide = rng.uniform(0.02, 0.07) * width
    corners = np.array([(x, 0), (x + wide, 0), (x + wide + lean, height), (x + lean, height)])
    grey = float(rng.uniform(20, 120))
    cv2.fillConvexPoly(image, np.rint(corners * 16).astype(np.int32), (grey, grey, grey), cv2.LINE_AA, 4)


def _expose(image: ImageArray, camera: Camera, light: Light, rng: np.random.Generator) -> ImageArray:
    sigma = camera.blur * float(rng.uniform(0.7, 1.4))
    if sigma > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    if rng.random() < 0.1:
        length = int(rng.integers(2, 6))
        image = cv2.blur(image, (1, length) if rng.random() < 0.5 else (length, 1))
    # Cameras expose for the middle greys, though not fully, and less at night.
    mean = max(float(np.mean(cv2.mean(image)[:3])), 1.0)
    gain = float((112.0 / mean) ** (0.25 if light.lamps else 0.6) * rng.uniform(0.85, 1.15))
    gamma = float(rng.uniform(0.75, 1.0))
    ramp = np.linspace(0, 1, 256)[:, None] ** gamma * gain * camera.cast
    image = cv2.LUT(image, np.clip(ramp * 255, 0, 255).astype(np.uint8)[None])
    return _grain(image, _tile(1), camera.noise * (2.0 if light.lamps else 1.0) / 32.0, rng)


def _grain(image: ImageArray, tile: ImageArray, strength: float, rng: np.random.Generator) -> ImageArray:
    height, width = image.shape[:2]
    x, y = int(rng.integers(_TILE - width)), int(rng.integers(_TILE - height))
    piece = tile[y : y + height, x : x + width]
    return np.asarray(cv2.addWeighted(image, 1.0, piece, strength, -128.0 * strength), dtype=np.uint8)


@cache
def _tile(kind: int) -> ImageArray:
    """Make a tile of noise around 128: 0 is road texture, 1 sensor noise of standard deviation 32."""
    rng = np.random.default_rng(kind)
    if kind == 1:
        noise = rng.normal(128, 32, (_TILE, _TILE, 3))
        return np.clip(0.6 * noise + 0.4 * noise[..., :1], 0, 255).astype(np.uint8)
    fine = rng.normal(0, 10, (_TILE, _TILE)).astype(np.float32)
    coarse = cv2.resize(rng.normal(0, 12, (_TILE // 24, _TILE // 24)).astype(np.float32), (_TILE, _TILE))
    return np.repeat(np.clip(128 + fine + coarse, 0, 255)[..., None], 3, axis=2).astype(np.uint8)
