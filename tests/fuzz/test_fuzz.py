"""A short slice of `make fuzz`: the first items of each kind, which are the same on every machine."""

import pytest
from fuzz.run import run_items


@pytest.mark.parametrize(
    ("name", "items"),
    [("pictures", 4000), ("tables", 1500), ("keys", 1500), ("documents", 1500), ("containers", 300)],
)
def test_mutated_input_gives_a_result_or_an_error_of_ours(name: str, items: int) -> None:
    outcome = run_items(name, 0, items, seconds=15)
    assert outcome["faults"] == []
    assert sum(outcome["results"].values()) == outcome["items"] > 0
