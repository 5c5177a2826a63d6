"""A scan equals a float64 sort, whatever the blocks: ties by ascending id, near-ties exactly."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.exact import NO_ID, knn, products
from index.exact.knn import nearest
from index.exact.numba_kernels import pair_sq_distances
from index.exact.products import DifferenceScreen, ProductScreen, Screen
from infra.errors import BadInput, BadSetting

SCREENS = ["differences", products.TORCH, products.ONEDNN, products.NUMPY, products.BF16]


@pytest.fixture(params=SCREENS, autouse=True, ids=lambda each: getattr(each, "name", each))
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test by each screen, whatever the number of probes and the speed of the machine."""

    def choose(probes: NDArray[np.float32], sample: NDArray[np.float32], *, device: str) -> Screen:
        if request.param == "differences":
            return DifferenceScreen(probes)
        return ProductScreen(probes, sample, request.param)

    monkeypatch.setattr(knn, "choose_screen", choose)


Block = tuple[NDArray[np.int64], NDArray[np.float32]]


def reference(
    probes: NDArray[np.float32], ids: NDArray[np.int64], vectors: NDArray[np.float32], k: int
) -> NDArray[np.int64]:
    num = len(probes), len(vectors)
    left, right = (index.ravel() for index in np.indices(num))
    sq_dist = pair_sq_distances(probes, np.ascontiguousarray(vectors), left, right).reshape(num)
    direct = np.square(probes.astype(np.float64)[:, None] - vectors[None]).sum(-1)
    assert np.allclose(sq_dist, direct, rtol=1e-12)
    nearest_ids = np.full((len(probes), k), NO_ID)
    for row in range(len(probes)):
        order = np.lexsort((ids, sq_dist[row]))[:k]
        nearest_ids[row, : len(order)] = ids[order]
    return nearest_ids


def cut(ids: NDArray[np.int64], vectors: NDArray[np.float32], size: int) -> Iterator[Block]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size], vectors[start : start + size]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    num_probes=st.integers(1, 20),
    rows=st.integers(1, 150),
    dimension=st.integers(1, 5),
    values=st.integers(0, 3),
    offset=st.sampled_from([0, 2**22]),
    k=st.integers(1, 12),
    size=st.integers(1, 80),
)
def test_equals_the_reference_on_small_integers_full_of_ties(
    seed: int, num_probes: int, rows: int, dimension: int, values: int, offset: int, k: int, size: int
) -> None:
    rng = np.random.default_rng(seed)
    probes, vectors = (
        (offset + rng.integers(0, values + 1, (n, dimension))).astype(np.float32) for n in (num_probes, rows)
    )
    ids = rng.permutation(rows * 3)[:rows]
    nearest_ids, _ = nearest(probes, cut(ids, vectors, size), k)
    assert nearest_ids.tolist() == reference(probes, ids, vectors, k).tolist()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 200),
    dimension=st.integers(1, 70),
    exponent=st.integers(-140, 120),
    spread=st.sampled_from([1.0, 1e-4, 1e-7]),
    offset=st.sampled_from([0.0, 1.0, -30.0]),
    outlier=st.sampled_from([1.0, 1e6, 1e30]),
    k=st.integers(1, 250),
    num_excluded=st.integers(0, 3),
    size=st.integers(1, 200),
)
def test_equals_the_reference_for_features_of_any_size(
    seed: int,
    rows: int,
    dimension: int,
    exponent: int,
    spread: float,
    offset: float,
    outlier: float,
    k: int,
    num_excluded: int,
    size: int,
) -> None:
    """Near-duplicates, repeated rows, outliers, norms from the smallest to the largest, and excluded ids."""
    rng = np.random.default_rng(seed)
    base = offset + spread * rng.standard_normal((rows, dimension))
    base[rng.integers(0, rows, rows // 3)] = base[rng.integers(0, rows, rows // 3)]
    base[rng.integers(0, rows)] *= outlier
    largest = float(np.finfo(np.float32).max)
    vectors = np.clip(base * 2.0**exponent, -largest, largest).astype(np.float32)
    probes = vectors[rng.integers(0, rows, 5)] * rng.choice([1, 1 - 1e-6, 0.5], (5, 1)).astype(np.float32)
    ids = rng.permutation(rows * 3)[:rows]
    excluded = ids[rng.integers(0, rows, (5, num_excluded))]
    nearest_ids, _ = nearest(probes, cut(ids, vectors, size), k, exclude_ids=excluded)
    expected = np.full((5, k), NO_ID)
    for row, ranked in enumerate(reference(probes, ids, vectors, rows)):
        kept = ranked[~np.isin(ranked, excluded[row])][:k]
        expected[row, : len(kept)] = kept
    assert nearest_ids.tolist() == expected.tolist()


@pytest.mark.parametrize("k", [1, 10, 300])
def test_equals_the_reference_where_float32_cannot_tell_the_order(k: int) -> None:
    rng = np.random.default_rng(k)
    vectors = (50 + 1e-4 * rng.standard_normal((900, 300))).astype(np.float32)
    probes, ids = vectors[:600] + np.float32(1e-5), np.arange(900)
    nearest_ids, distances = nearest(probes, cut(ids, vectors, 250), k)
    assert nearest_ids.tolist() == reference(probes, ids, vectors, k).tolist()
    assert (np.diff(distances, axis=1) >= 0).all()


def test_distances_are_euclidean_and_zero_for_equal_images() -> None:
    vectors = np.array([[0, 0], [3, 4], [1e4, 1e4]], np.float32)
    ids, distances = nearest(vectors[[0, 2]], [(np.array([7, 8, 9]), vectors)], 2)
    assert ids.tolist() == [[7, 8], [9, 8]]
    assert distances.dtype == np.float32
    assert distances[:, 0].tolist() == [0.0, 0.0]
    assert distances[0, 1] == 5.0


def test_neither_the_blocks_nor_their_order_matter() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.integers(0, 4, (500, 4)).astype(np.float32)
    ids, probes = rng.permutation(500), vectors[:30]
    blocks = list(cut(ids, vectors, 60))
    once = nearest(probes, [(ids, vectors)], 9)
    again = nearest(probes, reversed(blocks), 9)
    assert once[0].tolist() == again[0].tolist()
    assert once[1].tolist() == again[1].tolist()


def test_a_probe_never_gets_an_excluded_id() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((80, 6)).astype(np.float32)
    ids = np.arange(80)
    others, _ = nearest(vectors, cut(ids, vectors, 33), 3, exclude_ids=ids)
    assert others.tolist() == [row[1:] for row in reference(vectors, ids, vectors, 4).tolist()]
    two = np.stack([ids, (ids + 1) % 80], axis=1)
    nearest_ids, _ = nearest(vectors, cut(ids, vectors, 33), 78, exclude_ids=two)
    for row in range(80):
        assert sorted(nearest_ids[row]) == sorted(set(range(80)) - set(two[row]))


def test_results_with_fewer_rows_than_k_are_padded() -> None:
    vectors = np.eye(2, dtype=np.float32)
    ids, distances = nearest(vectors[:1], [(np.array([4, 5]), vectors)], 4, exclude_ids=np.array([5]))
    assert ids.tolist() == [[4, NO_ID, NO_ID, NO_ID]]
    assert distances.tolist() == [[0.0, np.inf, np.inf, np.inf]]
    nothing, _ = nearest(vectors, [], 2)
    assert (nothing == NO_ID).all()
    assert nearest(np.empty((0, 2), np.float32), [(np.array([4, 5]), vectors)], 3)[0].shape == (0, 3)


def test_read_only_blocks_are_accepted() -> None:
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


def test_no_probes_have_no_neighbours() -> None:
    gallery = np.zeros((5, 8), np.float32)
    ids, distances = nearest(
        np.zeros((0, 8), np.float32), [(np.arange(5), gallery)], 3, exclude_ids=np.zeros(0, np.int64)
    )
    assert ids.shape[0] == distances.shape[0] == 0
