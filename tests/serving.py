"""A running page for tests, on a free port of the loopback."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import uvicorn

from jobs.search.searcher import Searcher
from jobs.serve.access import AccessPolicy, Limits
from jobs.serve.app import make_app
from jobs.serve.connections import server_config


class Served:
    """A server on a free port of the loopback, in a thread."""

    def __init__(self, searcher: Searcher, policy: AccessPolicy, limits: Limits, **options: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        app = make_app(searcher, policy, limits=limits, **options)
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

    def json(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        sent = headers if body is None else {"Content_Type": "application/json", **headers}
        status, _, answer = self.ask(path, data, method, **sent)
        return status, json.loads(answer)


def form(
    image: bytes | None = None, rules: Any = None, crop: str | None = None, **fields: object
) -> dict[str, Any]:
    parts = [
        f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()
        for name, value in fields.items()
    ]
    if image is not None:
        parts.append(b'Content-Disposition: form-data; name="picture"; filename="x.jpg"\r\n\r\n' + image)
    if rules is not None:
        text = rules if isinstance(rules, str) else json.dumps(rules)
        parts.append(b'Content-Disposition: form-data; name="rules"\r\n\r\n' + text.encode())
    if crop is not None:
        parts.append(b'Content-Disposition: form-data; name="crop"\r\n\r\n' + crop.encode())
    body = b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + b"--XX--\r\n"
    return {"body": body, "Content_Type": "multipart/form-data; boundary=XX"}


def about(served: Served) -> Any:
    return served.json("/api/about")[1]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
