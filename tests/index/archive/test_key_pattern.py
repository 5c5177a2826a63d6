"""A key pattern reads the keys that match it; all fields of other keys are unknown."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.archive.key_pattern import KeyPattern
from index.schema import MAX_NAME_BYTES, UNKNOWN_TIME
from infra.errors import BadSetting
from infra.store import TimeRange

ARCHIVE = KeyPattern("dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg")
MIDNIGHT = 1_795_305_600_000  # 2026-11-22T00:00:00Z


def read(pattern: KeyPattern, key: str) -> tuple[str, int, str] | None:
    """Return camera_id, captured_at and track_id of one key; None if it does not match."""
    columns = {name: values[0].as_py() for name, values in pattern.extract(pa.array([key])).items()}
    fields = columns["camera_id"], columns["captured_at"], columns["track_id"]
    if not columns["matched"]:
        assert fields == ("", UNKNOWN_TIME, "")
        return None
    return fields


@pytest.mark.parametrize(
    ("written", "captured_at"),
    [
        ("1795305600123", MIDNIGHT + 123),
        ("1795305600", MIDNIGHT),
        ("20261122T000000", MIDNIGHT),
        ("20261122T000000123", MIDNIGHT + 123),
        ("20240229T120000", 1_709_208_000_000),
    ],
)
def test_a_time_has_four_forms(written: str, captured_at: int) -> None:
    assert read(ARCHIVE, f"dt=2026-11-22/cam=004/{written}_t7.jpg") == ("004", captured_at, "t7")


@pytest.mark.parametrize(
    "written", ["20260230T000000", "20261301T000000", "20261122T250000", "20261122T235960"]
)
def test_a_time_that_does_not_exist_does_not_match(written: str) -> None:
    assert read(ARCHIVE, f"dt=2026-11-22/cam=004/{written}_t7.jpg") is None


@pytest.mark.parametrize(
    "key",
    [
        "",
        "readme.txt",
        "dt=2026-11-22/cam=004/1795305600_t7.jpeg",
        "dt=22.11.2026/cam=004/1795305600_t7.jpg",
        "dt=2026-11-22/cam=/1795305600_t7.jpg",
        "dt=2026-11-22/cam=0/04/1795305600_t7.jpg",
        "dt=2026-11-22/cam=004/17953056_t7.jpg",
        "x/dt=2026-11-22/cam=004/1795305600_t7.jpg",
        "dt=2026-11-22/cam=004/1795305600_t7.jpg\n",
        f"dt=2026-11-22/cam={'c' * (MAX_NAME_BYTES + 1)}/1795305600_t7.jpg",
        f"dt=2026-11-22/cam={'é' * (MAX_NAME_BYTES // 2 + 1)}/1795305600_t7.jpg",
    ],
)
def test_a_key_of_another_form_does_not_match(key: str) -> None:
    assert read(ARCHIVE, key) is None


def test_fields_that_the_pattern_does_not_name_are_unknown() -> None:
    assert read(KeyPattern("{*}/{camera_id}.png"), "any thing/k 1.png") == ("k 1", UNKNOWN_TIME, "")
    assert read(KeyPattern("{*}.png"), "deep/er.png") is None


def test_a_column_of_keys_is_read_row_by_row() -> None:
    keys = pa.array(["dt=20261122/cam=a/1795305600_t.jpg", "x", "dt=20261122/cam=b/1795305600_u.jpg"])
    columns = ARCHIVE.extract(keys)
    assert columns["matched"].to_pylist() == [True, False, True]
    assert columns["camera_id"].to_pylist() == ["a", "", "b"]
    assert columns["captured_at"].to_pylist() == [MIDNIGHT, UNKNOWN_TIME, MIDNIGHT]
    assert columns["track_id"].to_pylist() == ["t", "", "u"]


def test_an_implausible_time_is_unknown_and_counted_but_camera_and_track_stay() -> None:
    pattern = KeyPattern("{camera_id}/{captured_at}_{track_id}.jpg", TimeRange.of("1990-01-01", "2030-01-01"))
    keys = ["004/0000000000001_7.jpg", "004/9999999999999_7.jpg", "004/20991231T000000_7.jpg"]
    fields = pattern.extract(pa.array([*keys, "004/1767607200000_7.jpg"]))
    assert fields["captured_at"].to_pylist() == [UNKNOWN_TIME] * 3 + [1_767_607_200_000]
    assert fields["matched"].to_pylist() == [False, False, False, True]
    assert set(fields["camera_id"].to_pylist()) == {"004"} and set(fields["track_id"].to_pylist()) == {"7"}


def test_no_keys_give_no_rows() -> None:
    assert len(ARCHIVE.extract(pa.array([], pa.string()))["matched"]) == 0


@pytest.mark.parametrize("text", ["{camera}", "{}", "{camera_id}-{camera_id}", "a{b", "a}b", "{{date}}"])
def test_an_invalid_pattern_is_refused_with_the_fields(text: str) -> None:
    with pytest.raises(BadSetting, match="key pattern") as caught:
        KeyPattern(text)
    assert "{camera_id}" in caught.value.remedy


@given(moment=st.datetimes(datetime(1971, 1, 1), datetime(2199, 12, 31)))
def test_any_moment_is_read_back_from_the_compact_form(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC, microsecond=moment.microsecond // 1000 * 1000)
    written = f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03d}"
    pattern = KeyPattern("{captured_at}", TimeRange.of("1971-01-01", "2200-01-01"))
    assert read(pattern, written) == ("", round(moment.timestamp() * 1000), "")


@given(text=st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=30))
def test_plain_text_in_a_pattern_matches_itself(text: str) -> None:
    pattern = KeyPattern(text + "{track_id}")
    assert read(pattern, text + "7") == ("", UNKNOWN_TIME, "7")
    assert read(pattern, "x" + text + "7") is None or text.startswith("x") or not text
