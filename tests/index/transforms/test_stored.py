"""Stored transforms are named by their content, sealed, and belong to one model."""

from collections.abc import Callable

import numpy as np
import pytest

from index.transforms.fitting import TransformSettings, fit_features
from index.transforms.stored import (
    default_transform,
    list_documents,
    read_document,
    read_transform,
    resolve_transform,
    store_default,
    store_transform,
)
from index.transforms.transform import FeatureTransform
from infra.errors import BadInput, CorruptObject, FingerprintMismatch
from infra.store import Store


def fitted(seed: int = 0) -> FeatureTransform:
    features = np.random.default_rng(seed).normal(size=(60, 6)).astype(np.float32)
    cameras = [f"c{row % 3}" for row in range(60)]
    return fit_features(features, TransformSettings("whiten-camera", dimensions=4), cameras)


def put(store: Store, transform: FeatureTransform, fingerprint: str = "aa") -> str:
    return store_transform(
        store,
        transform,
        fingerprint=fingerprint,
        shrinkage=0.3,
        camera_prior=20.0,
        run_ids=("r1",),
        rows=60,
        sampled_of=60,
    ).transform_id


def test_a_stored_transform_is_the_fitted_one_and_a_repeat_has_the_same_name(store: Store) -> None:
    transform = fitted()
    name = put(store, transform)
    assert put(store, fitted()) == name
    assert put(store, fitted(1)) != name
    stored = read_transform(store, "aa", name)
    assert stored is not None
    probe = np.random.default_rng(5).normal(size=(9, 6)).astype(np.float32)
    cameras = ["c0", "c1", "", "new", "c2", "c0", "c1", "c2", ""]
    np.testing.assert_array_equal(stored(probe, cameras), transform(probe, cameras))
    assert (stored.transform_id, stored.fingerprint, stored.dimension) == (name, "aa", 4)
    assert read_transform(store, "aa", "none") is None


def test_a_cut_off_store_leaves_no_transform_and_the_repeat_completes_it(store: Store) -> None:
    name = put(store, fitted())
    store.delete(f"transforms/aa/{name}.json")  # killed between the arrays and the document
    assert list_documents(store, "aa") == []
    with pytest.raises(BadInput, match=name):
        read_transform(store, "aa", name)
    assert put(store, fitted()) == name
    assert [document.transform_id for document in list_documents(store, "aa")] == [name]


def test_every_altered_bit_is_noticed(store: Store, assert_flips_are_noticed: Callable[..., None]) -> None:
    name = put(store, fitted())

    def use() -> list[float]:
        transform = read_transform(store, "aa", name)
        assert transform is not None
        return transform(np.ones((1, 6), np.float32))[0].tolist()

    for suffix in ("json", "safetensors"):
        assert_flips_are_noticed(store, f"transforms/aa/{name}.{suffix}", use)


def test_the_document_of_another_transform_is_refused(store: Store) -> None:
    one, other = put(store, fitted()), put(store, fitted(1))
    store.put(f"transforms/aa/{one}.json", store.get(f"transforms/aa/{other}.json"))
    with pytest.raises(CorruptObject, match=one):
        read_document(store, "aa", one)


def test_a_transform_of_another_model_is_refused_with_both_fingerprints(store: Store) -> None:
    name = put(store, fitted(), fingerprint="bb")
    with pytest.raises(FingerprintMismatch, match=r"bb.*aa"):
        read_transform(store, "aa", name)


def test_names_resolve_to_the_newest_the_decided_one_or_none(store: Store) -> None:
    assert resolve_transform(store, "aa", None) == ""
    with pytest.raises(BadInput, match="no transform"):
        resolve_transform(store, "aa", "latest")
    first = put(store, fitted())
    second = put(store, fitted(1))
    assert resolve_transform(store, "aa", "latest") == second
    assert resolve_transform(store, "aa", None) == ""
    store_default(store, "aa", first, "tracks")
    assert resolve_transform(store, "aa", None) == first
    assert resolve_transform(store, "aa", "none") == ""
    store_default(store, "aa", "", "asked")
    assert resolve_transform(store, "aa", None) == ""
    default = default_transform(store, "aa")
    assert default is not None
    assert (default.transform, default.reason) == ("none", "asked")
