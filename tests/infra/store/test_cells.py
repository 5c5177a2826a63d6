"""Columns of user tables are text exactly as written, whole numbers, numbers or times, or are refused."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import BadInput, BadSetting
from infra.store.cells import Kind, Place, convert
from infra.store.times import TimeRange, format_ms, parse_iso_times

PLACE = Place("t.csv", "column", 11, BadInput)
MS = 1_767_607_200_000  # 2026-01-05T10:00:00Z
RANGE = TimeRange.of("1990-01-01", "2027-01-01")


def values(array: Any, kind: Kind, times: TimeRange | None = None) -> list[Any]:
    return convert(array, kind, PLACE, times).to_pylist()  # type: ignore[no-any-return]


class TestText:
    @pytest.mark.parametrize(
        "array",
        [
            pa.array(["004", None, ""]),
            pa.array(["004", None, ""], pa.large_string()),
            pa.array(["004", None, ""], pa.string_view()),
            pa.array([b"004", None, b""]),
            pa.array([b"004", None, b""], pa.large_binary()),
            pa.array([b"004", None, b""], pa.binary_view()),
            pa.array(["004", None, ""]).dictionary_encode(),
            pa.RunEndEncodedArray.from_arrays([1, 2, 3], pa.array(["004", None, ""])),
        ],
        ids=lambda array: str(array.type)[:30],
    )
    def test_is_the_same_of_every_type_of_column(self, array: Any) -> None:
        converted = convert(array, "text", PLACE)
        assert converted.type == pa.string()
        assert converted.to_pylist() == ["004", None, None]

    @pytest.mark.parametrize(
        ("array", "expected"),
        [
            (pa.array([4, None]), ["4", None]),
            (pa.array([4.0, float("nan"), None]), ["4", None, None]),
            (pa.array([Decimal("4.00")]), ["4"]),
            (pa.array([True, False]), ["true", "false"]),
            (pa.array([b"04"], pa.binary(2)), ["04"]),
            (pa.nulls(2), [None, None]),
        ],
    )
    def test_of_numbers_is_as_they_are_written(self, array: Any, expected: list[Any]) -> None:
        assert values(array, "text") == expected

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (pa.array([b"a", b"\xff"]), r"t\.csv, data row 12, column column: b'\\xff' is not UTF-8"),
            (pa.array([4.5]), "data row 11, column column: 4.5 is not text"),
            (pa.array([["a"]]), "column column is list<.*>, not text"),
            (pa.array([date(2026, 1, 5)]), "column column is date32"),
            (pa.array([b"\xff" * 16], pa.uuid()), "is not UTF-8"),
        ],
    )
    def test_that_is_none_is_refused(self, array: Any, message: str) -> None:
        with pytest.raises(BadInput, match=message):
            values(array, "text")


class TestIds:
    @pytest.mark.parametrize("kind", ["id", "small_id"])
    @pytest.mark.parametrize(
        "array",
        [
            pa.array(["7", "-1", "", " 007 ", "7.0", "nan", "NULL"]),
            pa.array([7, -1, None, 7, 7, None, -1], pa.int8()),
            pa.array([7.0, -1.0, None, 7.0, 7.0, float("nan"), None]),
            pa.array([b"7", b"-1", b"", b"+7", b"7", None, b"None"]).dictionary_encode(),
            pa.array([7, None, None, 7, 7, None, None], pa.uint64()),
        ],
        ids=["text", "int8", "float", "dictionary", "uint64"],
    )
    def test_are_whole_numbers_and_minus_one_and_empty_are_unknown(self, array: Any, kind: Kind) -> None:
        assert values(array, kind) == [7, None, None, 7, 7, None, None]

    @pytest.mark.parametrize(
        ("array", "shown"),
        [
            (pa.array(["1", "v12"]), "'v12'"),
            (pa.array(["1", "1e5"]), "'1e5'"),
            (pa.array(["1", "1.5"]), "'1.5'"),
            (pa.array(["1", "-2"]), "-2"),
            (pa.array(["1", "9" * 19]), f"'{'9' * 19}'"),
            (pa.array(["1", "9" * 30]), "'9+'"),
            (pa.array([1, 2**64 - 1], pa.uint64()), str(2**64 - 1)),
            (pa.array([1.0, float("inf")]), "inf"),
            (pa.array([1.0, 1.5]), "1.5"),
            (pa.array([Decimal("1.0"), Decimal("1.5")]), r"Decimal\('1.5'\)"),
        ],
    )
    def test_that_are_none_are_refused_with_row_and_value(self, array: Any, shown: str) -> None:
        with pytest.raises(BadInput, match=rf"t\.csv, data row 12, column column: {shown} is not a whole"):
            values(array, "id")

    def test_of_models_are_below_two_to_the_31(self) -> None:
        assert values(pa.array([2**31 - 1]), "small_id") == [2**31 - 1]
        assert values(pa.array([2**63 - 1]), "id") == [2**63 - 1]
        with pytest.raises(BadInput, match="data row 11, column column: 2147483648 is not"):
            values(pa.array([2**31]), "small_id")

    def test_of_truth_values_or_times_are_refused(self) -> None:
        for array in (pa.array([True]), pa.array([datetime(2026, 1, 5, tzinfo=UTC)])):
            with pytest.raises(BadInput, match=r"column column is .*, not a whole number"):
                values(array, "id")


class TestNumbers:
    def test_are_read_from_text_and_from_every_number_type(self) -> None:
        assert values(pa.array(["48.5", "-.5", "1e2", " 7 ", "", "nan"]), "number") == [
            48.5,
            -0.5,
            100.0,
            7.0,
            None,
            None,
        ]
        for array in (pa.array([2, None]), pa.array([2.0, float("nan")]), pa.array([Decimal("2.0"), None])):
            assert values(array, "number") == [2.0, None]
        assert values(pa.array([1.5], pa.float16()), "number") == [1.5]

    @pytest.mark.parametrize("text", ["48,5", "north", "0x10", "inf", "1e999", "1 2"])
    def test_that_are_none_or_not_finite_are_refused(self, text: str) -> None:
        with pytest.raises(BadInput, match=r"data row 12, column column: .* is not a number"):
            values(pa.array(["1", text]), "number")


class TestTimes:
    @pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
    @pytest.mark.parametrize("zone", [None, "UTC", "+05:30", "Europe/Berlin"])
    def test_are_read_from_timestamps_of_any_unit_and_zone(self, unit: str, zone: str | None) -> None:
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
        array = pa.array([MS // 1000 * per_second, None], pa.int64()).cast(pa.timestamp(unit, zone))
        assert values(array, "time", RANGE) == [MS, None]
        assert values(array.dictionary_encode(), "time", RANGE) == [MS, None]

    def test_of_a_finer_unit_are_rounded_down(self) -> None:
        array = pa.array([1_999_999, -1, -1_000_000], pa.timestamp("ns"))
        assert values(array, "time") == [1, -1, -1]

    @pytest.mark.parametrize(
        "text",
        [
            "2026-01-05T10:00:00Z",
            "2026-01-05T10:00:00z",
            "2026-01-05T10:00:00",
            "2026-01-05 10:00:00 UTC",
            "2026-01-05 10:00",
            " 2026-01-05T10:00:00.000Z ",
            "2026-01-05T10:00:00.000999999Z",
            "2026-01-05T10:00:00,0Z",
            "2026-01-05T12:00:00+02:00",
            "2026-01-05T12:00:00+0200",
            "2026-01-05 12:00:00+02",
            "2026-01-05T04:30:00-05:30",
            "2026-01-06T00:00:00+14:00",
            "20260105T100000Z",
            "20260105T1000",
            "1767607200000",
            "1767607200000.0",
        ],
    )
    def test_are_read_from_text(self, text: str) -> None:
        assert values(pa.array([text, "", "-1", "NaT"]), "time", RANGE) == [MS, None, None, None]

    def test_of_whole_numbers_are_ms(self) -> None:
        assert values(pa.array([MS, -1, None]), "time", RANGE) == [MS, None, None]
        assert values(pa.array([float(MS), -1.0, float("nan")]), "time", RANGE) == [MS, None, None]

    @pytest.mark.parametrize(
        "text",
        [
            "2026-01-05",
            "20260105T",
            "2026-02-30T10:00:00",
            "2026-01-05T24:00:00",
            "2026-01-05T10:60",
            "2026-13-05T10:00",
            "2026-01-05T10:00:00+16:00",
            "2026-01-05T10:00:00 CET",
            "05.01.2026 10:00",
            "01/05/2026 10:00",
            "10:00:00",
            "yesterday",
            "1.7676072e12",
        ],
    )
    def test_that_are_none_are_refused_with_row_and_value(self, text: str) -> None:
        with pytest.raises(BadInput, match=rf"data row 12, column column: '{text[:8]}.*' is not a time"):
            values(pa.array(["", text]), "time")

    @pytest.mark.parametrize(
        ("array", "shown"),
        [
            (pa.array([date(2026, 1, 5)]), "date32"),
            (pa.array([1], pa.date64()), "date64"),
            (pa.array([1], pa.time32("s")), "time32"),
            (pa.array([timedelta(1)]), "duration"),
            (pa.array([True]), "bool"),
        ],
    )
    def test_of_types_without_day_and_time_are_refused(self, array: Any, shown: str) -> None:
        with pytest.raises(BadInput, match=f"column column is {shown}.*, not a time"):
            values(array, "time")

    @pytest.mark.parametrize(
        ("array", "reason"),
        [
            (pa.array([MS, MS // 1000]), "1767607200 .1970-01-21 11:00:07. .*plausible in seconds"),
            (pa.array([MS, MS * 1000]), "plausible in microseconds"),
            (pa.array([MS, MS * 1_000_000]), "plausible in nanoseconds"),
            (pa.array(["", "1767607200"]), "plausible in seconds"),
            (pa.array(["", "20260105"]), "no plausible time: plausible are 1990-01-01"),
            (pa.array(["", "1970-01-01T00:00:00Z"]), "no plausible time"),
            (pa.array(["", "2062-02-20T10:00:00Z"]), "no plausible time"),
            (pa.array([0, 2**62], pa.timestamp("s")).take(pa.array([1, 1])).slice(0, 1), "ms since 1970"),
            (pa.array([2**63 - 1], pa.timestamp("us")), "ms since 1970"),
            (pa.array([0]), "no plausible time"),
        ],
    )
    def test_outside_of_the_plausible_range_are_refused(self, array: Any, reason: str) -> None:
        row = 10 + len(array)
        with pytest.raises(BadInput, match=rf"t\.csv, data row {row}, column column: .*{reason}") as caught:
            values(array, "time", RANGE)
        assert "CLVR_EARLIEST_TIME" in caught.value.remedy


@given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)), st.integers(-899, 899))
def test_any_moment_is_read_back_from_iso_text(moment: datetime, offset: int) -> None:
    sign, minutes = "-" if offset < 0 else "+", abs(offset)
    text = f"{moment.isoformat(timespec='milliseconds')}{sign}{minutes // 60:02d}:{minutes % 60:02d}"
    expected = (moment.replace(tzinfo=UTC) - timedelta(minutes=offset)).timestamp() * 1000
    assert abs(parse_iso_times(pa.array([text]))[0].as_py() - expected) < 1.5


def test_the_range_is_1990_to_tomorrow_unless_the_environment_says_otherwise() -> None:
    now = round(datetime.now(UTC).timestamp() * 1000)
    default = TimeRange.from_env({})
    assert default.holds(now) and default.holds(now + 23 * 3_600_000)
    assert not default.holds(now + 25 * 3_600_000) and not default.holds(631_151_999_999)
    wide = TimeRange.from_env({"CLVR_EARLIEST_TIME": "1971-01-01", "CLVR_LATEST_TIME": "2100-01-01T00:00Z"})
    assert wide.holds(1_767_607_200) is False and wide.holds(40_000_000_000) and wide.holds(MS * 2)


@pytest.mark.parametrize(
    "environment",
    [{"CLVR_EARLIEST_TIME": "long ago"}, {"CLVR_LATEST_TIME": "1980-01-01"}],
)
def test_a_range_that_is_none_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(BadSetting) as caught:
        TimeRange.from_env(environment)
    assert caught.value.remedy


@pytest.mark.parametrize("ms", [-(2**63), -1, 0, MS, 2**53, 2**63 - 1])
def test_every_time_can_be_shown(ms: int) -> None:
    assert format_ms(ms)
