"""Pages of answers: everything said, nothing of a user's taken for markup, drawings that hold all answers."""

import io

import pytest
from PIL import Image

from index.milvus.search import Hit
from index.search.retrieval import Match
from index.search.travel_time import TravelCheck
from infra.errors import UnreadablePicture
from jobs.pages.search_page import (
    AnswerPage,
    ProbeStrip,
    ShownAnswer,
    build_answer_page,
    camera_map,
    timeline,
)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "JPEG")
    return buffer.getvalue()


def answer(rank: int, camera: str = "c1", at: int = 1000, **more: object) -> Match:
    hit = Hit(rank, rank, rank / 2, f"s3://a/{rank}.jpg", camera, "", at, 0, 0.5)
    return Match(rank, hit, **more)  # type: ignore[arg-type]


def page(*answers: Match, name: str = "probe", picture: bytes | None = None, **more: object) -> str:
    shown = [ShownAnswer(each, picture or jpeg(), "Van", each.rank == 1) for each in answers]
    strip = ProbeStrip(name, "found", note="two within", pictures=[jpeg()], answers=shown)
    return build_answer_page(AnswerPage("Title", "Lead", [strip], **more))  # type: ignore[arg-type]


def test_each_answer_stands_with_what_is_known_of_it() -> None:
    text = page(answer(1, likelihood=0.93, crops=3), answer(2, travel=TravelCheck(12.0, 60, possible=False)))
    for said in ("Rank 1", "93 % likely", "3 crops of this pass", "impossible: 12.0 km in 60 s", "crop:2"):
        assert said in text
    assert text.count("data:image/jpeg") == 3


def test_names_are_text_and_never_markup() -> None:
    text = page(answer(1, camera="<script>x</script>"), name="<img src=x>")
    assert "<script>" not in text
    assert "<img src=x>" not in text
    assert "default-src 'none'" in text


def test_a_picture_that_is_no_jpeg_is_refused() -> None:
    with pytest.raises(UnreadablePicture):
        page(answer(1), picture=b"<svg onload=alert(1)>")


def test_a_page_without_answers_still_says_so() -> None:
    strip = ProbeStrip("gone", "failed", note="missing: no object")
    text = build_answer_page(AnswerPage("T", "L", [strip], counts={"failed": 1}, left_out=7))
    assert "missing: no object" in text
    assert "7 more probes" in text


def test_the_timeline_has_a_lane_a_camera_and_leaves_out_what_has_no_time() -> None:
    drawing = timeline([answer(1, "b", 5), answer(2, "a", 9), answer(3, "a", -1)])
    assert drawing is not None
    assert [name for name, _ in drawing.lanes] == ["a", "b"]
    assert len(drawing.dots) == 2
    assert all(0 <= dot.x <= drawing.width and 0 <= dot.y <= drawing.height for dot in drawing.dots)
    assert timeline([answer(1, at=-1)]) is None


def test_the_map_holds_every_camera_and_marks_those_that_answered() -> None:
    positions = {"a": (52.0, 13.0), "b": (52.1, 13.2), "c": (51.9, 13.1)}
    drawing = camera_map([answer(1, "a"), answer(2, "a"), answer(3, "b")], positions)
    assert drawing is not None
    assert [dot.strong for dot in drawing.dots] == [False, True, True]
    assert all(0 <= dot.x <= drawing.width and 0 <= dot.y <= drawing.height for dot in drawing.dots)
    assert camera_map([answer(1)], {}) is None
    assert camera_map([answer(1)], {"c1": (0.0, 0.0)}) is not None
