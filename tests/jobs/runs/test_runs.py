"""`clvr runs` and `clvr quarantine` read the records of finished and unfinished runs."""

from pathlib import Path

import numpy as np
import pytest
from json_documents import read_result

from index.runs.accounting import QuarantinedCrop, quarantine_table
from index.runs.run import Run
from index.runs.shards import shard_table
from index.schema import EMBEDDING_DIM
from infra.errors import BadInput, BadSetting
from infra.settings import Settings, load_settings
from infra.store import Store
from jobs.runs.listing import list_all_runs, run_details
from jobs.runs.quarantine import quarantine_report


@pytest.fixture
def settings(store: Store, make_finished_run) -> Settings:
    """A folder with the finished run `a`, and the run `b` with one of two parts, which lost three crops."""
    finished = make_finished_run(store, "a", range(12))
    run = Run.create(
        store,
        "b",
        manifest=finished.manifest(),
        archive="s3://archive",
        fingerprint="f" * 16,
        model="models/m",
        settings={},
        rows_per_part=8,
    )
    crops = run.part_manifest(0)
    causes = [("decode", "truncated"), ("decode", "truncated"), ("fetch", "gone")]
    lost = zip(crops.slice(0, 3).select(["crop_id", "uri"]).to_pylist(), causes, strict=True)
    quarantined = [QuarantinedCrop(**crop, stage=stage, cause=cause) for crop, (stage, cause) in lost]
    good = crops.slice(3)
    vectors = np.ones((good.num_rows, EMBEDDING_DIM), np.float32)
    shard = shard_table(good, vectors, np.zeros(len(vectors), np.int32), np.ones(len(vectors), np.float32))
    run.write_part(0, shard, quarantine_table(quarantined))
    return load_settings({"runs": store.uri})


def test_runs_are_listed_with_their_states(settings: Settings) -> None:
    listed = list_all_runs(settings)
    rows = {row["run_id"]: row for row in read_result("runs", listed)}
    assert (rows["a"]["state"], rows["a"]["embedded"]) == ("finished", 12)
    assert (rows["b"]["state"], rows["b"]["embedded"], rows["b"]["finished"]) == ("unfinished", None, None)
    assert [line.split()[:2] for line in listed.to_text().splitlines()[1:]] == [
        ["a", "finished"],
        ["b", "unfinished"],
    ]


def test_an_empty_folder_names_the_command_that_makes_a_run(tmp_path: Path) -> None:
    assert "clvr embed" in list_all_runs(load_settings({"runs": str(tmp_path / "none")})).to_text()


def test_show_has_the_records_of_one_run(settings: Settings) -> None:
    assert read_result("runs show", run_details("b", settings))["model"] == "models/m"
    with pytest.raises(BadInput, match="no run c"):
        run_details("c", settings)


def test_a_quarantine_lists_causes_and_the_first_crops(settings: Settings) -> None:
    report = quarantine_report("b", settings, limit=1)
    assert report.causes == {"decode/truncated": 2, "fetch/gone": 1}
    assert (report.selected, len(report.crops)) == (3, 1)
    assert report.to_text().splitlines()[-1] == "2 more: --limit 3"
    assert isinstance(read_result("quarantine", report)["crops"][0]["crop_id"], str)


@pytest.mark.parametrize(
    ("causes", "selected"),
    [(["truncated"], 2), (["fetch/gone"], 1), (["truncated", "gone"], 3), ([], 3)],
)
def test_causes_select_crops(settings: Settings, causes: list[str], selected: int) -> None:
    assert quarantine_report("b", settings, causes=causes).selected == selected


def test_an_unknown_cause_is_an_error_that_lists_the_causes(settings: Settings) -> None:
    with pytest.raises(BadSetting) as error:
        quarantine_report("b", settings, causes=["truncatd"])
    assert "decode/truncated" in error.value.remedy
