"""Keys are read by one pattern: what fits is taken, what does not is unknown, nothing is guessed."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.archive.key_pattern import KeyFields, KeyPattern
from index.schema import MAX_NAME_BYTES, UNKNOWN_TIME
from infra.errors import BadSetting

ARCHIVE = KeyPattern("dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg")
MIDNIGHT = 1_795_305_600_000  # 2026-11-22T00:00:00Z


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
def test_a_time_may_be_written_in_four_forms(written: str, captured_at: int) -> None:
    facts = ARCHIVE.match(f"dt=2026-11-22/cam=004/{written}_t7.jpg")
    assert facts == KeyFields("004", captured_at, "t7")


@pytest.mark.parametrize(
    "written", ["20260230T000000", "20261301T000000", "20261122T250000", "20261122T235960"]
)
def test_a_time_that_does_not_exist_does_not_match(written: str) -> None:
    assert ARCHIVE.match(f"dt=2026-11-22/cam=004/{written}_t7.jpg") is None


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
def test_other_keys_do_not_match(key: str) -> None:
    assert ARCHIVE.match(key) is None


def test_fields_that_the_pattern_does_not_name_are_unknown() -> None:
    assert KeyPattern("{*}/{camera_id}.png").match("any thing/k 1.png") == KeyFields("k 1", UNKNOWN_TIME, "")
    assert KeyPattern("{*}.png").match("deep/er.png") is None


def test_a_column_of_keys_is_read_row_by_row() -> None:
    keys = pa.array(["dt=20261122/cam=a/1795305600_t.jpg", "x", "dt=20261122/cam=b/1795305600_u.jpg"])
    columns = ARCHIVE.extract(keys)
    assert columns["matched"].to_pylist() == [True, False, True]
    assert columns["camera_id"].to_pylist() == ["a", "", "b"]
    assert columns["captured_at"].to_pylist() == [MIDNIGHT, UNKNOWN_TIME, MIDNIGHT]
    assert columns["track_id"].to_pylist() == ["t", "", "u"]


def test_no_keys_are_no_rows() -> None:
    assert len(ARCHIVE.extract(pa.array([], pa.string()))["matched"]) == 0


@pytest.mark.parametrize("text", ["{camera}", "{}", "{camera_id}-{camera_id}", "a{b", "a}b", "{{date}}"])
def test_a_pattern_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="key pattern") as refused:
        KeyPattern(text)
    assert "{camera_id}" in refused.value.remedy


@given(moment=st.datetimes(datetime(1971, 1, 1), datetime(2199, 12, 31)))
def test_any_moment_is_read_back_from_the_compact_form(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC, microsecond=moment.microsecond // 1000 * 1000)
    written = f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03d}"
    facts = KeyPattern("{captured_at}").match(written)
    assert facts is not None
    assert facts.captured_at == round(moment.timestamp() * 1000)


@given(text=st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=30))
def test_plain_text_in_a_pattern_stands_for_itself(text: str) -> None:
    assert KeyPattern(text + "{track_id}").match(text + "7") == KeyFields("", UNKNOWN_TIME, "7")
    assert KeyPattern(text + "{track_id}").match("x" + text + "7") is None or text.startswith("x") or not text
