"""A prepared block makes the operands of each product once, whatever their order."""

import numpy as np
import pytest

from index.exact.products import Kernel, Normalization, NormalizedRows
from index.exact.tiles import PreparedBlock


class CountingKernel(Kernel):
    """Records the rows that it loads as probes."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[NormalizedRows] = []

    def probes(self, normalized: NormalizedRows) -> object:
        self.loaded.append(normalized)
        return super().probes(normalized)


@pytest.mark.parametrize("bf16_first", [False, True])
def test_each_operand_is_made_once_from_the_normalized_rows(bf16_first: bool) -> None:
    features = np.random.default_rng(0).random((20, 8), dtype=np.float32)
    normalization, kernel = Normalization.fit(features), CountingKernel()
    block = PreparedBlock(np.arange(20), features, normalization, kernel)
    if bf16_first:
        assert block.bf16 is block.bf16
    assert block.probes is block.probes
    assert block.bf16 is block.bf16
    assert len(kernel.loaded) == 1
    normalized = normalization.apply(features)
    assert block.probes.tolist() == normalized.values.tolist()
    assert block.bf16.values.tolist() == normalized.values.bfloat16().tolist()
    assert block.half_sq_norms.tolist() == pytest.approx((normalized.sq_norms / 2).tolist(), rel=1e-6)
