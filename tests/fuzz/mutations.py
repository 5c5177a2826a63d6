"""Seeded mutations of bytes, of tables and of JSON. Equal seeds give equal items."""

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_ODD_TEXT = (
    b"",
    b"NaN",
    b"-1",
    b"1e400",
    b"9" * 40,
    b"2026-13-45T99:99:99Z",
    b"004",
    b"false",
    b'"',
    b'""',
    b",",
    b";",
    b"\t",
    b"\r",
    b"\n",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"s3://",
    b"../../etc/passwd",
    b"//",
    b"x" * 5000,
    b"crop:" + b"9" * 30,
    b"{",
    b"[" * 2000,
    b"\\ud800",
    b"null",
)
_ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    2**63,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\ud800",
    "x" * 10_000,
    [],
    {},
    [[]],
    {"": None},
    [None] * 1000,
    "2026-99-99",
    "../..",
    "\0",
)


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return bytes with one to eight random changes; `others` lend pieces."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        rng.choice(_CHANGES)(changed, others, rng)
    return bytes(changed[: 1 << 20])


def mutate_json(text: bytes, rng: random.Random) -> bytes:
    """Return a JSON document with a value, a key or some bytes changed."""
    if rng.random() < 0.3:
        return mutate(text, [text], rng)
    document = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        document = _change_value(copy.deepcopy(document), rng)
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _change_value(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.95:
        name = rng.choice(sorted(value, key=str))
        action = rng.random()
        if action < 0.15:
            del value[name]
        elif action < 0.25:
            value[name + rng.choice(("x", "", " "))] = rng.choice(_ODD_VALUES)
        else:
            value[name] = _change_value(value[name], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        value[place] = _change_value(value[place], rng)
        return value
    return rng.choice(_ODD_VALUES)


def _place(data: bytearray, rng: random.Random) -> int:
    # Headers decide most, so half of the changes are there.
    end = min(len(data), 200) if rng.random() < 0.5 else len(data)
    return rng.randrange(max(1, end))


def _flip(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    if data:
        data[_place(data, rng) % len(data)] ^= 1 << rng.randrange(8)


def _set(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    if data:
        data[_place(data, rng) % len(data)] = rng.choice(
            (0, 1, 0x7F, 0x80, 0xD8, 0xD9, 0xDA, 0xFF, rng.randrange(256))
        )


def _number(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    value, place = rng.choice(_NUMBERS), _place(data, rng)
    packed = struct.pack(
        rng.choice("<>") + rng.choice(("H", "I")), value & 0xFFFF if rng.random() < 0.5 else 0
    )
    data[place : place + len(packed)] = packed


def _insert(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    place = _place(data, rng)
    data[place:place] = rng.choice((rng.choice(_ODD_TEXT), rng.randbytes(rng.randrange(64))))


def _delete(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    place = _place(data, rng)
    del data[place : place + rng.choice((1, 1, 2, 4, 64, 1000))]


def _repeat(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    place = _place(data, rng)
    piece = bytes(data[place : place + rng.choice((1, 4, 16, 200))])
    data[place:place] = piece * rng.choice((1, 2, 50, 500))


def _truncate(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _splice(data: bytearray, others: list[bytes], rng: random.Random) -> None:
    other = rng.choice(others)
    start, place = rng.randrange(len(other) + 1), _place(data, rng)
    data[place : place + rng.choice((0, 10, 1000))] = other[start : start + rng.randrange(1, 2000)]


_CHANGES: tuple[Callable[[bytearray, list[bytes], random.Random], None], ...] = (
    _flip,
    _flip,
    _set,
    _set,
    _number,
    _number,
    _insert,
    _delete,
    _repeat,
    _truncate,
    _splice,
)
