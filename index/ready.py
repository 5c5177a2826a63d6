"""A block of rows as the products take it."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.bf16 import Rounded
from index.distances import Frame, Kernel, Placed


class Ready:
    """Rows of the pool in the frame; the form for either product is made when it is first asked for."""

    def __init__(
        self, rows: NDArray[np.int64], features: NDArray[np.float32], frame: Frame, kernel: Kernel
    ) -> None:
        self.rows = rows  # (n,) in the pool
        self.features = features  # (n, d) as they were given
        self._placed: Placed | None = frame.place(features)  # until it has a form
        self.squares = self._placed.squares  # (n,)
        self.halves = (self.squares / 2).astype(np.float32)
        self._frame, self._kernel = frame, kernel
        self._forms: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def probes(self) -> Any:
        """The rows as the kernel takes probes."""
        return self._form("probes", self._kernel.probes)

    @property
    def gallery(self) -> Any:
        """The rows as the kernel takes the gallery."""
        return self._form("gallery", self._kernel.gallery)

    @property
    def rounded(self) -> Rounded:
        """The rows rounded to bfloat16."""
        form: Rounded = self._form("rounded", Rounded.of)
        return form

    def _form(self, name: str, make: Callable[[Any], Any]) -> Any:
        with self._lock:
            if name not in self._forms:
                self._forms[name] = make(self._placed or self._frame.place(self.features))
                self._placed = None
            return self._forms[name]
