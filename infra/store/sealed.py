"""Sealed JSON: a stored document that carries the digest of its own contents."""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from infra.errors import CorruptObject

DIGEST = "digest"
"""The key of the digest in a sealed document."""

# Nested keys are indented further, and no string holds a line break.
_DIGEST_LINE = re.compile(rf'\n  "{DIGEST}": "([0-9a-f]{{64}})",\n'.encode())
_REMEDY = "Restore it from a copy, or delete it and repeat the command that wrote it."


def encode_json(values: Any) -> bytes:
    """Return plain values as the JSON of a record: UTF-8, sorted keys, a newline at the end.

    Raises ValueError for a number that is not finite.
    """
    return (
        json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    ).encode()


def seal(values: Mapping[str, Any]) -> bytes:
    """Return plain values as JSON with their SHA-256, so that `unseal` notices every altered bit.

    Raises ValueError for a number that is not finite, and for values that have a digest already.
    """
    # Keys that are numbers become strings, and those sort in another order.
    plain: dict[str, Any] = json.loads(encode_json(values))
    if DIGEST in plain:
        raise ValueError(f"the values have a key {DIGEST!r} already")
    return encode_json(plain | {DIGEST: _digest_of(plain)})


def unseal(data: bytes, where: str, *, remedy: str = _REMEDY) -> Any:
    """Return the values of a stored document without its digest; `where` is its URI, for errors.

    A document without a digest was written by a release before digests, and is accepted as it is.
    Raises CorruptObject for bytes that are no JSON or differ from what `seal` returned.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as failure:
        raise CorruptObject(
            f"{where} is truncated, altered or no JSON: {failure}", remedy=remedy or _REMEDY
        ) from failure
    if not isinstance(values, dict):
        return values
    if _is_sealed(data):
        values.pop(DIGEST, None)
        return values
    contents = {key: value for key, value in values.items() if key != DIGEST}
    # What has no encoding, such as NaN or half of a surrogate pair, cannot have been sealed.
    with suppress(ValueError, RecursionError):
        if DIGEST not in values:
            if not _has_renamed_digest(values):
                return values
        elif encode_json(contents | {DIGEST: _digest_of(contents)}) == data:
            return contents
    raise CorruptObject(
        f"{where} was altered: its contents do not have the digest that it carries", remedy=remedy or _REMEDY
    )


def _is_sealed(data: bytes) -> bool:
    """Return whether the bytes without the line of the digest have that digest: no need to encode again."""
    line = _DIGEST_LINE.search(data)
    if line is None:
        return False
    digest = hashlib.sha256(data[: line.start() + 1])
    digest.update(data[line.end() :])
    return digest.hexdigest().encode() == line[1]


def _digest_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(encode_json(values)).hexdigest()


def _has_renamed_digest(values: Mapping[str, Any]) -> bool:
    """Return whether a key other than DIGEST holds the digest of the rest: a bit of the key was altered."""
    return any(
        value == _digest_of({key: other for key, other in values.items() if key != name})
        for name, value in values.items()
        if isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2
    )
