"""Reconciliation: every missing and every unexpected row of a generation is named."""

from index.generations.load import LoadOptions, load_runs
from index.generations.reconcile import reconcile
from index.milvus.client import Milvus
from infra.store import Store


def test_a_whole_generation_has_no_differences(milvus: Milvus, store: Store, make_run) -> None:
    old, new = make_run("old", 50), make_run("new", 30, first=40)
    generation = load_runs(milvus, store, [old, new], alias="clvr", options=LoadOptions(latest_wins=True))
    result = reconcile(milvus, store, generation, [old, new])
    assert result.differences == ()
    assert (result.listed, result.embedded, result.superseded, result.expected, result.indexed) == (
        80,
        80,
        10,
        70,
        70,
    )


def test_each_missing_and_each_unexpected_row_is_named(milvus: Milvus, store: Store, make_run) -> None:
    run = make_run("r1", 50)
    generation = load_runs(milvus, store, [run], alias="clvr")
    lost = run.manifest()["crop_id"][7].as_py()
    (row,) = milvus.call("query", generation.name, filter=f"crop_id == {lost}", output_fields=["*"])
    milvus.call("delete", generation.name, filter=f"crop_id == {lost}")
    milvus.call("insert", generation.name, [{**row, "crop_id": 4711}])
    result = reconcile(milvus, store, generation, [run])
    assert (result.missing, result.foreign) == ((lost,), (4711,))
    assert any(str(lost) in difference for difference in result.differences)
