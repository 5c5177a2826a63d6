"""The evaluation page: self-contained, escaped, with the source of its figures and a checked accounting."""

import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from index.evaluation.model_groups import Oracle
from index.evaluation.protocols import ProtocolResult, evaluate_protocol
from infra.errors import CountMismatch, UnreadableImage
from jobs.pages.evaluation_page import (
    Chart,
    Counts,
    EvaluationPage,
    ListSection,
    ModelAccuracy,
    Outcomes,
    Ranked,
    Sighting,
    Strip,
    Timing,
    build_evaluation_page,
)
from jobs.pages.published import IMAGES, LISTS, TABLE_1, Published, published_beside, published_table

HOSTILE = "<script>alert('cam')</script>\"'&"


def jpeg(colour: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (colour, 80, 120)).save(file, "JPEG")
    return file.getvalue()


def strip(first_hit: int | None) -> Strip:
    ranked = [Ranked(Sighting(jpeg(rank), f"v{rank}"), rank + 0.5, rank == first_hit) for rank in range(1, 6)]
    return Strip(Sighting(jpeg(), "v0", HOSTILE, 1_763_800_000_000, HOSTILE), ranked, first_hit)


def results() -> list[ProtocolResult]:
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(30), 4)
    features = (rng.standard_normal((30, 8))[ids] + 0.5 * rng.standard_normal((120, 8))).astype(np.float32)
    return [
        evaluate_protocol(name, features, ids, repeats=3) for name in ("vehicleid-paper", "leave-one-out")
    ]


def section(name: str = "") -> ListSection:
    return ListSection(
        dataset=f"generated {HOSTILE}",
        name=name,
        results=results(),
        strips=[strip(1), strip(3), strip(12), strip(None)],
        outcomes=Outcomes(70, 20, 10, HOSTILE),
        oracles={"vehicleid-paper": [Oracle("model", np.full(50, 0.1234), 0.75)]},
        published=published_beside("", "", ["vehicleid-paper"], images=9),
    )


def sample() -> EvaluationPage:
    return EvaluationPage(
        title=f"A title {HOSTILE}",
        summary="A summary",
        dataset=f"generated {HOSTILE}",
        note=f"Not real {HOSTILE}",
        counts=Counts(110, 100, 7, 3, {HOSTILE: 7}),
        lists=[section()],
        model_accuracy=ModelAccuracy(0.9, 0.8, 12, 240, 0.1),
        timings=[Timing(HOSTILE, 61.0, 100, "crops"), Timing("load", 0.0)],
        facts={HOSTILE: HOSTILE, "machine": HOSTILE},
        command=f"clvr demo {HOSTILE}",
    )


@pytest.fixture(scope="module")
def full() -> EvaluationPage:
    return sample()


class Collector(HTMLParser):
    """All tags with attributes; checks that every tag is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_self_contained(full: EvaluationPage) -> None:
    page = Collector(build_evaluation_page(full))
    assert not page.open
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for _, attributes in page.tags:
        assert not {name for name in attributes if name == "style" or name.startswith("on")}
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:image/jpeg;base64,"))


def test_the_content_policy_admits_only_the_style_of_the_page(full: EvaluationPage) -> None:
    text = build_evaluation_page(full)
    policy = next(a["content"] for _, a in Collector(text).tags if a.get("http-equiv"))
    css = re.search("<style>(.*)</style>", text, re.DOTALL)
    assert policy and css
    digest = base64.b64encode(hashlib.sha256(css[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"url\(|@import|https?:", css[1])
    assert "prefers-color-scheme: dark" in css[1]


def test_all_data_are_escaped(full: EvaluationPage) -> None:
    text = build_evaluation_page(full)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 10


def test_strips_are_sorted_into_three_panels_with_their_frames(full: EvaluationPage) -> None:
    text = build_evaluation_page(full)
    at_1, in_5, missed = re.split("<h3>First match at rank 1|<h3>First match in ranks|<h3>No match in", text)[
        1:
    ]
    missed = missed.split("</section>")[0]
    assert [part.count('<figure class="hit">') for part in (at_1, in_5, missed)] == [1, 1, 0]
    assert [part.count('<figure class="miss">') for part in (at_1, in_5, missed)] == [4, 4, 10]
    assert "first true match at rank 12" in missed
    assert "no true match in the ranking" in missed
    assert "70 of 100 probes (70.0 %)" in at_1
    assert "2025-11-22 08:26:40" in at_1
    assert "data:image/jpeg;base64," + base64.b64encode(jpeg(3)).decode() in in_5


def test_each_figure_has_its_source(full: EvaluationPage) -> None:
    text = build_evaluation_page(full)
    first = full.lists[0].results[0]
    assert f"chance {100 * first.chance[0]:.2f} % &middot; vehicleid-paper" in text
    assert f"{100 * first.mean[0]:.1f} &plusmn; {100 * first.std[0]:.1f}" in text
    assert "Published, on VehicleID" in text
    assert "62.0 / 76.0" in text
    for result in full.lists[0].results:
        assert result.rule[1:] in text


def test_every_list_has_its_sections_and_a_row_in_the_overview(full: EvaluationPage) -> None:
    names = ("test_800", "test_1600", "test_2400")
    text = build_evaluation_page(replace(full, lists=[section(name) for name in names]))
    assert not Collector(text).open
    overview = text.split(">All lists</h2>")[1].split("</section>")[0]
    for name in names:
        assert overview.count(f'<th scope="row">{name}</th>') == 2
        assert f">List {name}</h2>" in text
    assert text.count(">Cumulative matching characteristic</h2>") == 3
    assert text.count("<h3>First match at rank 1</h3>") == 3
    assert "All lists" not in build_evaluation_page(full)
    contents = text.split('<nav class="contents"')[1].split("</nav>")[0]
    targets = re.findall(r'href="#([^"]*)"', contents)
    assert len(targets) == text.count("<h2 ")
    assert all(f'<h2 id="{target}">' in text for target in targets)


def test_the_paper_stands_beside_a_headline_by_another_protocol(full: EvaluationPage) -> None:
    paper, other = results()
    text = build_evaluation_page(replace(full, lists=[replace(section(), results=[other, paper])]))
    headline = text.split('<dl class="headline">')[1].split("</dl>")[0]
    assert f"{100 * other.mean[0]:.1f}<small>" in headline
    assert f"{100 * paper.mean[0]:.1f} % &middot; vehicleid-paper" in headline
    assert headline.index("leave-one-out") < headline.index("vehicleid-paper")


def test_an_oracle_says_how_many_images_it_knows(full: EvaluationPage) -> None:
    text = build_evaluation_page(full)
    assert "perfect model" in text
    assert "12.3" in text.split("perfect model")[1][:200]
    assert "75 % known" in text


@pytest.mark.parametrize(("name", "column"), LISTS.items())
def test_table_1_is_comparable_on_the_same_list_and_rule_only(name: str, column: str) -> None:
    both = ["vehicleid-paper", "vehicleid-common"]
    images = IMAGES[name]
    same = published_beside("VehicleID", name, both, images=images)
    assert same.is_comparable
    assert same.columns == (column,)
    assert [row[1][0] for row in same.rows] == [row[1][list(LISTS).index(name)] for row in TABLE_1]
    assert "compare with vehicleid-paper and vehicleid-common" in same.note
    for other in (
        published_beside("VehicleID", name, both, images=images, not_ranked=3),
        published_beside("VehicleID", name, both, images=images - 3),
        published_beside("VehicleID", name, ["cross-camera"], images=images),
        published_beside("VehicleID", "test_3200", both, images=images),
        published_beside("VERI-Wild", name, both, images=images),
        published_beside("", name, both, images=images),
    ):
        assert not other.is_comparable
        assert "not comparable" in other.note


def test_the_columns_of_table_1_are_those_of_the_comparable_lists() -> None:
    both = ["vehicleid-paper", "vehicleid-common"]

    def part(name: str, images: int) -> Published:
        return published_beside("VehicleID", name, both, images=images)

    whole = published_table([part(name, images) for name, images in IMAGES.items()])
    assert (whole.columns, whole.rows, whole.is_comparable) == (tuple(LISTS.values()), TABLE_1, True)
    one = published_table([part("test_800", 9), part("test_1600", IMAGES["test_1600"])])
    assert one.columns == ("medium",)
    assert one.rows[2] == ("CLVR", ((56.1, 71.8),))
    assert "The list has 9 images" in one.note
    none = published_table([part("test_800", 9)])
    assert (none.columns, none.is_comparable) == (tuple(LISTS.values()), False)


def test_a_page_with_counts_only_has_no_empty_sections() -> None:
    page = build_evaluation_page(EvaluationPage("t", "l", "d", "n", Counts(0, 0)))
    assert not Collector(page).open
    assert "Cumulative matching" not in page
    assert "Probes and their nearest" not in page


def test_a_curve_shorter_than_5_ranks_has_no_rank_5(full: EvaluationPage) -> None:
    rng = np.random.default_rng(0)
    short = evaluate_protocol(
        "vehicleid-common", rng.random((8, 2), dtype=np.float32), np.arange(8) // 2, max_rank=3
    )
    assert "in ranks 1&ndash;5" not in build_evaluation_page(
        replace(full, lists=[ListSection("d", results=[short])])
    )


def test_the_same_data_give_the_same_page(full: EvaluationPage) -> None:
    assert build_evaluation_page(full) == build_evaluation_page(full)


def test_counts_that_do_not_add_up_raise(full: EvaluationPage) -> None:
    with pytest.raises(CountMismatch, match="listed 110 is not embedded 100"):
        build_evaluation_page(replace(full, counts=Counts(110, 100, 7, 4)))
    with pytest.raises(CountMismatch, match="causes add up to 1 of 7"):
        build_evaluation_page(replace(full, counts=Counts(110, 100, 7, 3, {"empty": 1})))


def test_bytes_that_are_not_jpeg_raise(full: EvaluationPage) -> None:
    bad = replace(section(), strips=[replace(strip(1), probe=Sighting(b"<svg onload=alert(1)>"))])
    with pytest.raises(UnreadableImage, match="not JPEG"):
        build_evaluation_page(replace(full, lists=[bad]))


def test_the_chart_stays_in_its_frame_and_its_labels_do_not_overlap() -> None:
    chart = Chart(max_rank=50)
    assert (chart.x(1), chart.x(50)) == (chart.left, chart.width - chart.right)
    assert chart.y(1.3) == chart.y(1) == chart.top
    labels = sorted(line.label_y for line in chart.lines(results() + results()))
    assert min(np.diff(labels)) >= 34
    assert labels[-1] <= chart.y(0)
    assert Chart(max_rank=1).x(1) == chart.left
