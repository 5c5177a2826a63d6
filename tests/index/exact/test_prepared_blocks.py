"""A block is placed in the frame once, and takes the form that its products ask for."""

import numpy as np
import pytest

from index.exact.products import Kernel, Normalization
from index.exact.tiles import PreparedBlock


def test_a_block_is_placed_once_for_the_one_form_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.random.default_rng(0).random((20, 8), dtype=np.float32)
    frame = Normalization.around(features)
    place, placed = Normalization.place, []

    def noted(self: Normalization, rows: object) -> object:
        placed.append(rows)
        return place(self, features)

    monkeypatch.setattr(Normalization, "place", noted)
    ready = PreparedBlock(np.arange(20), features, frame, Kernel())
    assert ready.rounded is ready.rounded
    assert len(placed) == 1
    assert ready.probes.tolist() == place(frame, features).values.tolist()  # the other form: placed again
    assert len(placed) == 2
    assert ready.halves.tolist() == pytest.approx((ready.squares / 2).tolist(), rel=1e-6)
