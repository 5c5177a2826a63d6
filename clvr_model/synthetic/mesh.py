"""A mesh of convex polygons with materials, packed in arrays for vectorized shading and projection."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]


class Material(IntEnum):
    """Material of a polygon, which a vehicle's palette gives a color."""

    PAINT = 0
    TRIM = 1
    GLASS = 2
    SCREEN = 3
    TYRE = 4
    RIM = 5
    CHROME = 6
    HEADLAMP = 7
    TAIL_LAMP = 8
    BLINKER = 9
    PLATE = 10
    UNDERSIDE = 11
    CARGO = 12
    SEAM = 13
    BUMPER = 14
    INTERIOR = 15
    ROOF = 16


_MIN_AREA_2X: Final = 1e-4  # square metres, twice the area of the smallest drawn polygon

GLOSS: Final = np.zeros(64)
GLOSS[[Material.PAINT, Material.ROOF, Material.BUMPER]] = 0.55, 0.55, 0.4
GLOSS[[Material.GLASS, Material.SCREEN, Material.CHROME]] = 1.0, 0.8, 0.9
GLINT: Final = np.full(64, 0.7)  # reflection of the sun; lower on panes, whose facets reflect as a whole
GLINT[[Material.GLASS, Material.SCREEN]] = 0.15
GLOSS[[Material.HEADLAMP, Material.TAIL_LAMP, Material.RIM]] = 0.6, 0.5, 0.4


class Layer(IntEnum):
    """Drawing order; within a layer the farther polygon comes first."""

    UNDER = 0
    SHELL = 1
    FRAME = 2
    FITTING = 3
    DETAIL = 4
    MARK = 5
    TOP = 6
    BONNET = 7  # as MARK, but hidden by the cabin from behind
    BED = 8  # as MARK, but hidden by the cabin from ahead


@dataclass(slots=True)
class Builder:
    """Collects polygons, each visible from one side."""

    points: list[Points] = field(default_factory=list)
    normals: list[Points] = field(default_factory=list)
    materials: list[int] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)

    def add(
        self,
        corners: ArrayLike,
        material: int,
        layer: Layer = Layer.FITTING,
        *,
        facing: ArrayLike | None = None,
    ) -> None:
        """Add one convex polygon (k, 3) unless it is tiny; `facing` points to its visible side."""
        polygon = np.asarray(corners, dtype=np.float64)
        first, second = _diagonals(polygon)
        normal = np.array(
            [
                first[1] * second[2] - first[2] * second[1],
                first[2] * second[0] - first[0] * second[2],
                first[0] * second[1] - first[1] * second[0],
            ]
        )
        size = float(np.sqrt(normal @ normal))
        if size < _MIN_AREA_2X:
            return
        normal /= size
        if facing is not None and float(normal @ np.asarray(facing, dtype=np.float64)) < 0:
            normal = -normal
        self.points.append(polygon)
        self.normals.append(normal)
        self.materials.append(int(material))
        self.layers.append(int(layer))

    def box(self, low: ArrayLike, high: ArrayLike, material: int, layer: Layer = Layer.TOP) -> None:
        """Add the five visible sides of an axis-aligned box."""
        (x0, y0, z0), (x1, y1, z1) = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
        self.add([(x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)], material, layer, facing=(0, 0, 1))
        for x, sign in ((x0, -1), (x1, 1)):
            self.add(
                [(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)], material, layer, facing=(sign, 0, 0)
            )
        for y, sign in ((y0, -1), (y1, 1)):
            self.add(
                [(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)], material, layer, facing=(0, sign, 0)
            )

    def build(self) -> "Mesh":
        """Pack the added polygons."""
        lengths = np.array([len(polygon) for polygon in self.points], dtype=np.int64)
        ends = np.cumsum(lengths)
        points = np.concatenate(self.points)
        return Mesh(
            points=points,
            starts=ends - lengths,
            ends=ends,
            normals=np.stack(self.normals),
            centres=np.add.reduceat(points, ends - lengths) / lengths[:, None],
            materials=np.array(self.materials),
            layers=np.array(self.layers),
        )


def _diagonals(polygon: Points) -> tuple[list[float], list[float]]:
    if len(polygon) == 3:
        return (polygon[1] - polygon[0]).tolist(), (polygon[2] - polygon[0]).tolist()
    half = len(polygon) // 2
    return (polygon[half] - polygon[0]).tolist(), (polygon[-1] - polygon[half // 2]).tolist()


@dataclass(frozen=True, slots=True)
class Mesh:
    """`points` (p, 3) of `faces` polygons; polygon i owns points[starts[i]:ends[i]]."""

    points: Points
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    normals: Points
    centres: Points
    materials: NDArray[np.int64]
    layers: NDArray[np.int64]

    def merged_with(self, marks: "Mesh") -> "Mesh":
        """Return both meshes as one."""
        shift = len(self.points)
        return Mesh(
            points=np.concatenate([self.points, marks.points]),
            starts=np.concatenate([self.starts, marks.starts + shift]),
            ends=np.concatenate([self.ends, marks.ends + shift]),
            normals=np.concatenate([self.normals, marks.normals]),
            centres=np.concatenate([self.centres, marks.centres]),
            materials=np.concatenate([self.materials, marks.materials]),
            layers=np.concatenate([self.layers, marks.layers]),
        )
