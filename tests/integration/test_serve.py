"""`clvr serve`: the server against hostile requests, its token, and the alias."""

import json
import re
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hostile_images import progressive_jpeg
from serving import Served, about, form, until

from infra.errors import BadSetting
from jobs.serve.request import ServeRequest, make_policy, print_address

pytestmark = pytest.mark.integration

TOKEN = "a-token-that-is-long-enough"


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
