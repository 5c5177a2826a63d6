"""A sealed document notices every altered bit; one of an older release is read as it is."""

import json
from typing import Any

import pytest

from infra.errors import CorruptObject
from infra.store.sealed import encode_json, seal, unseal

VALUES: dict[str, Any] = {
    "name": "Größe",
    "rows": [1, 2.5, None, True],
    "labels": {"10": "Golf", "9": "Astra"},
    "sha256": "0" * 64,
}


def test_values_are_read_back_and_equal_values_give_equal_bytes() -> None:
    assert unseal(seal(VALUES), "a") == VALUES
    assert seal(dict(reversed(VALUES.items()))) == seal(VALUES)
    assert unseal(seal({"labels": {10: "Golf", 9: "Astra"}}), "a")["labels"] == VALUES["labels"]


def test_every_altered_bit_is_noticed() -> None:
    data = seal(VALUES)
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptObject, match=r"s3://runs/a\.json"):
            unseal(bytes(altered), "s3://runs/a.json")


@pytest.mark.parametrize("cut", [0, 1, 100, -2, -1])
def test_a_truncated_document_is_noticed(cut: int) -> None:
    with pytest.raises(CorruptObject, match="a"):
        unseal(seal(VALUES)[:cut], "a")


def test_deep_json_is_no_traceback() -> None:
    with pytest.raises(CorruptObject, match="no JSON"):
        unseal(b"[" * 200_000, "a")


def test_a_document_of_an_older_release_is_read_as_it_is() -> None:
    assert unseal(encode_json(VALUES), "a") == VALUES
    assert unseal(json.dumps(VALUES).encode(), "a") == VALUES
    assert unseal(b"[1, 2]", "a") == [1, 2]


def test_numbers_that_are_not_finite_and_a_second_digest_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        seal({"a": float("nan")})
    with pytest.raises(ValueError, match="digest"):
        seal({"digest": ""})
