"""Traces of erased crops in files: found by their names and numbers, and taken out of documents.

Nothing lists the erased crops, so every name and number in a file is asked for its tombstone.
"""

import html
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.archive.manifest import crop_id_of
from index.archive.reader import crop_id_at
from index.runs.tombstones import ErasedCrops
from infra.errors import ClvrError

REDACTED = "(erased)"
ID_COLUMNS = ("crop_id",)
URI_COLUMNS = ("uri",)
_NUMBER = re.compile(r"(?<![\d.])\d{6,19}(?!\d)")
_URI = re.compile(r"""(?:s3:/|(?<![\w.~%:/-]))/[^\s"'<>|,;()\[\]{}]{3,1024}""")
_TOKEN = re.compile(f"{_URI.pattern}|{_NUMBER.pattern}")


def erased_tokens(text: str, erased: ErasedCrops) -> set[str]:
    """Return the numbers and the URIs of erased crops that occur in a text or in HTML."""
    if not len(erased):
        return set()
    tokens = {match[0] for match in _TOKEN.finditer(text)}
    tokens |= {match[0] for match in _TOKEN.finditer(html.unescape(text))}
    ids = {token: crop_id for token in tokens for crop_id in _ids_of(token)}
    found = erased.erased_ids(ids.values())
    return {token for token, crop_id in ids.items() if crop_id in found}


def rows_of_erased(table: pa.Table, erased: ErasedCrops) -> pa.Array:
    """Return a mask (n,) of the rows (n) of a table whose crop_id or URI is that of an erased crop."""
    mask = np.zeros(table.num_rows, bool)
    for name in ID_COLUMNS:
        if name in table.schema.names and pa.types.is_integer(table[name].type):
            mask |= erased.is_erased(np.asarray(pc.fill_null(table[name], -1)).astype(np.int64))
    for name in URI_COLUMNS:
        if name in table.schema.names and pa.types.is_string(table[name].type):
            uris = [text or "" for text in table[name].to_pylist()]
            for number_of in (crop_number_of, _crop_number_at):
                mask |= erased.is_erased(np.fromiter(map(number_of, uris), np.int64, len(uris)))
    return pa.array(mask)


def crop_number_of(uri: str) -> int:
    """Return the crop_id of `crop:NUMBER` or of a URI."""
    number = uri.removeprefix("crop:")
    return int(number) if number != uri and number.isdecimal() and len(number) < 20 else crop_id_of(uri)


def _crop_number_at(uri: str) -> int:
    """As `crop_number_of`, for a path as people write it: relative, or through a link."""
    if not uri.startswith(("s3://", "crop:")):
        with suppress(ClvrError):
            return crop_id_at(uri)
    return crop_number_of(uri)


def redact(value: Any, erased: ErasedCrops) -> tuple[Any, int]:
    """Return a JSON value in whose texts and numbers no erased crop is named, and how many it named."""
    if isinstance(value, dict):
        pairs = [(redact(key, erased), redact(item, erased)) for key, item in value.items()]
        return {key: item for (key, _), (item, _) in pairs}, sum(a + b for (_, a), (_, b) in pairs)
    if isinstance(value, list):
        items = [redact(item, erased) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return value, 0
    text = str(value)
    tokens = erased_tokens(text, erased)
    if not tokens:
        return value, 0
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, REDACTED)
    return text, len(tokens)


def _ids_of(token: str) -> Iterator[int]:
    if token.isdecimal():
        yield int(token) & (2**63 - 1)
    else:
        yield crop_id_of(token)
