"""The capacity plan: its page holds the computed tables, and the arithmetic is consistent."""

from pathlib import Path

import pytest

from infra.capacity import SIZES, Prices, Rates, collision_chance, estimate, node_types, with_updated_tables

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_the_tables_of_the_page_are_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_updated_tables(page) == page, "run: python -m infra.capacity docs/scaling.md"


def test_other_prices_and_rates_change_the_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_updated_tables(page, prices=Prices(cpu_core_hour=0.5)) != page
    assert with_updated_tables(page, rates=Rates(cpu_fp32=10)) != page


@pytest.mark.parametrize("crops", SIZES)
def test_nodes_times_hours_suffice_for_every_crop(crops: int) -> None:
    rates, prices = Rates(), Prices()
    for node_type in node_types(rates, prices):
        result = estimate(crops, node_type, rates, prices, within=8.0)
        assert result.hours <= 8.0
        assert result.nodes * result.hours * 3600 * node_type.crops_per_second == pytest.approx(crops)
        assert result.reads >= crops
        spent = result.compute_dollars + result.request_dollars
        assert result.dollars_per_million * crops / 1e6 == pytest.approx(spent)


def test_collisions_follow_the_birthday_bound() -> None:
    assert collision_chance(1) == 0
    assert collision_chance(1_000_000_000) == pytest.approx(0.0528, abs=0.0005)


def test_the_rates_equal_the_constants_of_the_code() -> None:
    from index.archive import partitions
    from infra import capacity
    from jobs.embed.sizes import PART_ROWS, ROW_BYTES, SHARD_ROWS

    rates = Rates()
    assert (rates.row_bytes, rates.rows_per_part, rates.rows_per_shard) == (
        ROW_BYTES,
        PART_ROWS[1],
        SHARD_ROWS,
    )
    assert capacity.MAX_PARTITION_ROWS == partitions.MAX_PARTITION_ROWS
