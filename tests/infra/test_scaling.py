"""The scaling plan: its page says what the arithmetic says, and the arithmetic adds up."""

from pathlib import Path

import pytest

from infra.scaling import SIZES, Prices, Rates, collision_chance, estimate, kinds, renewed

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_the_page_holds_the_tables_that_the_code_makes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert renewed(page) == page, "run: python -m infra.scaling docs/scaling.md"


def test_other_prices_and_rates_change_the_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert renewed(page, prices=Prices(cpu_core_hour=0.5)) != page
    assert renewed(page, rates=Rates(cpu_fp32=10)) != page


@pytest.mark.parametrize("crops", SIZES)
def test_nodes_times_hours_is_enough_for_every_crop(crops: int) -> None:
    rates, prices = Rates(), Prices()
    for kind in kinds(rates, prices):
        one = estimate(crops, kind, rates, prices, within=8.0)
        assert one.hours <= 8.0
        assert one.nodes * one.hours * 3600 * kind.crops_a_second == pytest.approx(crops)
        assert one.reads >= crops
        spent = one.compute_dollars + one.request_dollars
        assert one.dollars_per_million * crops / 1e6 == pytest.approx(spent)


def test_collisions_follow_the_birthday_bound() -> None:
    assert collision_chance(1) == 0
    assert collision_chance(1_000_000_000) == pytest.approx(0.0528, abs=0.0005)


def test_the_rates_are_those_of_the_code() -> None:
    from jobs.embed.job import PART_ROWS, ROW_BYTES, SHARD_ROWS

    rates = Rates()
    assert (rates.row_bytes, rates.rows_per_part, rates.rows_per_shard) == (
        ROW_BYTES,
        PART_ROWS[1],
        SHARD_ROWS,
    )
