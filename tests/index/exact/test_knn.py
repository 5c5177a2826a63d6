"""The scan finds what a float64 sort finds, whatever the blocks: ties by smaller id, near-ties exactly."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.exact import prefilter
from index.exact.knn import NO_ID, nearest
from infra.errors import BadInput, BadSetting


@pytest.fixture(params=["float32", "int8"], autouse=True)
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test by either product, however few the queries are and however fast the machine is."""
    monkeypatch.setattr(prefilter, "_FEW", 1 if request.param == "int8" else 10**9)
    monkeypatch.setattr(prefilter, "_NARROW", 2)
    monkeypatch.setattr(prefilter, "_integers_are_faster", lambda: True)


Block = tuple[NDArray[np.int64], NDArray[np.float32]]


def reference(
    queries: NDArray[np.float32], ids: NDArray[np.int64], vectors: NDArray[np.float32], k: int
) -> NDArray[np.int64]:
    squared = np.square(queries.astype(np.float64)[:, None] - vectors[None]).sum(-1)
    found = np.full((len(queries), k), NO_ID)
    for row in range(len(queries)):
        order = np.lexsort((ids, squared[row]))[:k]
        found[row, : len(order)] = ids[order]
    return found


def cut(ids: NDArray[np.int64], vectors: NDArray[np.float32], size: int) -> Iterator[Block]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size], vectors[start : start + size]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    queries=st.integers(1, 20),
    rows=st.integers(1, 150),
    dimension=st.integers(1, 5),
    values=st.integers(0, 3),
    offset=st.sampled_from([0, 2**22]),
    k=st.integers(1, 12),
    size=st.integers(1, 80),
)
def test_equals_the_reference_on_small_integers_full_of_ties(
    seed: int, queries: int, rows: int, dimension: int, values: int, offset: int, k: int, size: int
) -> None:
    rng = np.random.default_rng(seed)
    asked, vectors = (
        (offset + rng.integers(0, values + 1, (n, dimension))).astype(np.float32) for n in (queries, rows)
    )
    ids = rng.permutation(rows * 3)[:rows]
    found, _ = nearest(asked, cut(ids, vectors, size), k)
    assert found.tolist() == reference(asked, ids, vectors, k).tolist()


@pytest.mark.parametrize("k", [1, 10, 300])
def test_equals_the_reference_where_float32_cannot_tell_the_order(k: int) -> None:
    rng = np.random.default_rng(k)
    vectors = (50 + 1e-4 * rng.standard_normal((900, 300))).astype(np.float32)
    asked, ids = vectors[:600] + np.float32(1e-5), np.arange(900)
    found, distances = nearest(asked, cut(ids, vectors, 250), k)
    assert found.tolist() == reference(asked, ids, vectors, k).tolist()
    assert (np.diff(distances, axis=1) >= 0).all()


def test_distances_are_euclidean_and_exact_for_equal_pictures() -> None:
    vectors = np.array([[0, 0], [3, 4], [1e4, 1e4]], np.float32)
    ids, distances = nearest(vectors[[0, 2]], [(np.array([7, 8, 9]), vectors)], 2)
    assert ids.tolist() == [[7, 8], [9, 8]]
    assert distances.dtype == np.float32
    assert distances[:, 0].tolist() == [0.0, 0.0]
    assert distances[0, 1] == 5.0


def test_neither_the_blocks_nor_their_order_matter() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.integers(0, 4, (500, 4)).astype(np.float32)
    ids, asked = rng.permutation(500), vectors[:30]
    blocks = list(cut(ids, vectors, 60))
    once = nearest(asked, [(ids, vectors)], 9)
    again = nearest(asked, reversed(blocks), 9)
    assert once[0].tolist() == again[0].tolist()
    assert once[1].tolist() == again[1].tolist()


def test_a_query_never_gets_a_forbidden_id() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((80, 6)).astype(np.float32)
    ids = np.arange(80)
    own, _ = nearest(vectors, cut(ids, vectors, 33), 3, forbidden=ids)
    assert own.tolist() == [row[1:] for row in reference(vectors, ids, vectors, 4).tolist()]
    two = np.stack([ids, (ids + 1) % 80], axis=1)
    found, _ = nearest(vectors, cut(ids, vectors, 33), 78, forbidden=two)
    for row in range(80):
        assert sorted(found[row]) == sorted(set(range(80)) - set(two[row]))


def test_fewer_rows_than_asked_for_leave_empty_places() -> None:
    vectors = np.eye(2, dtype=np.float32)
    ids, distances = nearest(vectors[:1], [(np.array([4, 5]), vectors)], 4, forbidden=np.array([5]))
    assert ids.tolist() == [[4, NO_ID, NO_ID, NO_ID]]
    assert distances.tolist() == [[0.0, np.inf, np.inf, np.inf]]
    nothing, _ = nearest(vectors, [], 2)
    assert (nothing == NO_ID).all()
    assert nearest(np.empty((0, 2), np.float32), [(np.array([4, 5]), vectors)], 3)[0].shape == (0, 3)


def test_read_only_blocks_as_from_arrow_are_fine() -> None:
    vectors = np.eye(3, dtype=np.float32)
    vectors.flags.writeable = False
    assert nearest(vectors, [(np.arange(3), vectors)], 1)[0].ravel().tolist() == [0, 1, 2]


def test_bad_input_is_refused() -> None:
    good = np.eye(3, dtype=np.float32)
    with pytest.raises(BadSetting, match="k is 0"):
        nearest(good, [], 0)
    with pytest.raises(BadInput, match="finite rows"):
        nearest(good * np.nan, [], 1)
    with pytest.raises(BadInput, match="3 dimensions"):
        nearest(good, [(np.arange(2), np.eye(2, dtype=np.float32))], 1)
    with pytest.raises(BadInput, match="3 ids and vectors"):
        nearest(good, [(np.arange(3), good[:2])], 1)
    with pytest.raises(BadInput, match="1 of 3 features hold NaN"):
        nearest(good, [(np.arange(3), good), (np.arange(3), np.diag([1, np.inf, 1]).astype(np.float32))], 1)
