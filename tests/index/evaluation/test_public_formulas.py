"""The figures equal those by the formulas of public toolboxes on the same split.

The formulas of torchreid's `eval_market1501` and fast-reid's `eval_market1501_py` (mINP included), written
here in float64 from their definitions: a full matrix, a full sort, a loop over probes.
"""

import numpy as np
import pytest
from numpy.typing import NDArray

from index.evaluation.cmc import LabeledFeatures
from index.evaluation.protocols import JUNK, draw_splits, evaluate_protocol

MAX_RANK = 20


def public_figures(
    images: LabeledFeatures, probes: NDArray[np.int64], gallery: NDArray[np.int64]
) -> tuple[NDArray[np.float64], float, float]:
    """CMC, mAP and mINP; a gallery entry of the probe's vehicle and camera is removed, as both do."""
    x, y = images.features[probes].astype(np.float64), images.features[gallery].astype(np.float64)
    distances = np.sqrt(np.square(x[:, None] - y[None]).sum(-1))
    assert images.camera_ids is not None
    curves, precisions, penalties = [], [], []
    for number, probe in enumerate(probes):
        order = np.argsort(distances[number], kind="stable")
        same = images.vehicle_ids[gallery][order] == images.vehicle_ids[probe]
        remove = same & (images.camera_ids[gallery][order] == images.camera_ids[probe])
        hits = same[~remove].astype(np.int32)
        if not hits.any():
            continue
        curve = hits.cumsum()
        last = np.flatnonzero(hits).max()
        penalties.append(curve[last] / (last + 1.0))
        curves.append(np.minimum(curve, 1)[:MAX_RANK])
        shares = [count / (index + 1.0) for index, count in enumerate(hits.cumsum())]
        precisions.append((np.asarray(shares) * hits).sum() / hits.sum())
    return np.mean(curves, axis=0), float(np.mean(precisions)), float(np.mean(penalties))


@pytest.mark.parametrize("protocol", ["vehicleid-paper", "vehicleid-common", "veri", "veri-wild", "vric"])
def test_equals_the_formulas_of_torchreid_and_fast_reid(protocol: str) -> None:
    rng = np.random.default_rng(4)
    vehicles = rng.integers(0, 60, 500)
    features = (rng.standard_normal((60, 32))[vehicles] + 1.5 * rng.standard_normal((500, 32))).astype(
        np.float32
    )
    # Without junk, the public readers give every image a camera of its own.
    cameras = np.array([f"c{c}" for c in rng.integers(0, 5, 500)])
    result = evaluate_protocol(
        protocol, features, vehicles, camera_ids=cameras, repeats=3, seed=1, max_rank=MAX_RANK
    )
    if protocol not in JUNK:
        cameras = np.arange(500).astype(str)
    images = LabeledFeatures(features, vehicles, cameras)
    for repeat, split in enumerate(result.splits):
        curve, mean_ap, mean_inp = public_figures(images, split.probes, split.gallery)
        assert result.curves[repeat].tolist() == pytest.approx(curve.tolist(), abs=1e-12)
        assert result.means["map"][repeat] == pytest.approx(mean_ap, abs=1e-12)
        assert result.means["minp"][repeat] == pytest.approx(mean_inp, abs=1e-12)


def test_protocols_by_camera_draw_by_their_rules() -> None:
    vehicles = np.array([1, 1, 1, 2, 2, 3, 3, 4])
    cameras = np.array(["a", "a", "b", "a", "c", "b", "b", "a"])  # 3 is seen by b alone, 4 once
    (veri,) = draw_splits("veri", vehicles, cameras, repeats=1)
    seen = sorted(zip(vehicles[veri.probes].tolist(), cameras[veri.probes].tolist(), strict=True))
    assert seen == [(1, "a"), (1, "b"), (2, "a"), (2, "c")]
    assert veri.gallery.tolist() == [0, 1, 2, 3, 4]
    (wild,) = draw_splits("veri-wild", vehicles, cameras, repeats=1)
    assert vehicles[wild.probes].tolist() == [1, 2]
    assert sorted([*wild.probes, *wild.gallery]) == [0, 1, 2, 3, 4]
    for split in draw_splits("vric", vehicles, cameras, repeats=20):
        assert sorted(vehicles[split.probes]) == sorted(vehicles[split.gallery]) == [1, 2]
        assert (cameras[split.probes] != cameras[split.gallery]).all()
    result = evaluate_protocol("veri", np.eye(8, dtype=np.float32), vehicles, camera_ids=cameras, repeats=2)
    assert (result.excluded_vehicles, result.vehicles) == (2, 2)
    assert "seen by a single camera are excluded" in result.summary()
