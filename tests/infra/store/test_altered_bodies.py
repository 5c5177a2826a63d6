"""Bodies against the MD5 in their etags: a flip in flight is healed, a damaged object is refused."""

import hashlib
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from infra.errors import CorruptObject, StoreUnreachable
from infra.store import Store, StoreSettings, open_store

BODY = bytes(range(256)) * 80


def flipped(data: bytes, bit: int = 4321) -> bytes:
    altered = bytearray(data)
    altered[bit // 8] ^= 1 << bit % 8
    return bytes(altered)


@dataclass
class Bucket:
    """The objects of an S3 server; `in_flight` are bodies that its next GETs return instead."""

    endpoint: str = ""
    bodies: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    encrypted: set[str] = field(default_factory=set)
    in_flight: deque[bytes] = field(default_factory=deque)
    gets: Counter[str] = field(default_factory=Counter)

    def put(self, key: str, data: bytes, *, etag: str | None = None) -> None:
        self.bodies[key] = data
        self.etags[key] = etag or hashlib.md5(data, usedforsecurity=False).hexdigest()

    def store(self) -> Store:
        settings = StoreSettings(
            endpoint=self.endpoint, access_key="a", secret_key="b", region="us-east-1", allow_http=True
        )
        return open_store("s3://bucket", settings)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    served = Bucket()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            key = self.path.removeprefix("/bucket/").partition("?")[0]
            served.gets[key] += 1
            self._answer(key, served.in_flight.popleft() if served.in_flight else served.bodies[key])

        def do_HEAD(self) -> None:
            self._answer(self.path.removeprefix("/bucket/"), b"")

        def _answer(self, key: str, data: bytes) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{served.etags[key]}"')
            self.send_header("Last-Modified", "Sun, 22 Nov 2026 00:00:00 GMT")
            self.send_header("Content-Length", str(len(data)))
            if key in served.encrypted:
                self.send_header("x-amz-server-side-encryption", "aws:kms")
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.endpoint = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    yield served
    server.shutdown()
    server.server_close()


def test_a_flip_in_flight_is_read_again(bucket: Bucket) -> None:
    bucket.put("a.jpg", BODY)
    store = bucket.store()
    for bit in range(0, 8 * len(BODY), 12_345):
        bucket.in_flight.append(flipped(BODY, bit))
        assert store.get("a.jpg") == BODY
    bucket.in_flight.extend([flipped(BODY, 1), flipped(BODY, 2)])
    assert store.get("a.jpg") == BODY


def test_a_damaged_object_is_refused_once_an_etag_of_its_store_was_an_md5(bucket: Bucket) -> None:
    bucket.put("a.jpg", BODY)
    bucket.put("damaged.jpg", BODY)
    bucket.bodies["damaged.jpg"] = flipped(BODY)
    store = bucket.store()
    assert store.get("a.jpg") == BODY
    with pytest.raises(CorruptObject, match=r"s3://bucket/damaged\.jpg was altered"):
        store.get("damaged.jpg")
    assert bucket.gets["damaged.jpg"] == 2


def test_a_store_whose_etags_are_no_md5_is_recognised_by_its_first_objects(bucket: Bucket) -> None:
    for number in range(20):
        bucket.put(f"{number}.jpg", BODY, etag=f"{number:032x}")
    store = bucket.store()
    assert [store.get(f"{number}.jpg") for number in range(20)] == [BODY] * 20
    assert [bucket.gets[f"{number}.jpg"] for number in range(20)] == [2] * 5 + [1] * 15


def test_an_encrypted_object_among_others_is_read(bucket: Bucket) -> None:
    bucket.put("a.jpg", BODY)
    bucket.put("secret.jpg", BODY, etag="0" * 32)
    bucket.encrypted.add("secret.jpg")
    store = bucket.store()
    assert store.get("a.jpg") == store.get("secret.jpg") == BODY


def test_etags_of_uploads_in_parts_are_not_compared(bucket: Bucket) -> None:
    bucket.put("a.jpg", BODY, etag="0" * 32 + "-2")
    assert bucket.store().get("a.jpg") == BODY
    assert bucket.gets["a.jpg"] == 1


def test_other_bytes_in_every_read_are_no_answer(bucket: Bucket) -> None:
    bucket.put("a.jpg", BODY)
    bucket.in_flight.extend(flipped(BODY, bit) for bit in range(4))
    with pytest.raises(StoreUnreachable, match="arrived with other bytes in 4 attempts"):
        bucket.store().get("a.jpg")
