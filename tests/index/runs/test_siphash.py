"""SipHash-2-4 against the vectors of its authors and a plain implementation."""

import numpy as np
import pytest

from index.runs.siphash import siphash

KEY = bytes(range(16))
MASK = 2**64 - 1


def plain_siphash(key: bytes, number: int) -> int:
    """The algorithm of the paper, with Python's integers."""

    def rotate(word: int, bits: int) -> int:
        return (word << bits | word >> (64 - bits)) & MASK

    def mix(rounds: int) -> None:
        for _ in range(rounds):
            for first, second, left, half in ((0, 1, 13, True), (2, 3, 16, False)):
                v[first] = (v[first] + v[second]) & MASK
                v[second] = rotate(v[second], left) ^ v[first]
                if half:
                    v[first] = rotate(v[first], 32)
            for first, second, left, half in ((0, 3, 21, False), (2, 1, 17, True)):
                v[first] = (v[first] + v[second]) & MASK
                v[second] = rotate(v[second], left) ^ v[first]
                if half:
                    v[first] = rotate(v[first], 32)

    halves = [int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")] * 2
    states = b"somepseudorandomlygeneratedbytes"
    v = [int.from_bytes(states[8 * i : 8 * i + 8], "big") ^ halves[i] for i in range(4)]
    for message in (number & MASK, 8 << 56):
        v[3] ^= message
        mix(2)
        v[0] ^= message
    v[2] ^= 0xFF
    mix(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def test_it_is_the_hash_of_the_paper() -> None:
    number = np.frombuffer(bytes(range(8)), np.int64)
    assert siphash(KEY, number)[0].tobytes() == bytes.fromhex("6224939a79f5f593")  # vector 8 of 64


def test_every_number_of_several_blocks_has_the_hash_of_the_plain_algorithm() -> None:
    rng = np.random.default_rng(3)
    numbers = rng.integers(-(2**63), 2**63, 40_000)
    hashes = siphash(KEY[::-1], numbers)
    for row in (0, 1, 16_383, 16_384, 39_999):
        assert int(hashes[row]) == plain_siphash(KEY[::-1], int(numbers[row]))
    assert len(np.unique(hashes)) == len(numbers)


def test_slices_and_no_numbers_are_fine() -> None:
    numbers = np.arange(10, dtype=np.int64)
    assert siphash(KEY, numbers[::3]).tolist() == siphash(KEY, numbers)[::3].tolist()
    assert siphash(KEY, numbers[:0]).shape == (0,)


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes, not 15"):
        siphash(KEY[:15], np.arange(3))
