"""`clvr serve`: the page in a real browser, and the server against hostile requests."""

import json
import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from hostile_images import progressive_jpeg
from playwright.sync_api import Browser, Page, expect, sync_playwright

from index.generations import records
from index.generations.load import load_runs
from index.generations.promotion import promote, rollback
from index.milvus.collection import live_generation
from index.runs.run import Run
from infra.errors import BadSetting
from infra.store import open_store
from jobs.search.searcher import Searcher
from jobs.serve.access import AccessPolicy, Limits
from jobs.serve.app import make_app
from jobs.serve.connections import server_config
from jobs.serve.request import ServeRequest, make_policy, print_address

pytestmark = pytest.mark.integration

TOKEN = "a-token-that-is-long-enough"


class Served:
    """A server on a free port of the loopback, in a thread."""

    def __init__(self, searcher: Searcher, policy: AccessPolicy, limits: Limits) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        app = make_app(searcher, policy, limits=limits)
        self.server = uvicorn.Server(server_config(app, host="127.0.0.1", port=self.port))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)

    def ask(
        self, path: str, body: bytes | None = None, method: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, body, named, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()


def form(image: bytes | None = None, rules: Any = None, crop: str | None = None) -> dict[str, Any]:
    parts = []
    if image is not None:
        parts.append(b'Content-Disposition: form-data; name="picture"; filename="x.jpg"\r\n\r\n' + image)
    if rules is not None:
        text = rules if isinstance(rules, str) else json.dumps(rules)
        parts.append(b'Content-Disposition: form-data; name="rules"\r\n\r\n' + text.encode())
    if crop is not None:
        parts.append(b'Content-Disposition: form-data; name="crop"\r\n\r\n' + crop.encode())
    body = b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + b"--XX--\r\n"
    return {"body": body, "Content_Type": "multipart/form-data; boundary=XX"}


@pytest.fixture(scope="module")
def searcher(searchable: Any) -> Iterator[Searcher]:
    searcher = Searcher(searchable.settings, threads=0)
    yield searcher
    searcher.close()


@pytest.fixture(scope="module")
def served(searcher: Searcher) -> Iterator[Served]:
    server = Served(searcher, make_policy(ServeRequest()), Limits(1 << 20))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def locked(searcher: Searcher) -> Iterator[Served]:
    server = Served(searcher, AccessPolicy(TOKEN), Limits(1 << 20))
    yield server
    server.stop()


# ---- the server ---------------------------------------------------------------------------------------


def test_an_image_is_searched_and_the_crops_have_thumbnails(served: Served, searchable: Any) -> None:
    image = searchable.pictures[0].read_bytes()
    status, _, body = served.ask("/api/search", **form(image, {"top": 7}))
    assert status == 200
    answers = json.loads(body)["answers"]
    assert [match["rank"] for match in answers] == list(range(1, 8))
    status, headers, jpeg = served.ask(f"/api/crops/{answers[0]['crop'][5:]}.jpg")
    assert (status, headers["content-type"], jpeg[:2]) == (200, "image/jpeg", b"\xff\xd8")
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (form(b"no picture" * 30), "not a usable image"),
        (form(b""), "not a usable image"),
        (form(), "1 to 5 images"),
        (form(crop="crop:12"), "is not in"),
        (form(crop="/etc/passwd"), "is not a crop"),
        (form(crop="http://127.0.0.1/"), "is not a crop"),
        (form(crop="crop:1", rules="{"), "not JSON"),
        (form(crop="crop:1", rules={"top": 5000}), "top"),
        (form(crop="crop:1", rules={"uri": "s3://x"}), "uri"),
        (form(crop="crop:1", rules={"since": "soon"}), "not an ISO 8601 time"),
        (form(crop="crop:1", rules={"cameras": ['" or 1==1 or "']}), "no crop of"),
        (form(crop="crop:" + "9" * 5000), "is not a crop"),
        (form(crop="crop:1", rules={"cameras": ["\ud800"]}), "cameras"),
        (form(crop="crop:1", rules={"not_cameras": ["a\nb"]}), "not_cameras"),
        (form(crop="crop:1", rules={"until": "\udfff"}), "until"),
        (form(crop="crop:1", rules={"models": [10**30]}), "models"),
        (form(crop="crop:1", rules='{"top": 1' + "0" * 5000 + "}"), "not JSON"),
        (form(crop="crop:1", rules='{"max_distance": Infinity}'), "max_distance"),
        (form(crop="crop:1", rules="[" * 50_000), "not JSON"),
        (form(crop="crop:1", rules="x" * 100_001), "fields of the form"),
        (form(progressive_jpeg(7000, 880)), "too-large"),
        ({"body": b"--XX\r\n\xff\xfe", "Content_Type": "multipart/form-data; boundary=XX"}, ""),
        ({"body": b"--XX", "Content_Type": "multipart/form-data"}, ""),
        ({"body": b"picture=%ff%zz&rules=%00", "Content_Type": "application/x-www-form-urlencoded"}, ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_request_gets_a_message(served: Served, sent: dict[str, Any], message: str) -> None:
    status, _, body = served.ask("/api/search", **sent)
    assert status == 400, body
    assert message in str(json.loads(body).get("error") or json.loads(body)["detail"])


def test_costly_images_hold_up_no_search(served: Served, searchable: Any) -> None:
    image = searchable.pictures[0].read_bytes()
    costly = form(progressive_jpeg(7000, 25))  # the most that is decoded
    done: list[int] = []
    threads = [
        threading.Thread(target=lambda: done.append(served.ask("/api/search", **costly)[0])) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    assert served.ask("/api/search", **form(image, {"top": 3}))[0] == 200
    for thread in threads:
        thread.join()
    assert done == [200] * 5


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "..%2F..%2Fetc%2Fpasswd", "1", "-1", "9" * 30, "9" * 5000, "%00", "%ff"]
)
def test_an_invalid_crop_has_no_thumbnail(served: Served, path: str) -> None:
    assert served.ask(f"/api/crops/{path}.jpg")[0] in (400, 404)


def test_a_large_body_is_refused_with_and_without_a_length(served: Served) -> None:
    sent = form(b"\xff\xd8" + bytes(2 << 20))
    assert served.ask("/api/search", **sent)[0] == 413
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as line:
        head = "POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
        line.sendall(f"{head}Content-Type: multipart/form-data; boundary=XX\r\n\r\n".encode())
        chunk = sent["body"][:300_000]
        try:
            for _ in range(6):
                line.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            line.sendall(b"0\r\n\r\n")
            answer = line.recv(200)
        except OSError:
            answer = b""
    assert b" 200 " not in answer
    assert served.ask("/api/about")[0] == 200


def test_every_response_has_the_security_headers(served: Served) -> None:
    for path in ("/", "/app.js", "/api/about", "/nowhere"):
        _, headers, _ = served.ask(path)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_the_page_obeys_its_content_policy(served: Served) -> None:
    page = served.ask("/")[2].decode()
    assert not re.search(r"<script(?![^>]*src=)|style=|\son\w+=|https?://", page)


def test_requests_of_other_sites_and_host_names_are_refused(served: Served) -> None:
    assert served.ask("/api/about", Host="evil.example")[0] == 421
    assert served.ask("/api/search", **form(b""), Origin="http://evil.example")[0] == 403
    assert served.ask("/api/search", **form(b""), Sec_Fetch_Site="cross-site")[0] == 403


def test_without_a_token_only_the_empty_page_is_served(locked: Served, searchable: Any) -> None:
    assert locked.ask("/")[0] == 200
    for path in ("/api/about", f"/api/crops/{searchable.crop_id(0, 0)}.jpg", "/nowhere"):
        assert locked.ask(path)[0] == 401
    assert locked.ask("/api/search", **form(b""))[0] == 401
    assert locked.ask("/api/about", Authorization="Bearer wrong")[0] == 401
    assert locked.ask("/api/about", Authorization=f"Bearer {TOKEN}")[0] == 200


def test_a_login_sets_a_cookie_that_scripts_cannot_read(locked: Served) -> None:
    assert locked.ask("/api/login", b'{"token": "wrong"}')[0] == 401
    assert locked.ask("/api/login", b"[" * 3000)[0] == 401
    status, headers, _ = locked.ask("/api/login", json.dumps({"token": TOKEN}).encode())
    assert status == 200
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert locked.ask("/api/about", Cookie=cookie.split(";")[0])[0] == 200


def test_a_token_is_required_by_default_except_on_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_policy(ServeRequest()).token is None
    assert make_policy(ServeRequest(host="::1")).token is None
    assert make_policy(ServeRequest(host="0.0.0.0")).token  # noqa: S104
    assert make_policy(ServeRequest(host="archive.example")).token
    assert make_policy(ServeRequest(require_token=True)).token
    assert make_policy(ServeRequest(host="10.0.0.1", no_token=True)).token is None
    monkeypatch.setenv("CLVR_SERVE_TOKEN", "short")
    with pytest.raises(BadSetting, match="shorter"):
        make_policy(ServeRequest())


def test_only_a_generated_token_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = ServeRequest(require_token=True)
    generated = make_policy(request)
    print_address(request, generated)
    assert generated.token is not None
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count(generated.token) == 1
    monkeypatch.setenv("CLVR_SERVE_TOKEN", TOKEN)
    for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104
        request = ServeRequest(host=host)
        print_address(request, make_policy(request))
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err
    assert "CLVR_SERVE_TOKEN" in printed.err


@pytest.fixture
def promoted(served: Served, searcher: Searcher, searchable: Any) -> Iterator[tuple[str, Any]]:
    """The live generation, and a function that makes a new one live; afterwards it is rolled back."""
    milvus, runs = searcher.source.milvus, open_store(searchable.settings.runs)
    alias = searchable.settings.alias
    before = live_generation(milvus, alias)
    assert before is not None
    made = []

    def promote_new() -> str:
        generation = load_runs(milvus, runs, [Run.open(runs, searchable.run_id)], alias=alias)
        promote(milvus, runs, generation.name, force="test")
        made.append(generation.name)
        return generation.name

    yield before.name, promote_new
    rollback(milvus, runs, alias, before.name)
    for name in made:
        records.drop(milvus, runs, name, force=True)
    until(lambda: about(served)["generation"] == before.name)


def about(served: Served) -> Any:
    return json.loads(served.ask("/api/about")[2])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_server_follows_the_alias(
    served: Served, searchable: Any, promoted: tuple[str, Callable[[], str]]
) -> None:
    old, promote_new = promoted
    assert about(served)["generation"] == old
    new = promote_new()
    until(lambda: about(served)["generation"] == new)
    image = searchable.pictures[0].read_bytes()
    answer = json.loads(served.ask("/api/search", **form(image, {"top": 3}))[2])
    assert (answer["generation"], len(answer["answers"])) == (new, 3)


# ---- the page -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.fail("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    page.set_default_timeout(30_000)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not [text for text in errors if "401" not in text and "400" not in text]


def test_an_image_is_searched_and_then_a_match(page: Page, served: Served, searchable: Any) -> None:
    page.goto(served.url)
    expect(page.locator("#app")).to_be_visible()  # a user cannot choose a file before
    page.set_input_files("#file", searchable.pictures[0])
    expect(page.locator(".hit")).not_to_have_count(0)
    expect(page.locator("#verdict")).to_contain_text("matches")
    assert page.locator(".hit img").first.evaluate("image => image.decode().then(() => true)")
    page.locator(".hit").nth(1).click()
    page.wait_for_url("**/?crop=*")
    expect(page.locator("#probe-facts")).to_contain_text("camera")
    page.go_back()
    expect(page.locator("#probe-facts")).to_be_empty()


def test_the_page_can_be_used_by_keyboard_only(page: Page, served: Served, searchable: Any) -> None:
    page.goto(f"{served.url}/?crop={searchable.crop_id(0, 0)}")
    expect(page.locator(".hit")).not_to_have_count(0)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    expect(page.locator("#detail")).to_be_visible()
    expect(page.locator("#detail-facts")).to_contain_text("crop:")
    page.keyboard.press("Escape")
    page.keyboard.press("l")
    expect(page.locator("#timeline .dot").first).to_be_visible()
    page.keyboard.press("c")
    expect(page.locator("#places .camera").first).to_be_visible()
    page.keyboard.press("g")
    before = page.url
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: url != before)


def test_filters_apply_and_errors_are_shown(page: Page, served: Served, searchable: Any) -> None:
    page.goto(f"{served.url}/?crop={searchable.crop_id(0, 0)}")
    expect(page.locator(".hit")).not_to_have_count(0)
    page.fill("[name=cameras]", "001")
    page.click("#filters .main")
    expect(page.locator(".hit", has_not_text="camera 001")).to_have_count(0)
    expect(page.locator(".hit", has_text="camera 001")).not_to_have_count(0)
    page.fill("[name=cameras]", "<b>999</b>")
    page.click("#filters .main")
    expect(page.locator("#error")).to_contain_text("<b>999</b>")


def test_an_open_page_shows_that_the_archive_has_changed(
    page: Page, served: Served, searchable: Any, promoted: tuple[str, Callable[[], str]]
) -> None:
    old, promote_new = promoted
    page.goto(f"{served.url}/?crop={searchable.crop_id(0, 0)}")
    expect(page.locator(".hit")).not_to_have_count(0)
    expect(page.locator("#about")).to_contain_text(old)
    new = promote_new()
    until(lambda: about(served)["generation"] == new)
    page.evaluate("refreshAbout()")
    expect(page.locator("#about")).to_contain_text(new)
    expect(page.locator("#verdict")).to_contain_text("search again")
    page.click("#filters .main")
    expect(page.locator("#verdict")).not_to_contain_text("search again")


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
    page.goto(f"{locked.url}/#token={TOKEN}")
    expect(page.locator("#app")).to_be_visible()
    assert TOKEN not in page.url


def test_a_thousand_matches_are_drawn_in_three_seconds(page: Page, served: Served, searchable: Any) -> None:
    page.goto(f"{served.url}/?crop={searchable.crop_id(0, 0)}")
    expect(page.locator(".hit")).not_to_have_count(0)
    drawn = page.evaluate(
        """() => {
            const first = result.answers[0];
            result.answers = Array.from({length: 1000}, (_, index) => ({...first, rank: index + 1}));
            const started = performance.now();
            draw();
            document.body.offsetHeight;
            return performance.now() - started;
        }"""
    )
    assert page.locator(".hit").count() == 1000
    assert drawn < 3000
