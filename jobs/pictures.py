"""A stream of decoded pictures: many fetches in flight, decoding on threads, in bounded memory."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clvr_model.preprocessing import decode
from infra.errors import BadInput, ClvrError, ObjectChanged, ObjectMissing, StoreDenied, UnreadablePicture
from infra.store import Fetched, Store, open_store

FETCH_CAUSES: dict[type[ClvrError], str] = {
    ObjectMissing: "missing",
    StoreDenied: "denied",
    ObjectChanged: "changed",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one picture is not to be had: `stage` is fetch or decode, `cause` one word, `detail` one line."""

    stage: str
    cause: str
    detail: str


def stream_pictures(
    store: Store,
    keys: Sequence[str],
    *,
    etags: Sequence[str] | None = None,
    in_flight: int = 64,
    decoders: int = 1,
    ahead: int = 64,
) -> Iterator[tuple[int, NDArray[np.uint8] | Failure]]:
    """Yield `(position in keys, uint8 (299, 299, 3) RGB or Failure)`, every position once, in any order.

    etags: what the manifest saw; an object that has changed since is a Failure with cause `changed`.
    At most `in_flight` fetches and `ahead` decoded pictures (268 KB each) are held. A store that cannot
    be reached at all is not a fault of one picture: StoreUnreachable is raised, not yielded.
    """
    waiting: deque[tuple[int, Future[NDArray[np.uint8] | Failure]]] = deque()
    with ThreadPoolExecutor(decoders, thread_name_prefix="decode") as pool:
        for position, fetched in store.get_many(keys, in_flight=in_flight):
            expected = etags[position] if etags is not None else ""
            waiting.append((position, pool.submit(_decoded, fetched, expected)))
            if len(waiting) >= ahead:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _decoded(fetched: Fetched | ClvrError, expected_etag: str) -> NDArray[np.uint8] | Failure:
    if isinstance(fetched, ClvrError):
        cause = FETCH_CAUSES.get(type(fetched))
        if cause is None:
            raise fetched
        return Failure("fetch", cause, fetched.message)
    if expected_etag and fetched.etag != expected_etag:
        return Failure("fetch", "changed", f"etag {fetched.etag} now, {expected_etag} when it was listed")
    try:
        return decode(fetched.data)
    except UnreadablePicture as error:
        return Failure("decode", error.cause, error.message)


def common_store(uris: Sequence[str]) -> tuple[Store, list[str]]:
    """Open the deepest folder that holds all the URIs, and return their keys in it.

    Raises BadInput where they have none in common, such as two buckets.
    """
    folder = os.path.commonpath([uri.rpartition("/")[0] for uri in uris]).replace("s3:/", "s3://", 1)
    if folder in ("", "/", "s3://", "s3:"):
        raise BadInput("the pictures lie in several buckets or disks", remedy="put them below one folder")
    store = open_store(folder)
    return store, [uri.removeprefix(folder).lstrip("/") for uri in uris]
