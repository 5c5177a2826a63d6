"""Credentials, public buckets, cold storage: what is sent, and what a refusal is called."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from infra.errors import (
    BadInput,
    ClvrError,
    CredentialsRejected,
    FileMissing,
    ObjectArchived,
    ObjectMissing,
    StoreDenied,
    StoreError,
)
from infra.store import Store, StoreSettings, open_store
from infra.store.s3 import session_with_credentials


class Answering(ThreadingHTTPServer):
    """A server that gives every request one answer of S3 and keeps the headers of the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.code = 200, ""
        self.headers: list[dict[str, str]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def settings(self, **changes: object) -> StoreSettings:
        plain = StoreSettings(
            endpoint=f"http://127.0.0.1:{self.server_port}",
            access_key="key",
            secret_key="secret",
            allow_http=True,
            retries=0,
        )
        return replace(plain, **changes)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: Answering

    def do_GET(self) -> None:
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        body = b"content"
        if self.server.code:
            body = f"<?xml version='1.0'?><Error><Code>{self.server.code}</Code></Error>".encode()
        self.send_response(self.server.status)
        for name, value in (
            ("Content-Length", str(len(body))),
            ("ETag", '"e"'),
            ("Last-Modified", "Mon, 05 Jan 2026 10:00:00 GMT"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  # the name that http.server calls

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Answering]:
    server = Answering()
    yield server
    server.shutdown()
    server.server_close()


def test_a_signed_request_carries_credentials_and_an_unsigned_one_does_not(server: Answering) -> None:
    assert open_store("s3://bucket", server.settings()).get("a") == b"content"
    assert "authorization" in server.headers[-1]
    for unsigned in (
        server.settings(unsigned=True),
        server.settings(unsigned=True, access_key=None, secret_key=None),
    ):
        assert open_store("s3://bucket", unsigned).get("a") == b"content"
        assert "authorization" not in server.headers[-1]


def test_whoever_reads_a_bucket_of_requester_pays_says_so(server: Answering) -> None:
    open_store("s3://bucket", server.settings()).get("a")
    assert "x-amz-request-payer" not in server.headers[-1]
    open_store("s3://bucket", server.settings(request_payer=True)).get("a")
    assert server.headers[-1]["x-amz-request-payer"] == "requester"


def test_the_environment_names_public_buckets_and_who_pays() -> None:
    for name in ("AWS_SKIP_SIGNATURE", "AWS_NO_SIGN_REQUEST"):
        assert StoreSettings.from_env({name: "true"}).unsigned
    settings = StoreSettings.from_env({"AWS_REQUEST_PAYER": "requester"})
    assert settings.request_payer and not settings.unsigned
    assert StoreSettings.from_env(settings.environment()) == settings
    environment = {"CLVR_PUBLIC_BUCKETS": "open-data, other"}
    assert settings.for_bucket("open-data", environment).unsigned
    assert settings.for_bucket("other", environment).unsigned
    assert not settings.for_bucket("mine", environment).unsigned


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (403, "InvalidObjectState", ObjectArchived, "in cold storage"),
        (403, "AccessDenied", StoreDenied, "is denied"),
        (403, "ExpiredToken", CredentialsRejected, "is denied"),
        (403, "SignatureDoesNotMatch", CredentialsRejected, "is denied"),
        (404, "NoSuchKey", ObjectMissing, "no object"),
    ],
)
def test_a_refusal_has_its_own_cause(
    server: Answering, status: int, code: str, kind: type[ClvrError], message: str
) -> None:
    server.status, server.code = status, code
    with pytest.raises(ClvrError, match=message) as caught:
        open_store("s3://bucket", server.settings()).get("InvalidObjectState/a.jpg")
    assert type(caught.value) is kind
    assert "\n" not in caught.value.message


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """A bucket's store without any credentials, on a machine without a role."""
    import os

    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    session_with_credentials.cache_clear()
    yield open_store("s3://some-bucket")
    session_with_credentials.cache_clear()


def test_missing_credentials_are_called_missing_and_within_seconds(nobody: Store) -> None:
    started = time.monotonic()
    for act in (
        nobody.ensure,
        lambda: nobody.get("a"),
        lambda: nobody.head("a"),
        lambda: list(nobody.list()),
        nobody.folders,
        lambda: nobody.put("a", b"x"),
        nobody.create_bucket,
    ):
        with pytest.raises(StoreDenied, match="no credentials for s3://some-bucket") as caught:
            act()
        assert "AWS_ACCESS_KEY_ID" in caught.value.remedy and "AWS_SKIP_SIGNATURE" in caught.value.remedy
    assert time.monotonic() - started < 60  # seven calls; one took 39 s


def test_a_profile_that_does_not_exist_is_named(nobody: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "absent-profile")
    with pytest.raises(StoreDenied, match="absent-profile"):
        open_store("s3://some-bucket").get("a")


def test_a_message_about_a_local_path_never_speaks_of_a_server(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("folder/a", b"x")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "file").write_bytes(b"x")
    errors: list[ClvrError] = []
    for act in (
        lambda: store.get("folder"),
        lambda: store.get("absent"),
        lambda: store.get("self"),
        lambda: store.get("file/below"),
        lambda: store.get("n" * 300),
        lambda: store.put("file/below", b"x"),
        lambda: store.put("n" * 300, b"x"),
        lambda: store.get("a//b"),
        lambda: store.get("caf\udce9"),
        lambda: store.list("../up").__next__(),
        lambda: open_store(str(tmp_path / "absent")).get("a"),
        lambda: open_store(str(tmp_path / "file")).get("a"),
        lambda: open_store(str(tmp_path / "file")).ensure(),
    ):
        with pytest.raises((StoreError, BadInput)) as caught:
            act()
        errors.append(caught.value)
    for error in errors:
        text = f"{error.message} {error.remedy}"
        assert "AWS" not in text and "server" not in text and "endpoint" not in text, text
        assert error.remedy and "\n" not in text
    assert [type(error) for error in errors[:5]] == [FileMissing] * 5


def test_a_path_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a local path"):
        open_store(f"{tmp_path}/caf\udce9")
