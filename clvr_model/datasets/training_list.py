"""The training pictures of a dataset, gathered line by line, each line with its place for errors."""

import numpy as np

from clvr_model.datasets.labelled import Labelled
from infra.errors import BadLabels


class TrainingList:
    """Pictures with model, vehicle and camera; a picture may be listed once."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}
        self._models: list[int] = []
        self._vehicles: list[int] = []
        self._cameras: list[str] = []

    def add(self, where: str, uri: str, model: int, vehicle: int = -1, camera: str = "") -> None:
        """Add one picture; `where` names its line. Raises BadLabels if it was there before."""
        if uri in self._seen:
            raise BadLabels(f"{where}: {uri} was listed before, in {self._seen[uri]}")
        self._seen[uri] = where
        self._models.append(model)
        self._vehicles.append(vehicle)
        self._cameras.append(camera)

    def labelled(self, model_names: dict[int, str], where: str) -> Labelled:
        """All of them, in the order of their lines. Raises BadLabels if there are none."""
        if not self._seen:
            raise BadLabels(f"{where} lists no picture")
        known = any(vehicle >= 0 for vehicle in self._vehicles)
        return Labelled(
            list(self._seen),
            np.array(self._models, dtype=np.int64),
            np.array(self._vehicles, dtype=np.int64) if known else None,
            self._cameras if any(self._cameras) else None,
            model_names,
        )
