"""SipHash-2-4 of 64-bit numbers: a keyed hash, not to be computed or inverted without the key.

Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012.
"""

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16
_BLOCK_ROWS = 16_384  # four states of 128 KiB stay in the second-level cache
_STATES = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
_LENGTH = np.uint64(8 << 56)  # the final block of a message of 8 bytes

Words = NDArray[np.uint64]


def siphash(key: bytes, numbers: NDArray[np.int64]) -> Words:
    """Return SipHash-2-4, uint64 (n,), of each number (n,) as 8 little-endian bytes.

    key: 16 bytes. Linear: about 0.1 s per million numbers. Raises ValueError for another length of the key.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key of SipHash has {KEY_BYTES} bytes, not {len(key)}")
    words = np.ascontiguousarray(numbers, np.int64).view(np.uint64)
    hashes = np.empty(len(words), np.uint64)
    for start in range(0, len(words), _BLOCK_ROWS):
        hashes[start : start + _BLOCK_ROWS] = _siphash_block(key, words[start : start + _BLOCK_ROWS])
    return hashes


def _siphash_block(key: bytes, words: Words) -> Words:
    k0, k1 = (int.from_bytes(half, "little") for half in (key[:8], key[8:]))
    v0, v1, v2, v3 = (
        np.full(len(words), state ^ part, np.uint64)
        for state, part in zip(_STATES, (k0, k1, k0, k1), strict=True)
    )
    for message in (words, _LENGTH):
        v3 ^= message
        _rounds(2, v0, v1, v2, v3)
        v0 ^= message
    v2 ^= np.uint64(0xFF)
    _rounds(4, v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def _rounds(count: int, v0: Words, v1: Words, v2: Words, v3: Words) -> None:
    """Mix the four states (n,) in place."""
    for _ in range(count):
        v0 += v1
        _rotate_left(v1, 13)
        v1 ^= v0
        _rotate_left(v0, 32)
        v2 += v3
        _rotate_left(v3, 16)
        v3 ^= v2
        v0 += v3
        _rotate_left(v3, 21)
        v3 ^= v0
        v2 += v1
        _rotate_left(v1, 17)
        v1 ^= v2
        _rotate_left(v2, 32)


def _rotate_left(words: Words, bits: int) -> None:
    high = words >> np.uint64(64 - bits)
    words <<= np.uint64(bits)
    words |= high
