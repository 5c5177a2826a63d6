"""Filters select the crops that they describe, and no value can become syntax."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from milvus_lite.search.filter.parser import parse_expr
from pymilvus import CollectionSchema, DataType, FieldSchema

from index.filters import Filters, quoted
from index.milvus.client import Milvus, connect
from infra.errors import BadSetting

NASTY = [
    '"',
    "\\",
    '\\"',
    '" or crop_id >= 0 or camera_id == "',
    "line\nbreak",
    "\r\n",
    "tab\t",
    "'",
    "\\u0041",
    "Ü€😀",
    "\u2028",
    "\x7f",
    "{x}",
    "%_",
    "a\\",
    "",
]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(NASTY)
ROWS = [
    {"crop_id": 1, "camera_id": "a", "track_id": "t1", "captured_at": 1000, "model_id": 5},
    {"crop_id": 2, "camera_id": "a", "track_id": "t2", "captured_at": 2000, "model_id": 6},
    {"crop_id": 3, "camera_id": "b", "track_id": "t1", "captured_at": 3000, "model_id": 5},
    {"crop_id": 4, "camera_id": "", "track_id": "", "captured_at": -1, "model_id": -1},
]
CONFIDENCES = {1: 0.9, 2: 0.5, 3: 0.1, 4: 0.0}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Milvus]:
    """Four crops as above, and one crop a nasty camera name from crop_id 100 on."""
    nasty = [
        {"crop_id": 100 + n, "camera_id": text, "track_id": text, "captured_at": -1, "model_id": 0}
        for n, text in enumerate(NASTY)
        if text
    ]
    fields = [
        FieldSchema("crop_id", DataType.INT64, is_primary=True),
        FieldSchema("v", DataType.FLOAT_VECTOR, dim=2),
        FieldSchema("camera_id", DataType.VARCHAR, max_length=128),
        FieldSchema("track_id", DataType.VARCHAR, max_length=128),
        FieldSchema("captured_at", DataType.INT64),
        FieldSchema("model_id", DataType.INT32),
        FieldSchema("model_confidence", DataType.FLOAT),
    ]
    with connect(str(tmp_path_factory.mktemp("filters") / "f.db")) as milvus:
        milvus.call("create_collection", "t", schema=CollectionSchema(fields))
        rows = [
            {**row, "v": [0.0, 1.0], "model_confidence": CONFIDENCES.get(int(str(row["crop_id"])), 0.0)}
            for row in ROWS + nasty
        ]
        milvus.call("insert", "t", rows)
        milvus.call("load_collection", "t")
        yield milvus


def select(milvus: Milvus, filters: Filters) -> set[int]:
    rows = milvus.call("query", "t", filter=filters.expression(), output_fields=["crop_id"], limit=1000)
    return {row["crop_id"] for row in rows}


def test_no_filter_is_no_expression() -> None:
    assert Filters().expression() == ""


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(cameras=("a",)), {1, 2}),
        (Filters(cameras=("",)), {4}),
        (Filters(not_cameras=("a",)), {3, 4}),
        (Filters(not_cameras=("",)), {1, 2, 3, 4}),
        (Filters(captured_from=2000), {2, 3}),
        (Filters(captured_to=2000), {1}),
        (Filters(captured_from=1000, captured_to=3000), {1, 2}),
        (Filters(model_ids=(5,)), {1, 3}),
        (Filters(model_ids=(-1,)), {4}),
        (Filters(not_model_ids=(5, 6)), {4}),
        (Filters(min_model_confidence=0.5), {1, 2}),
        (Filters(tracks=("t1",)), {1, 3}),
        (Filters(tracks=(("a", "t1"), "t2")), {1, 2}),
        (Filters(not_tracks=(("a", "t1"),)), {2, 3, 4}),
        (Filters(not_tracks=("t1",)), {2, 4}),
        (Filters(not_tracks=("", ("a", ""))), {1, 2, 3, 4}),
        (Filters(crop_ids=(1, 4)), {1, 4}),
        (Filters(not_crop_ids=(1,)), {2, 3, 4}),
        (Filters(cameras=("a", "b"), model_ids=(5,), not_crop_ids=(1,)), {3}),
        (Filters(tracks=("t1", "t2"), not_cameras=("b",)), {1, 2}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_filter_selects_matching_crops(table: Milvus, filters: Filters, expected: set[int]) -> None:
    assert {crop_id for crop_id in select(table, filters) if crop_id < 100} == expected


@pytest.mark.parametrize("text", [text for text in NASTY if text], ids=ascii)
def test_a_nasty_name_matches_only_itself(table: Milvus, text: str) -> None:
    expected = {100 + NASTY.index(text)}
    assert select(table, Filters(cameras=(text,))) == expected
    assert select(table, Filters(tracks=((text, text),))) == expected


@given(ANY_TEXT)
@settings(max_examples=500)
def test_the_parser_of_milvus_lite_reads_any_text_as_one_literal(text: str) -> None:
    parsed = parse_expr(f"camera_id == {quoted(text)}")
    assert type(parsed).__name__ == "CmpOp"
    assert parsed.right.value == text


@given(ANY_TEXT, st.tuples(ANY_TEXT, ANY_TEXT))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_selects_other_crops(table: Milvus, camera: str, track: tuple[str, str]) -> None:
    named = {100 + NASTY.index(camera)} if camera in NASTY and camera else set()
    named |= {int(str(row["crop_id"])) for row in ROWS if row["camera_id"] == camera}
    assert select(table, Filters(cameras=(camera,))) == named
    assert select(table, Filters(cameras=("a",), not_tracks=(track,))) <= {1, 2}


@pytest.mark.parametrize(
    "filters",
    [
        Filters(cameras=("\ud800",)),
        Filters(captured_from=10, captured_to=10),
        Filters(captured_from=-5),
        Filters(crop_ids=(2**63,)),
        Filters(model_ids=(True,)),
        Filters(min_model_confidence=float("nan")),
        Filters(min_model_confidence=1.5),
        Filters(min_color_confidence=-0.1),
        Filters(colors=("\ud800",)),
    ],
    ids=str,
)
def test_an_invalid_value_is_refused(filters: Filters) -> None:
    with pytest.raises(BadSetting):
        filters.expression()
