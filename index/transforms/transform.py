"""A feature transform: L2 normalisation, minus the mean of the camera, whitened, L2-normalised again.

It is linear but for the normalisations, so one matrix and one offset a group of crops hold all of it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.parquet import lists_of
from index.runs.shards import vectors_of
from index.transforms.moments import ANY_HOUR, Group, groups_of
from infra.errors import BadInput, TransformMismatch

COLUMNS = ("camera_id", "captured_at")
"""The columns of a shard that decide which statistics a crop gets."""

UNIT_TOLERANCE = 1e-5
"""How far the length of a feature that a network normalizes may be from 1."""

_ROW_CHUNK = 2048


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTransform:
    """Maps features (n, d) to (n, k).

    matrix: (k, d), None for the identity. offset: (k,), subtracted after the product, for a crop whose camera
    is unknown or has no statistics. offsets: of the crops of a camera (with ANY_HOUR), or of a camera at an
    hour. `transform_id` and `fingerprint` are those of a stored transform, "" for one that is not stored.
    """

    kind: str
    matrix: NDArray[np.float64] | None
    offset: NDArray[np.float64]
    offsets: Mapping[Group, NDArray[np.float64]] = field(default_factory=dict)
    by_hour: bool = False
    transform_id: str = ""
    fingerprint: str = ""

    @property
    def dimension(self) -> int:
        """The length of a transformed feature."""
        return len(self.offset)

    @property
    def input_dimension(self) -> int:
        """The length of the features that it takes."""
        return len(self.offset) if self.matrix is None else self.matrix.shape[1]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a shard, besides the embedding, that it needs."""
        return COLUMNS if self.offsets else ()

    def __call__(
        self,
        features: NDArray[np.float32],
        cameras: Sequence[str] | None = None,
        captured_at: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """Return the transformed features (n, k) of features (n, d).

        cameras (n,): "" or None where unknown. captured_at (n,): ms since 1970, UTC, -1 or None where
        unknown. Raises BadInput for features of another length.
        """
        if features.ndim != 2 or features.shape[1] != self.input_dimension:
            raise BadInput(
                f"features have the shape {features.shape}, the transform {self.transform_id or self.kind} "
                f"takes (n, {self.input_dimension})"
            )
        out = np.empty((len(features), self.dimension), np.float32)
        groups = groups_of(cameras, captured_at, by_hour=self.by_hour) if cameras and self.offsets else None
        for start in range(0, len(features), _ROW_CHUNK):
            rows = slice(start, start + _ROW_CHUNK)
            values = normalized(np.asarray(features[rows], np.float64))
            if self.matrix is not None:
                values = values @ self.matrix.T
            values -= self.offset if groups is None else self._offsets_of(groups[rows])
            out[rows] = normalized(values)
        return out

    def on_batches(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield batches of shard rows with transformed embeddings."""
        for batch in batches:
            column = lists_of(self.vectors_of(batch))
            yield batch.set_column(batch.schema.get_field_index("embedding"), "embedding", column)

    def vectors_of(self, rows: pa.RecordBatch | pa.Table) -> NDArray[np.float32]:
        """Return the transformed embeddings (n, k) of rows that have the columns `columns` too."""
        if not self.columns:
            return self(vectors_of(rows))
        camera, time = (rows.column(name) for name in COLUMNS)
        return self(vectors_of(rows), camera.to_pylist(), np.asarray(time.to_numpy(), np.int64))

    def _offsets_of(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        known = {group: offset_of(self.offsets, group, self.offset) for group in set(groups)}
        return np.stack([known[group] for group in groups])


def offset_of(
    offsets: Mapping[Group, NDArray[np.float64]], group: Group, default: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what is subtracted from a group: that of its hour, else of its camera, else the default."""
    if group in offsets:
        return offsets[group]
    return offsets.get((group[0], ANY_HOUR), default)


def normalized(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows (n, d) at unit length; a row of zeros stays as it is."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def vectors_by(transform: FeatureTransform | None, rows: pa.RecordBatch | pa.Table) -> NDArray[np.float32]:
    """Return the embeddings of shard rows, transformed if there is a transform."""
    return vectors_of(rows) if transform is None else transform.vectors_of(rows)


def require_same_transform(expected: str, actual: str, what: str) -> None:
    """Raise TransformMismatch unless two ids of transforms are equal; `what` has the second one."""
    if expected != actual:
        raise TransformMismatch(
            f"{what} has features of transform {actual or 'none'}, what is searched of {expected or 'none'}",
            remedy="Embed the probe again with the generation that is searched.",
        )


def require_transform(expected: str, transform: FeatureTransform | None, what: str) -> None:
    """Raise TransformMismatch unless a transform is the one of this id; "" stands for none."""
    actual = transform.transform_id if transform else ""
    if expected != actual:
        raise TransformMismatch(
            f"{what} holds vectors of transform {expected or 'none'}, not of {actual or 'none'}",
            remedy="Use the generation's own transform.",
        )
