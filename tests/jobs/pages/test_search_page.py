"""Pages of matches: all facts are shown, no text of a user is markup, drawings contain all matches."""

import io

import pytest
from PIL import Image

from index.milvus.search import Hit
from index.search.retrieval import Match
from index.search.travel_time import TravelCheck
from infra.errors import UnreadableImage
from jobs.pages.search_page import (
    PageMatch,
    ProbeStrip,
    SearchPage,
    build_search_page,
    camera_map,
    timeline,
)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "JPEG")
    return buffer.getvalue()


def make_match(rank: int, camera: str = "c1", captured_at: int = 1000, **more: object) -> Match:
    hit = Hit(rank, rank, rank / 2, f"s3://a/{rank}.jpg", camera, "", captured_at, 0, 0.5)
    return Match(rank, hit, **more)  # type: ignore[arg-type]


def page(*matches: Match, name: str = "probe", image: bytes | None = None, **more: object) -> str:
    shown = [PageMatch(match, image or jpeg(), "Van", match.rank == 1) for match in matches]
    strip = ProbeStrip(name, "found", note="two within", images=[jpeg()], matches=shown)
    return build_search_page(SearchPage("Title", "Summary", [strip], **more))  # type: ignore[arg-type]


def test_each_match_shows_its_facts() -> None:
    text = page(
        make_match(1, likelihood=0.93, crops=3), make_match(2, travel=TravelCheck(12.0, 60, possible=False))
    )
    for text_part in (
        "Rank 1",
        "93 % likely",
        "3 crops of this track",
        "impossible: 12.0 km in 1 min 00 s",
        "crop:2",
    ):
        assert text_part in text
    assert text.count("data:image/jpeg") == 3


def test_names_are_escaped() -> None:
    text = page(make_match(1, camera="<script>x</script>"), name="<img src=x>")
    assert "<script>" not in text
    assert "<img src=x>" not in text
    assert "default-src 'none'" in text


def test_an_image_that_is_not_jpeg_raises() -> None:
    with pytest.raises(UnreadableImage):
        page(make_match(1), image=b"<svg onload=alert(1)>")


def test_a_page_without_matches_shows_the_cause_and_the_number_of_other_probes() -> None:
    strip = ProbeStrip("gone", "failed", note="missing: no object")
    text = build_search_page(SearchPage("T", "L", [strip], counts={"failed": 1}, not_shown=7))
    assert "missing: no object" in text
    assert "7 more probes" in text


def test_the_timeline_has_one_lane_per_camera_and_excludes_matches_without_time() -> None:
    drawing = timeline([make_match(1, "b", 5), make_match(2, "a", 9), make_match(3, "a", -1)])
    assert drawing is not None
    assert [name for name, _ in drawing.lanes] == ["a", "b"]
    assert len(drawing.dots) == 2
    assert all(0 <= dot.x <= drawing.width and 0 <= dot.y <= drawing.height for dot in drawing.dots)
    assert timeline([make_match(1, captured_at=-1)]) is None


def test_the_map_contains_every_camera_and_marks_those_with_matches() -> None:
    positions = {"a": (52.0, 13.0), "b": (52.1, 13.2), "c": (51.9, 13.1)}
    drawing = camera_map([make_match(1, "a"), make_match(2, "a"), make_match(3, "b")], positions)
    assert drawing is not None
    assert [dot.strong for dot in drawing.dots] == [False, True, True]
    assert all(0 <= dot.x <= drawing.width and 0 <= dot.y <= drawing.height for dot in drawing.dots)
    assert camera_map([make_match(1)], {}) is None
    assert camera_map([make_match(1)], {"c1": (0.0, 0.0)}) is not None
