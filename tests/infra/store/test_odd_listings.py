"""A bucket's listing with keys that obstore cannot hold: SeaweedFS normalises them, S3 does not."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape

import pytest

from infra.store import FOLDER_MARKER, UNADDRESSABLE, Store, StoreSettings, UnusableObject, open_store

KEYS = ["/lead.jpg", "a/../up.jpg", "a//b.jpg", "a/c.jpg", "b/d.jpg", "m.jpg/", "z/e\tf.jpg", "z/g.jpg"]


class _S3(BaseHTTPRequestHandler):
    """Lists KEYS in pages of two as S3 does; no object exists."""

    keys = sorted(KEYS)

    def do_GET(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        encode = quote if query.get("encoding-type") == "url" else escape
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        found = [key for key in self.keys if key.startswith(prefix) and key > after]
        page, more = found[:2], len(found) > 2
        if delimiter:
            page, more = found, False
        folders, contents = set(), []
        for key in page:
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                contents.append(key)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        body = (
            "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>"
            f"<Name>bucket</Name><KeyCount>{len(page)}</KeyCount><MaxKeys>1000</MaxKeys>"
            + ("<EncodingType>url</EncodingType>" if encode is quote else "")
            + f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            + "".join(
                f"<Contents><Key>{encode(key)}</Key><LastModified>2026-01-05T10:00:00.000Z</LastModified>"
                f'<ETag>"e"</ETag><Size>{0 if key.endswith("/") else 4}</Size></Contents>'
                for key in contents
            )
            + "".join(
                f"<CommonPrefixes><Prefix>{encode(name)}</Prefix></CommonPrefixes>"
                for name in sorted(folders)
            )
            + "</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def bucket_of_s3() -> Iterator[Store]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _S3)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield open_store(
        "s3://bucket",
        StoreSettings(
            endpoint=f"http://127.0.0.1:{server.server_port}",
            access_key="key",
            secret_key="secret",
            allow_http=True,
            retries=0,
        ),
    )
    server.shutdown()
    server.server_close()


def test_every_key_is_listed_once_or_named_as_unusable(bucket_of_s3: Store) -> None:
    unusable: list[UnusableObject] = []
    keys = [info.key for info in bucket_of_s3.list(unusable=unusable.append)]
    assert sorted(keys) == ["a/c.jpg", "b/d.jpg", "z/g.jpg"]
    assert {(found.key, found.cause) for found in unusable} == {
        ("/lead.jpg", UNADDRESSABLE),
        ("a/../up.jpg", UNADDRESSABLE),
        ("a//b.jpg", UNADDRESSABLE),
        ("z/e\tf.jpg", UNADDRESSABLE),
        ("m.jpg/", FOLDER_MARKER),
    }


def test_the_same_below_a_prefix(bucket_of_s3: Store) -> None:
    unusable: list[UnusableObject] = []
    assert [info.key for info in bucket_of_s3.list("a", unusable=unusable.append)] == ["a/c.jpg"]
    assert sorted(found.key for found in unusable) == ["a/../up.jpg", "a//b.jpg"]
    below = open_store("s3://bucket/z", bucket_of_s3.settings)
    unusable.clear()
    assert [info.key for info in below.list(unusable=unusable.append)] == ["g.jpg"]
    assert [found.key for found in unusable] == ["e\tf.jpg"]


def test_levels_have_their_folders_and_objects(bucket_of_s3: Store) -> None:
    assert bucket_of_s3.folders() == ["a", "b", "m.jpg", "z"]
    level = bucket_of_s3.level("a")
    assert [found.key for found in level.objects if not isinstance(found, UnusableObject)] == ["a/c.jpg"]
    assert {found.key for found in level.objects if isinstance(found, UnusableObject)} == {"a//", "a/../"}
