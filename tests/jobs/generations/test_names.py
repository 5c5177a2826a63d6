"""Crops are named by their URIs, and runs by `latest`, wherever a command takes either."""

from collections.abc import Callable
from pathlib import Path

import pytest

from index.archive.reassigned import record_reassigned
from index.milvus.client import connect
from index.runs.merged import Merge, MergeSwitch
from index.runs.run import Run
from index.search.scan_source import ScanSource
from infra.errors import BadInput
from infra.settings import Settings
from infra.store import Store
from jobs.embed.discovery import CropSelection, with_run_ids
from jobs.generations.erase import ForgetRequest, forget_crops
from jobs.runtime.resolve import find_runs


@pytest.fixture
def settings(store: Store, tmp_path: Path, make_finished_run: Callable[..., Run]) -> Settings:
    for number in range(3):
        make_finished_run(store, f"r{number}", range(20 * number, 20 * number + 20))
    return Settings(runs=store.uri, milvus=str(tmp_path / "index.db"))


def test_a_uri_names_a_crop_whose_hash_another_one_has(settings: Settings, store: Store) -> None:
    """The crop of this URI got the id of crop 25, as after a collision."""
    uri, run = "s3://archive/collided.jpg", Run.open(store, "r1")
    crop_id = run.manifest()["crop_id"].to_pylist()[5]
    record_reassigned(store, {uri: crop_id})
    with connect(settings.milvus):
        pass
    receipt = forget_crops(ForgetRequest("test", crops=(uri,)), settings)
    assert (receipt.crops, receipt.runs) == (1, {"r1": 1})
    assert ScanSource([run]).reassigned().id_at(uri) == crop_id


def test_latest_and_merged_runs_are_named(settings: Settings, store: Store) -> None:
    chosen = with_run_ids(CropSelection("s3://archive", since_run="latest"), settings)
    assert chosen.since_run == "r2"
    again = CropSelection("s3://archive", retry_quarantined="latest")
    assert with_run_ids(again, settings).retry_quarantined == "r2"
    with pytest.raises(BadInput, match="there is no run r9"):
        with_run_ids(CropSelection("s3://archive", since_run="r9"), settings)
    MergeSwitch(store).add(Merge("r2", ("a", "b"), "2026-11-30T00:00:00.000+00:00"))
    assert [run.run_id for run in find_runs(["r1", "a", "b"], settings)] == ["r1", "r2"]
    for names in (["a"], ["r1", "b"]):
        with pytest.raises(BadInput, match="was merged into r2"):
            find_runs(names, settings)
