"""Search returns exact distances and all fields from one generation, and refuses invalid probes."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from index.filters import Filters
from index.generations.load import load_runs
from index.generations.load_plan import plan_load
from index.generations.promotion import promote
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation, require_live
from index.milvus.index_types import IndexSpec, capabilities_of, search_params
from index.milvus.search import Hit, search_generation
from infra.errors import BadInput, BadSetting, FingerprintMismatch
from infra.store import Store


class Live:
    """A live generation of 200 crops, groups of 10 look-alikes."""

    def __init__(self, milvus: Milvus, store: Store, make_run: Callable[..., object]) -> None:
        self.run = make_run("r1", 200)
        self.milvus = milvus
        self.generation = load_runs(milvus, store, [self.run], alias="clvr")
        promote(milvus, store, self.generation.name, force="test")
        blocks = list(plan_load([self.run]).blocks())
        self.ids = np.concatenate([ids for ids, _ in blocks])
        self.vectors = np.concatenate([vectors for _, vectors in blocks])

    def search(
        self, probes: NDArray[np.float32], top: int = 20, filters: Filters | None = None
    ) -> list[list[Hit]]:
        generation = require_live(self.milvus, "clvr", self.run.fingerprint)
        batches = search_generation(self.milvus, generation, probes, top, filters)
        return [hits for batch in batches for hits in batch]


@pytest.fixture
def live(milvus: Milvus, store: Store, make_run) -> Live:
    return Live(milvus, store, make_run)


def test_hits_are_the_nearest_crops_by_plain_l2_in_order(live: Live) -> None:
    results = live.search(live.vectors[:20], top=10)
    for probe, hits in zip(live.vectors[:20], results, strict=True):
        distances = np.linalg.norm(live.vectors - probe, axis=1)
        nearest = np.argsort(distances)[:10]
        assert [hit.crop_id for hit in hits] == live.ids[nearest].tolist()
        assert np.allclose([hit.distance for hit in hits], distances[nearest], atol=0.02)
        assert [hit.rank for hit in hits] == list(range(1, 11))


def test_a_hit_has_every_field_of_its_crop(live: Live) -> None:
    manifest = {row["crop_id"]: row for row in live.run.manifest().to_pylist()}
    for hit in live.search(live.vectors[:1], top=50)[0]:
        row = manifest[hit.crop_id]
        assert (hit.uri, hit.camera_id) == (row["uri"], row["camera_id"])
        assert (hit.track_id, hit.captured_at) == (row["track_id"], row["captured_at"])
        assert (hit.model_id, hit.model_confidence) == (row["size"] % 7, 0.5)


def test_filters_exclude_the_camera_of_the_probe(live: Live) -> None:
    camera = live.search(live.vectors[:1], top=1)[0][0].camera_id
    hits = live.search(live.vectors[:1], top=200, filters=Filters(not_cameras=(camera,)))[0]
    assert len(hits) == 160
    assert camera not in {hit.camera_id for hit in hits}


def test_a_filter_that_nothing_passes_gives_no_hits(live: Live) -> None:
    assert live.search(live.vectors[:2], filters=Filters(cameras=("nowhere",))) == [[], []]


def test_no_probes_give_no_results(live: Live) -> None:
    assert live.search(np.empty((0, 1024), np.float32)) == []


def test_many_probes_are_sent_in_several_calls_and_keep_their_order(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    call = Milvus.call

    def counted(self: Milvus, method: str, *args: object, **named: object) -> object:
        if method == "search":
            calls.append(len(named["data"]))  # type: ignore[arg-type]
        return call(self, method, *args, **named)

    monkeypatch.setattr(Milvus, "call", counted)
    probes = np.tile(live.vectors, (11, 1))
    results = live.search(probes, top=1)
    assert [hits[0].crop_id for hits in results] == live.ids.tolist() * 11
    assert calls == [1000, 1000, 200]


def test_a_generation_is_loaded_again_after_a_restart(live: Live) -> None:
    live.milvus.call("release_collection", live.generation.name)
    assert live.search(live.vectors[:1], top=1)[0][0].rank == 1


def test_probes_of_another_model_are_refused_with_both_fingerprints(live: Live) -> None:
    with pytest.raises(FingerprintMismatch, match=rf"{live.run.fingerprint}.*other-model"):
        require_live(live.milvus, "clvr", "other-model")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_probe_that_is_not_finite_is_refused_by_its_number(live: Live, value: float) -> None:
    probes = live.vectors[:3].copy()
    probes[1, 7] = value
    with pytest.raises(BadInput, match="probe 1 holds"):
        live.search(probes)


@pytest.mark.parametrize("shape", [(1024,), (1, 512), (2, 1024, 1)])
def test_a_probe_of_another_shape_is_refused(live: Live, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="shape"):
        live.search(np.zeros(shape, np.float32))


@pytest.mark.parametrize("top", [0, -1, 16_385])
def test_a_top_that_milvus_cannot_answer_is_refused(live: Live, top: int) -> None:
    with pytest.raises(BadSetting, match="top"):
        live.search(live.vectors[:1], top=top)


def test_an_alias_that_points_to_nothing_is_an_error_with_a_remedy(milvus: Milvus) -> None:
    with pytest.raises(BadInput, match="points to nothing, and nothing is indexed") as caught:
        require_live(milvus, "clvr", "f")
    assert "clvr load" in caught.value.remedy


def test_a_generation_can_be_searched_before_it_is_live(milvus: Milvus, store: Store, make_run) -> None:
    generation = load_runs(milvus, store, [make_run("r1", 30)], alias="clvr")
    assert collection.live_generation(milvus, "clvr") is None
    (results,) = search_generation(milvus, generation, np.zeros((2, 1024), np.float32), 5)
    assert [len(hits) for hits in results] == [5, 5]


@pytest.mark.parametrize(
    ("index", "top", "params"),
    [
        (IndexSpec("HNSW", {"M": 16}), 10, {"ef": 128}),
        (IndexSpec("HNSW", {"M": 16}), 100, {"ef": 800}),
        (IndexSpec("HNSW", {"M": 16}), 16_384, {"ef": 32_768}),
        (IndexSpec("IVF_FLAT", {"nlist": 256}), 10, {"nprobe": 16}),
        (IndexSpec("IVF_FLAT", {"nlist": 256}), 100, {"nprobe": 128}),
        (IndexSpec("IVF_SQ8", {"nlist": 16}), 5000, {"nprobe": 16}),
        (IndexSpec("FLAT", {}), 10, {}),
    ],
    ids=str,
)
def test_search_parameters_grow_with_top(index: IndexSpec, top: int, params: dict[str, int]) -> None:
    assert search_params(index, top) == params


def test_a_deep_search_on_a_server_goes_in_small_batches() -> None:
    sizes: list[int] = []

    class Recorder:
        def search(self, name: str, *, data: list[object], **named: object) -> list[list[object]]:
            sizes.append(len(data))
            return [[] for _ in data]

    server = Milvus("http://x", Recorder(), capabilities_of("2.5.0", lite=False), 1.0)
    generation = Generation("g", "a", "f", 1, (), IndexSpec("HNSW", {}), "")
    list(search_generation(server, generation, np.zeros((30, 1024), np.float32), 16_384))
    assert max(sizes) * 16_384 * 1344 <= 64 * 1024 * 1024
    assert sum(sizes) == 30
