"""The desk in a real browser: answers belong to their probe, and a case is worked from probe to journey."""

import hashlib
import json
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect
from serving import Served, about, until

from jobs.serve.vendor import FOLDER, SHA256

pytestmark = pytest.mark.integration

TOKEN = "a-token-that-is-long-enough"
SIGHTINGS = 5
_numbers = iter(range(1000))


def open_crop(page: Page, served: Served, crop_id: int, more: str = "") -> None:
    page.goto(f"{served.url}/?probe=crop:{crop_id}{more}")
    expect(page.locator(".hit")).not_to_have_count(0)


def make_case(page: Page, title: str = "") -> str:
    number = f"26-{next(_numbers)}"
    page.select_option("#case", "new")
    page.fill("[name=number]", number)
    page.fill("#new-case [name=title]", title)
    page.click("#new-case .main")
    expect(page.locator("#new-case")).to_be_hidden()
    return number


def ranks_of(page: Page) -> list[str]:
    return page.locator(".hit").evaluate_all("items => items.map(item => item.dataset.crop)")


def is_small_enough(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


# ---- right first --------------------------------------------------------------------------------------


def test_an_upload_gets_a_link_that_shows_the_same_answers(
    page: Page, served: Served, searchable: Any
) -> None:
    page.goto(served.url)
    page.set_input_files("#file", searchable.pictures[0])
    expect(page.locator(".hit")).not_to_have_count(0)
    expect(page.locator("#verdict")).to_contain_text("matches")
    assert page.locator(".hit img").first.evaluate("image => image.decode().then(() => true)")
    assert re.search(r"\?probe=upload:[0-9a-f]{64}$", page.url)
    before = ranks_of(page)
    page.reload()
    expect(page.locator(".hit")).to_have_count(len(before))
    assert ranks_of(page) == before
    page.go_back()
    expect(page.locator(".hit")).to_have_count(0)
    expect(page.locator("#empty")).to_contain_text("Drop an image")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("fake.jpg", b"no picture" * 30, "not a usable image"),
        ("big.png", bytes(1 << 20), "larger than 1 MiB"),
        ("x.gif", b"GIF89a", "no JPEG, PNG or WebP"),
    ],
)
def test_a_probe_that_fails_leaves_no_answers_of_the_one_before(
    page: Page, served: Served, searchable: Any, name: str, data: bytes, message: str
) -> None:
    open_crop(page, served, searchable.crop_id(0, 0))
    expect(page.locator("#probe-facts")).to_contain_text("camera 000")
    kind = {"jpg": "image/jpeg", "png": "image/png", "gif": "image/gif"}[name.rpartition(".")[2]]
    page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": data})
    expect(page.locator("#error")).to_contain_text(message)
    expect(page.locator(".hit")).to_have_count(0)
    expect(page.locator("#probe-facts")).to_be_empty()
    expect(page.locator("#verdict")).to_be_empty()
    assert "probe=" not in page.url
    page.go_back()
    expect(page.locator(".hit")).not_to_have_count(0)
    expect(page.locator("#error")).to_be_hidden()


def test_a_search_that_fails_shows_the_remedy_and_can_be_repeated(
    page: Page, served: Served, searchable: Any
) -> None:
    open_crop(page, served, searchable.crop_id(0, 0))
    page.route("**/api/search", lambda route: route.abort())
    page.locator(".hit .search-from").nth(1).click()
    expect(page.locator("#error")).to_contain_text("does not answer")
    expect(page.locator(".hit")).to_have_count(0)
    page.unroute("**/api/search")
    page.click("#error button")
    expect(page.locator(".hit")).not_to_have_count(0)
    expect(page.locator("#error")).to_be_hidden()


def test_answers_of_a_slow_search_do_not_come_under_the_next_probe(
    page: Page, served: Served, searchable: Any
) -> None:
    held: list[Route] = []
    page.route("**/api/search", lambda route: held.append(route) if not held else route.continue_())
    page.goto(f"{served.url}/?probe=crop:{searchable.crop_id(0, 0)}")
    expect(page.locator("#empty")).to_contain_text("Searching")
    page.set_input_files("#file", searchable.pictures[4])
    expect(page.locator(".hit")).not_to_have_count(0)
    right = ranks_of(page)
    held[0].continue_()
    page.wait_for_timeout(700)
    assert ranks_of(page) == right
    expect(page.locator("#probe-facts")).to_be_empty()  # an upload has no camera


def test_a_server_that_is_away_at_the_start_is_said_and_tried_again(page: Page, served: Served) -> None:
    page.route("**/api/about", lambda route: route.abort())
    page.goto(served.url)
    expect(page.locator("#start-error")).to_contain_text("does not answer")
    page.unroute("**/api/about")
    page.click("#start-error button")
    expect(page.locator("#app")).to_be_visible()
    expect(page.locator("#start-error")).to_be_hidden()


def test_filters_are_in_the_url_and_beside_the_answers(page: Page, served: Served, searchable: Any) -> None:
    open_crop(page, served, searchable.crop_id(0, 0))
    page.fill("[name=cameras]", "001")
    page.fill("[name=since]", "2026-01-01")
    page.click("#filters .main")
    expect(page.locator(".chip")).to_have_text(
        ["camera 001, remove", "from 2026-01-01 00:00, remove", "Remove all"]
    )
    expect(page.locator(".hit", has_not_text="camera 001")).to_have_count(0)
    expect(page.locator(".hit")).not_to_have_count(0)
    link = page.url
    assert "cameras=001" in link
    page.locator(".chip", has_text="from").click()
    expect(page.locator(".chip")).to_have_count(1)
    page.go_back()
    expect(page.locator(".chip")).to_have_count(3)
    expect(page.locator("[name=since]")).to_have_value("2026-01-01 00:00")
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator("[name=cameras]")).to_have_value("001")
    page.fill("[name=cameras]", "<b>999</b>")
    page.click("#filters .main")
    expect(page.locator("#error")).to_contain_text("<b>999</b>")
    expect(page.locator(".hit")).to_have_count(0)
    page.fill("[name=since]", "2030-01-01")
    page.fill("[name=until]", "2029-01-01")
    page.fill("[name=cameras]", "")
    page.click("#filters .main")
    expect(page.locator("#error")).to_contain_text("time window is empty")


def test_an_open_page_shows_that_the_archive_has_changed(
    page: Page, served: Served, searchable: Any, promoted: tuple[str, Callable[[], str]]
) -> None:
    old, promote_new = promoted
    open_crop(page, served, searchable.crop_id(0, 0))
    expect(page.locator("#about")).to_contain_text(old)
    new = promote_new()
    until(lambda: about(served)["generation"] == new)
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(page.locator("#about")).to_contain_text(new)
    expect(page.locator("#verdict")).to_contain_text("search again")
    page.click("#filters .main")
    expect(page.locator("#verdict")).not_to_contain_text("search again")


# ---- look ---------------------------------------------------------------------------------------------


def test_a_click_looks_at_the_original_beside_the_probe(page: Page, served: Served, searchable: Any) -> None:
    open_crop(page, served, searchable.crop_id(0, 0))
    page.locator(".hit .look").nth(1).click()
    expect(page.locator("#viewer")).to_be_visible()
    expect(page.locator("#viewer-image")).to_have_attribute("src", re.compile(r"/original\.jpg$"))
    assert page.locator("#viewer-image").evaluate("image => image.naturalWidth") == 160
    expect(page.locator("#viewer-track button")).to_have_count(2)
    for _ in range(3):
        page.keyboard.press("+")
    page.mouse.move(800, 300)
    page.mouse.down()
    page.mouse.move(760, 280)
    page.mouse.up()
    transforms = [
        page.locator(pane).evaluate("image => image.style.transform")
        for pane in ("#viewer-image", "#viewer-probe")
    ]
    assert transforms[0] == transforms[1]
    assert "scale(3.375)" in transforms[0]
    assert "translate(0%, 0%)" not in transforms[0]
    second = page.url
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-title")).to_have_text("Rank 3")
    assert page.url != second
    link = page.url
    page.go_back()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator(".hit").first).to_be_visible()
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator("#viewer-title")).to_have_text("Rank 3")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    assert "hit=" not in page.url
    assert page.evaluate("document.activeElement.closest('.hit')?.querySelector('.rank').textContent") == "3"


def test_a_search_from_a_match_is_a_button(page: Page, served: Served, searchable: Any) -> None:
    open_crop(page, served, searchable.crop_id(0, 0))
    crop = ranks_of(page)[1]
    page.locator(".hit .look").nth(1).click()
    page.click("#viewer-search")
    expect(page.locator("#viewer")).to_be_hidden()
    page.wait_for_url(f"**/?probe={crop}")
    expect(page.locator("#probe-facts")).to_contain_text("camera")
    page.go_back()
    page.wait_for_url(f"**/?probe=crop:{searchable.crop_id(0, 0)}*")


def test_a_box_on_an_upload_is_the_probe(page: Page, served: Served, searchable: Any) -> None:
    page.goto(served.url)
    page.set_input_files("#file", searchable.pictures[2])
    expect(page.locator(".hit")).not_to_have_count(0)
    page.click(".probe-tools button")
    page.locator("#box-area img").evaluate("image => image.decode().then(() => true)")
    area = page.locator("#box-area").bounding_box()
    assert area
    page.mouse.move(area["x"] + 10, area["y"] + 20)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] - 5)
    page.mouse.up()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    page.click("#box-search")
    page.wait_for_url(re.compile(r"upload:[0-9a-f]{64}@[0-9.]+,[0-9.]+,[0-9.]+,[0-9.]+$"))
    expect(page.locator(".hit")).not_to_have_count(0)
    shape = page.locator(".probe img").evaluate(
        "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    )
    assert shape[0] < 90
    assert shape[1] > 80


# ---- judge, combine, keep -----------------------------------------------------------------------------


def test_a_case_is_judged_and_searched_again(page: Page, served: Served, searchable: Any) -> None:
    open_crop(page, served, searchable.crop_id(3, 0), "&same_camera=1")
    make_case(page, "Two boxes")
    expect(page.locator(".hit .judge").first).to_be_visible()
    crops = ranks_of(page)
    page.locator(".hit").nth(0).locator(".judge.confirmed").click()
    expect(page.locator(".hit").nth(0)).to_have_attribute("data-verdict", "confirmed")
    page.locator(".hit").nth(1).locator(".look").focus()
    page.keyboard.press("c")
    expect(page.locator(".hit").nth(1)).to_have_attribute("data-verdict", "confirmed")
    page.locator(".hit .look").nth(2).click()
    page.keyboard.press("x")
    expect(page.locator("#viewer-judge .rejected")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    page.click("#case-tab")
    expect(page.locator(".case h2").nth(1)).to_have_text("Confirmed (2)")
    page.click("text=Keep the probe shown")
    expect(page.locator(".case", has_text="search from this")).to_be_visible()
    expect(page.locator("#journey table tbody tr").first).to_be_visible()
    page.fill(".note-form textarea", "a <b>note</b>")
    page.click(".note-form button")
    expect(page.locator(".note-item")).to_contain_text("a <b>note</b>")
    page.click("text=Search with the confirmed")
    expect(page.locator("#verdict")).to_contain_text("by 2 confirmed, away from 1 rejected")
    assert not set(crops[:3]) & set(ranks_of(page))
    page.reload()
    expect(page.locator("#verdict")).to_contain_text("by 2 confirmed")
    page.click("#case-tab")
    expect(page.locator(".case table").last).to_contain_text("search")
    page.click("text=Watch")
    expect(page.locator("text=Stop watching")).to_be_visible()
    page.click("text=Close case")
    expect(page.locator("text=Open again")).to_be_visible()
    expect(page.locator(".case .judge")).to_have_count(0)


def judged_case(served: Served, **crops: list[int]) -> int:
    """Return a case with crops judged so."""
    number = f"26-{next(_numbers)}"
    case = int(served.json("/api/cases", {"number": number, "title": ""})[1]["id"])
    for verdict, ids in crops.items():
        for crop_id in ids:
            judgement = {"crop": f"crop:{crop_id}", "verdict": verdict, "search_id": ""}
            assert served.json(f"/api/cases/{case}/judgements", judgement)[0] == 200
    return case


def test_a_journey_marks_the_leg_that_no_vehicle_can_have_made(
    page: Page, served: Served, searchable: Any
) -> None:
    # A minute apart, at cameras that are 3.6 km apart.
    crops = [searchable.crop_id(2, 0), searchable.crop_id(3, 0)]
    case = judged_case(served, confirmed=crops)
    page.goto(f"{served.url}/?case={case}&view=case")
    expect(page.locator("#journey .warn").first).to_contain_text("1 leg that no vehicle can have made at 150")
    expect(page.locator("#journey .leg.bad")).to_contain_text("impossible")
    expect(page.locator("#journey .map path.route.bad")).to_have_count(1)
    expect(page.locator("#journey .map .mark")).to_have_text(["1", "2"], use_inner_text=True)
    page.locator("#journey button", has_text="look").nth(1).click()
    expect(page.locator("#viewer-facts")).to_contain_text(f"crop:{crops[1]}")


def test_travel_companions_are_the_vehicles_near_two_stops(
    page: Page, served: Served, searchable: Any
) -> None:
    # Vehicle 4 passes the cameras of vehicle 0 four minutes after it, vehicle 8 eight minutes.
    case = judged_case(served, confirmed=[searchable.crop_id(0, 0), searchable.crop_id(0, 2)])
    page.goto(f"{served.url}/?case={case}&view=case")
    form = page.locator(".case form.row")
    form.locator("select").select_option("60")
    form.locator("input").fill("1000")
    form.locator("button").click()
    expect(page.locator("text=No vehicle was near two of the stops.")).to_be_visible()
    form.locator("select").select_option("300")
    form.locator("button").click()
    expect(page.locator(".companion")).to_have_count(1)
    expect(page.locator(".companion p").first).to_contain_text("2 of 2 stops (1, 2) · 240 s apart")
    page.locator(".companion .look").first.click()
    expect(page.locator("#viewer-facts")).to_contain_text("t4-0")


def test_a_search_with_the_confirmed_moves_away_from_the_rejected(
    page: Page, served: Served, searchable: Any
) -> None:
    rules = "&view=gallery&with=confirmed&same_camera=1&every_crop=1&top=200"
    crops = [f"crop:{searchable.crop_id(5, sighting)}" for sighting in range(SIGHTINGS)]
    track, others = crops[:2], crops[2:]  # that of the rejected crop leaves with it

    def places(**rejected: list[int]) -> list[int]:
        case = judged_case(served, confirmed=[searchable.crop_id(0, 0)], **rejected)
        page.goto(f"{served.url}/?case={case}{rules}")
        expect(page.locator("#verdict")).to_contain_text(f"away from {len(rejected)} rejected")
        ranks = [crop for crop in ranks_of(page) if crop not in track]
        used = [searchable.crop_id(0, 0), *rejected.get("rejected", [])]
        assert not {f"crop:{crop_id}" for crop_id in used} & set(ranks)
        return [ranks.index(crop) for crop in others]

    before = places()
    # The other crops of the rejected vehicle fall behind.
    assert sum(places(rejected=[searchable.crop_id(5, 0)])) >= sum(before)
    expect(page.locator(".probes img")).to_have_count(1)
    expect(page.locator("#feedback-note")).to_contain_text("away from the rejected")


# ---- every hand and eye -------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(360, 740), (640, 430)], ids=["phone", "zoom-200"])
def test_a_narrow_screen_shows_answers_first_and_nothing_wider(
    page: Page, served: Served, searchable: Any, width: int, height: int
) -> None:
    page.set_viewport_size({"width": width, "height": height})
    open_crop(page, served, searchable.crop_id(0, 0))
    first = page.locator(".hit").first.bounding_box()
    assert first
    assert first["y"] < (height if width == 360 else 500)
    assert not page.locator("#filters").is_visible()
    make_case(page)
    page.locator(".hit .judge.confirmed").first.click()
    for view in ("gallery", "timeline", "map", "case"):
        page.click(f"#{view}-tab")
        page.wait_for_timeout(100)
        assert is_small_enough(page), view
    page.click("#gallery-tab")
    page.locator(".hit .look").first.click()
    expect(page.locator("#viewer-facts dl")).to_be_visible()
    assert page.locator("#viewer").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    assert is_small_enough(page)


def test_the_desk_can_be_used_by_keyboard_only(page: Page, served: Served, searchable: Any) -> None:
    open_crop(page, served, searchable.crop_id(0, 0))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    expect(page.locator("#viewer-facts")).to_contain_text("crop:")
    page.keyboard.press("Escape")
    page.keyboard.press("l")
    expect(page.locator("#timeline .dot").first).to_be_visible()
    assert page.locator("#timeline [tabindex='0']").count() == 1
    page.locator("#timeline [tabindex='0']").focus()
    expect(page.locator("#timeline .preview")).to_be_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("m")
    page.locator("#map .mark[tabindex='0']").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".chip").first).to_contain_text("camera")
    page.locator("#gallery-tab").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#timeline-panel")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "timeline-tab"
    page.keyboard.press("ArrowLeft")
    page.locator(".hit .look").nth(1).focus()
    before = page.url
    page.keyboard.press("s")
    page.wait_for_url(lambda url: url != before)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)], ids=["light", "dark-phone"])
def test_a_screen_reader_finds_no_fault(
    page: Page, served: Served, searchable: Any, scheme: Any, width: int
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 860})
    found: list[str] = []
    options = {"resultTypes": ["violations"]}

    def look(state: str) -> None:
        page.wait_for_timeout(150)
        for violation in Axe().run(page, options=options).response["violations"]:
            if violation["impact"] in ("moderate", "serious", "critical"):
                nodes = [" ".join(node["target"][0].split()) for node in violation["nodes"][:3]]
                found.append(f"{state}: {violation['id']} ({violation['impact']}) {nodes}")

    page.goto(served.url)
    expect(page.locator("#app")).to_be_visible()
    look("empty")
    open_crop(page, served, searchable.crop_id(3, 0), "&same_camera=1&not_cameras=002&every_crop=1")
    make_case(page, "A title")
    for place, verdict in enumerate(("confirmed", "confirmed", "rejected", "unsure")):
        page.locator(".hit").nth(place).locator(f".judge.{verdict}").click()
        expect(page.locator(".hit").nth(place)).to_have_attribute("data-verdict", verdict)
    for view in ("gallery", "timeline", "map"):
        page.click(f"#{view}-tab")
        look(view)
    page.click("#case-tab")
    page.click("text=Keep the probe shown")
    expect(page.locator("#journey table")).to_be_visible()
    look("case")
    page.click("#gallery-tab")
    page.locator(".hit .look").first.click()
    expect(page.locator("#viewer-facts dl")).to_be_visible()
    look("viewer")
    page.keyboard.press("Escape")
    page.click("#help-button")
    look("keys")
    page.keyboard.press("Escape")
    page.select_option("#case", "new")
    look("new case")
    page.keyboard.press("Escape")
    page.goto(f"{served.url}/?probe=crop:1")
    expect(page.locator("#error")).to_be_visible()
    look("error")
    page.set_input_files("#file", searchable.pictures[0])
    expect(page.locator(".hit")).not_to_have_count(0)
    page.click(".probe-tools button")
    look("box")
    assert found == []


def test_the_theme_follows_the_system_and_the_button(page: Page, served: Served) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    page.goto(served.url)
    light = page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(paper) != light
    page.click("#theme")
    assert page.evaluate(paper) == light
    page.reload()
    assert page.evaluate(paper) == light


def test_a_thousand_answers_are_drawn(page: Page, served: Served, searchable: Any) -> None:
    images: list[str] = []
    page.on("request", lambda request: images.append(request.url) if "/api/crops/" in request.url else None)

    def many(route: Route) -> None:
        answer: dict[str, Any] = json.loads(route.fetch().body())
        first = answer["answers"][0]
        answer["answers"] = [
            {**first, "rank": rank + 1, "crop": f"crop:{10**6 + rank}"} for rank in range(1000)
        ]
        route.fulfill(json=answer)

    page.route("**/api/search", many)
    page.route(
        "**/api/crops/1*", lambda route: route.fulfill(status=200, content_type="image/jpeg", body=b"")
    )
    page.goto(f"{served.url}/?probe=crop:{searchable.crop_id(0, 0)}")
    expect(page.locator(".hit")).to_have_count(1000)
    page.wait_for_timeout(300)
    assert len(images) < 200
    page.click("#timeline-tab")
    expect(page.locator("#timeline [role=group] .dot")).to_have_count(1000)


def test_the_token_opens_the_page(page: Page, locked: Served) -> None:
    page.goto(locked.url)
    page.fill("#token", "wrong")
    page.press("#token", "Enter")
    expect(page.locator("#login-error")).to_contain_text("token is wrong")
    page.fill("#token", TOKEN)
    page.press("#token", "Enter")
    expect(page.locator("#app")).to_be_visible()
    page.context.clear_cookies()
    page.goto("about:blank")
    page.goto(f"{locked.url}/#token={urllib.parse.quote(TOKEN)}")
    expect(page.locator("#app")).to_be_visible()
    assert TOKEN not in page.url


def test_the_modules_of_the_page_are_small_and_load_nothing_from_elsewhere(served: Served) -> None:
    folder = Path(__file__).parents[2] / "jobs/serve/static"
    for module in folder.glob("*.js"):
        text = module.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 400, module
        assert not re.search(r"innerHTML|eval\(|https?://(?!www\.w3\.org)", text), module
        assert served.ask(f"/{module.name}")[0] == 200


def test_the_libraries_of_the_page_are_those_that_are_pinned(served: Served) -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(SHA256)
    for name, digest in SHA256.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name
    assert served.ask("/vendor/leaflet.js")[0] == 200
