"""CMC by counting equals a plain reference for each probe: ties, near-ties, junk and the probe itself."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.evaluation.cmc import LabeledFeatures, Split, chance_curve, cmc, cmc_of_splits
from index.exact import products, rank_counting
from infra.errors import BadInput, BadLabels, UnmatchedProbe


@pytest.fixture(
    scope="module", autouse=True, params=[products.TORCH, products.BF16], ids=lambda product: product.name
)
def product(request: pytest.FixtureRequest) -> Iterator[products.Product]:
    """Every test holds for either product, also on processors that would not choose bfloat16."""

    def fastest(*, use_bf16: bool = True) -> products.Product:
        return request.param if use_bf16 else products.TORCH

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "fastest_product", fastest)
        patch.setattr(products, "_MIN_MACS_TO_RACE", 0)
        yield request.param


def reference(
    probes: LabeledFeatures, gallery: LabeledFeatures, *, same_camera_is_junk: bool = False
) -> tuple[NDArray[np.int64], float, float]:
    """Ranks of the first positive, mAP and mINP by a full distance matrix and a stable sort, in float64."""
    difference = probes.features.astype(np.float64)[:, None] - gallery.features[None]
    distances = np.square(difference).sum(-1)
    ranks: list[int] = []
    precisions: list[float] = []
    penalties: list[float] = []
    for row, vehicle in enumerate(probes.vehicle_ids):
        order = np.argsort(distances[row], kind="stable")
        same = gallery.vehicle_ids[order] == vehicle
        junk = np.zeros(len(order), dtype=bool)
        if same_camera_is_junk and probes.camera_ids is not None and gallery.camera_ids is not None:
            junk |= same & (gallery.camera_ids[order] == probes.camera_ids[row])
        if probes.crop_ids is not None and gallery.crop_ids is not None:
            junk |= same & (gallery.crop_ids[order] == probes.crop_ids[row])
        hits = np.flatnonzero(same[~junk]) + 1
        if not len(hits):
            ranks.append(0)
            continue
        ranks.append(int(hits[0]))
        precisions.append(float(np.mean(np.arange(1, len(hits) + 1) / hits)))
        penalties.append(len(hits) / hits[-1])
    return np.array(ranks), float(np.mean(precisions or [0])), float(np.mean(penalties or [0]))


def assert_equal(
    probes: LabeledFeatures, gallery: LabeledFeatures, *, junk: bool = False, block_size: int = 2048
) -> None:
    ranks, mean_ap, mean_inp = reference(probes, gallery, same_camera_is_junk=junk)
    result = cmc(
        probes, gallery, block_size=block_size, max_rank=20, same_camera_is_junk=junk, skip_unmatched=True
    )
    assert result.first_ranks.tolist() == ranks.tolist()
    assert result.mean_ap == pytest.approx(mean_ap, abs=1e-12)
    assert result.means["minp"] == pytest.approx(mean_inp, abs=1e-12)
    counted = ranks[ranks > 0]
    assert result.curve.tolist() == [(counted <= k).mean() for k in range(1, 21)]
    assert (result.probes, result.skipped) == (len(counted), len(ranks) - len(counted))


def labelled(
    rng: np.random.Generator, rows: int, vehicles: int, features: NDArray[np.float32]
) -> LabeledFeatures:
    return LabeledFeatures(
        features, rng.integers(0, vehicles, rows), np.array([f"{c:03d}" for c in rng.integers(0, 3, rows)])
    )


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.tuples(st.integers(1, 40), st.integers(1, 120)),
    dimension=st.integers(1, 6),
    vehicles=st.integers(1, 9),
    values=st.integers(0, 4),
    offset=st.sampled_from([0, 1000, 2**22]),
    junk=st.booleans(),
    block_size=st.sampled_from([3, 7, 32, 64]),
)
def test_equals_the_reference_on_small_integers_full_of_ties(
    seed: int,
    rows: tuple[int, int],
    dimension: int,
    vehicles: int,
    values: int,
    offset: int,
    junk: bool,
    block_size: int,
) -> None:
    rng = np.random.default_rng(seed)
    parts = [
        labelled(rng, n, vehicles, (offset + rng.integers(0, values + 1, (n, dimension))).astype(np.float32))
        for n in rows
    ]
    if not reference(*parts, same_camera_is_junk=junk)[0].any():
        with pytest.raises(UnmatchedProbe):
            cmc(*parts, same_camera_is_junk=junk, skip_unmatched=True)
        return
    assert_equal(*parts, junk=junk, block_size=block_size)


@pytest.mark.parametrize("dimension", [3, 257, 1024])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e15])
def test_equals_the_reference_where_float32_cannot_tell_the_order(dimension: int, size: float) -> None:
    rng = np.random.default_rng(dimension)
    # A tight cloud far from the origin: |x|² + |y|² - 2xy in float32 would leave no correct digit.
    cloud = (100 + 1e-3 * rng.standard_normal((260, dimension))) * size
    features = cloud.astype(np.float32)
    assert_equal(labelled(rng, 60, 30, features[:60]), labelled(rng, 200, 30, features[60:]), block_size=64)


def test_equals_the_reference_on_near_ties_around_one_outlier() -> None:
    rng = np.random.default_rng(3)
    features = rng.standard_normal((300, 64)).astype(np.float32)
    features[100:200] = features[0] + rng.choice([-1, 1], (100, 64)) * np.float32(1e-5)
    features[299] = 1e6
    assert_equal(labelled(rng, 80, 12, features[:80]), labelled(rng, 220, 12, features[80:]), block_size=50)


def test_equals_the_reference_with_many_positives_per_probe() -> None:
    rng = np.random.default_rng(5)
    features = rng.integers(0, 3, (400, 3)).astype(np.float32)
    assert_equal(labelled(rng, 50, 4, features[:50]), labelled(rng, 350, 4, features[50:]), block_size=101)


def test_equals_the_reference_with_more_probes_than_one_block() -> None:
    rng = np.random.default_rng(6)
    features = rng.standard_normal((1500, 8)).astype(np.float32)
    assert_equal(labelled(rng, 1100, 90, features[:1100]), labelled(rng, 400, 90, features[1100:]))


def test_the_probe_itself_is_not_ranked_by_its_crop_id() -> None:
    rng = np.random.default_rng(7)
    images = LabeledFeatures(
        rng.standard_normal((90, 5)).astype(np.float32), rng.integers(0, 20, 90), None, np.arange(90)
    )
    assert_equal(images, images)
    assert cmc(images, images, skip_unmatched=True).curve[0] < 1.0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(2, 60),
    vehicles=st.integers(1, 9),
    repeats=st.integers(1, 4),
    share=st.sampled_from([0.1, 0.5, 0.9]),
    junk=st.booleans(),
    block_size=st.sampled_from([3, 16, 40]),
)
def test_splits_in_one_pass_equal_each_split_alone(
    seed: int, rows: int, vehicles: int, repeats: int, share: float, junk: bool, block_size: int
) -> None:
    rng = np.random.default_rng(seed)
    # Offsets leave float32 unsure, few values make ties, and any image may be probe, gallery, both or none.
    images = labelled(rng, rows, vehicles, (2**22 + rng.integers(0, 3, (rows, 3)) * 0.5).astype(np.float32))
    splits = [
        Split(
            rng.permutation(np.flatnonzero(rng.random(rows) < 0.6)), np.flatnonzero(rng.random(rows) < share)
        )
        for _ in range(repeats)
    ]
    with_ids = LabeledFeatures(images.features, images.vehicle_ids, images.camera_ids, np.arange(rows))
    alone = []
    for split in splits:
        if not len(split.probes) or not len(split.gallery):
            return
        parts = with_ids.take(split.probes), with_ids.take(split.gallery)
        alone.append(reference(*parts, same_camera_is_junk=junk)[0].tolist())
    if not all(any(ranks) for ranks in alone):
        return
    together = cmc_of_splits(
        images, splits, block_size=block_size, same_camera_is_junk=junk, skip_unmatched=True
    )
    assert [result.first_ranks.tolist() for result in together] == alone


def test_equals_the_reference_with_a_memory_map_as_gallery(tmp_path: object) -> None:
    rng = np.random.default_rng(8)
    features = rng.standard_normal((120, 6)).astype(np.float32)
    mapped = np.memmap(f"{tmp_path}/features.f32", np.float32, "w+", shape=(100, 6))
    mapped[:] = features[:100]
    vehicles = rng.integers(0, 5, 120)
    assert_equal(
        LabeledFeatures(features[100:], vehicles[100:]),
        LabeledFeatures(mapped, vehicles[:100]),
        block_size=17,
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_the_blocks_and_leave_torch_as_it_was(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_MIN_MACS_FOR_THREADS", 0)
    rng = np.random.default_rng(12)
    features = rng.integers(0, 3, (150, 4)).astype(np.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_equal(labelled(rng, 60, 7, features[:60]), labelled(rng, 90, 7, features[60:]), block_size=8)
        assert torch.get_num_threads() == threads
        features[100, 0] = np.nan
        with pytest.raises(BadInput, match="NaN"):
            cmc(labelled(rng, 60, 7, features[:60]), labelled(rng, 90, 7, features[60:]), block_size=8)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_features_with_many_ambiguous_scores_continue_in_float32(
    product: products.Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    count = rank_counting.count_ahead

    def record(scores: NDArray[np.generic], *args: object) -> int:
        names.append(scores.dtype.name)
        return count(scores, *args)

    monkeypatch.setattr(rank_counting, "count_ahead", record)
    rng = np.random.default_rng(11)
    features = (5 + rng.standard_normal((2000, 8)) * [1, *[1e-3] * 7]).astype(np.float32)
    vehicles = rng.integers(0, 60, 2000)
    assert_equal(
        LabeledFeatures(features[:60], np.arange(60)), LabeledFeatures(features, vehicles), block_size=256
    )
    assert names[0] == ("uint16" if product is products.BF16 else "float32") and names[-1] == "float32"


def test_chance_equals_the_mean_of_random_orders() -> None:
    rng = np.random.default_rng(10)
    num_positives, sizes = np.array([1, 3, 3, 8]), np.array([20, 20, 15, 30])
    ranks = [
        [(rng.permutation(n)[:m] + 1).min() for m, n in zip(num_positives, sizes, strict=True)]
        for _ in range(4000)
    ]
    simulated = [(np.array(ranks) <= k).mean() for k in range(1, 11)]
    assert chance_curve(num_positives, sizes, 10) == pytest.approx(simulated, abs=0.02)
    assert chance_curve(np.array([2]), np.array([3]), 5).tolist() == pytest.approx([2 / 3, 1, 1, 1, 1])


def test_a_probe_without_a_positive_is_refused_by_its_vehicle() -> None:
    gallery = LabeledFeatures(np.eye(3, dtype=np.float32), np.array([1, 2, 3]))
    probes = LabeledFeatures(np.eye(3, dtype=np.float32)[:2], np.array([2, 99]))
    with pytest.raises(UnmatchedProbe, match=r"1 of 2 probes .* vehicle 99"):
        cmc(probes, gallery)
    assert cmc(probes, gallery, skip_unmatched=True).skipped == 1


def test_bad_input_is_refused() -> None:
    good = LabeledFeatures(np.eye(3, dtype=np.float32), np.array([1, 2, 3]))
    broken = good.features.copy()
    broken[1, 1] = np.nan
    with pytest.raises(BadInput, match="NaN"):
        cmc(good, LabeledFeatures(broken, good.vehicle_ids))
    with pytest.raises(BadInput, match="dimensions"):
        cmc(good, LabeledFeatures(np.eye(4, dtype=np.float32), np.arange(4)))
    with pytest.raises(BadInput, match="nothing to rank"):
        cmc(good, good.take(np.array([], dtype=np.int64)))
    with pytest.raises(BadLabels, match="camera ids"):
        cmc(good, good, same_camera_is_junk=True)
    with pytest.raises(BadLabels, match="2 vehicle_ids for 3"):
        LabeledFeatures(good.features, np.array([1, 2]))
    with pytest.raises(BadInput, match="max_rank"):
        cmc(good, good, max_rank=0)
