"""kill -9 of the server in the middle of a case: what it confirmed is kept, and the page goes on."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.integration, pytest.mark.slow]


class Server:
    """A `clvr serve` that can be killed and started again on its port."""

    def __init__(self, archive: Any, cases: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = os.environ | archive.environment() | {"CLVR_CASES": str(cases)}
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "jobs", "serve", "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=self.environment)
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/healthz", timeout=2):  # noqa: S310
                return
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def post(self, path: str, document: Any) -> Any:
        request = urllib.request.Request(  # noqa: S310
            self.url + path, json.dumps(document).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.loads(answer.read())


@pytest.fixture
def server(searchable: Any, tmp_path: Path) -> Iterator[Server]:
    server = Server(searchable, tmp_path / "cases.db")
    yield server
    server.kill()


def test_what_was_confirmed_is_kept_and_the_page_goes_on(
    page: Page, server: Server, searchable: Any, tmp_path: Path
) -> None:
    case = server.post("/api/cases", {"number": "26-117", "title": ""})["id"]
    page.goto(f"{server.url}/?probe=crop:{searchable.crop_id(0, 0)}&case={case}")
    page.locator(".hit .judge.confirmed").first.click()
    expect(page.locator(".hit").first).to_have_attribute("data-verdict", "confirmed")

    confirmed: list[int] = []

    def judge() -> None:
        with contextlib.suppress(OSError, urllib.error.URLError):
            for place in range(10_000):
                crop_id = searchable.crop_id(place % 12, place % 5)
                verdict = ("confirmed", "rejected")[place % 2]
                judgement = {
                    "crop": f"crop:{crop_id}",
                    "verdict": verdict,
                    "search_id": "",
                    "note": str(place),
                }
                server.post(f"/api/cases/{case}/judgements", judgement)
                confirmed.append(place)

    def upload() -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = b'--XX\r\nContent-Disposition: form-data; name="picture"; filename="x.jpg"\r\n\r\n'
            connection.sendall(
                b"POST /api/uploads HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000000\r\n"
                b"Content-Type: multipart/form-data; boundary=XX\r\n\r\n" + head + b"\xff\xd8" * 1000
            )
            connection.recv(100)

    threads = [threading.Thread(target=judge), threading.Thread(target=upload)]
    for thread in threads:
        thread.start()
    while len(confirmed) < 40:
        time.sleep(0.01)
    server.kill()
    for thread in threads:
        thread.join(30)

    page.locator(".hit .search-from").nth(1).click()
    expect(page.locator("#error")).to_contain_text("The server does not answer")
    expect(page.locator("#error")).to_contain_text("goes on as soon as it answers")
    expect(page.locator(".hit")).to_have_count(0)
    with contextlib.closing(sqlite3.connect(tmp_path / "cases.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        notes = [row[0] for row in database.execute("SELECT note FROM judgements WHERE note != ''")]
        assert database.execute("SELECT count(*) FROM uploads").fetchone() == (0,)
    # Each confirmed one, at most one that was written and whose answer was lost, and none twice.
    assert [int(note) for note in notes] in (confirmed, [*confirmed, len(confirmed)])

    server.start()
    expect(page.locator(".hit")).not_to_have_count(0, timeout=20_000)
    expect(page.locator("#error")).to_be_hidden()
    page.locator(".hit .judge.unsure").first.click()
    expect(page.locator(".hit").first).to_have_attribute("data-verdict", "unsure")

    server.kill()
    page.locator(".hit .judge.confirmed").nth(1).click()
    page.click("#case-tab")
    page.fill(".note-form textarea", "seen at the bridge")
    page.click(".note-form button")
    expect(page.locator("#error")).to_contain_text("does not answer")
    expect(page.locator(".note-form textarea")).to_have_value("seen at the bridge")
    server.start()
    expect(page.locator(".note-item")).to_have_count(1, timeout=20_000)
    expect(page.locator(".note-item")).to_contain_text("seen at the bridge")
    expect(page.locator("#case-panel .judge.confirmed[aria-pressed=true]")).not_to_have_count(0)
    page.click("#gallery-tab")
    expect(page.locator(".hit").nth(1)).to_have_attribute("data-verdict", "confirmed")
