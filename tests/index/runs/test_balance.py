"""The balance of a run is counted again from objects that do not depend on each other."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from index.generations.load_plan import plan_load
from index.runs.accounting import checked_sum
from index.runs.balance import RunBalance, check_run
from index.runs.records import RunSummary
from index.runs.run import Run
from infra.errors import CorruptObject, CountMismatch
from infra.store import Store

MakeRun = Callable[..., Run]


@pytest.fixture
def run(store: Store, make_run: MakeRun) -> Run:
    make_run("r", 40, rows_per_shard=20)
    return Run.open(store, "r")


def rewrite(run: Run, change: Callable[[RunSummary], RunSummary]) -> Run:
    """Replace done.json by an altered one that carries a right digest."""
    run.store.put(run.folder.key("done.json"), change(run.summary).to_json())
    return Run.open(run.store, run.run_id)


def test_a_whole_run_adds_up(run: Run) -> None:
    assert check_run(run) == RunBalance(40, 40, 0, 0)
    assert check_run(run).to_text("run r") == "listed 40 = embedded 40 + quarantined 0 + duplicates 0"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: replace(s, shards=s.shards[:1]), r"not in done\.json: shards/shard-00001\.parquet"),
        (lambda s: replace(s, shards=s.shards[:1], embedded=20), r"not in done\.json"),
        (lambda s: replace(s, embedded=39), "states embedded 39, but its files hold 40"),
        (lambda s: replace(s, quarantined=1), "states quarantined 1, but its files hold 0"),
        (lambda s: replace(s, causes={"fetch/missing": 1}), "other causes"),
    ],
)
def test_an_altered_result_is_said(
    run: Run, change: Callable[[RunSummary], RunSummary], problem: str
) -> None:
    with pytest.raises(CountMismatch, match=problem):
        check_run(rewrite(run, change))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: replace(s, listed=20, embedded=20, shards=s.shards[:1]),
        lambda s: replace(s, fingerprint="beef"),
        lambda s: replace(s, run_id="q"),
    ],
)
def test_a_result_of_another_run_is_refused(run: Run, change: Callable[[RunSummary], RunSummary]) -> None:
    with pytest.raises(CorruptObject, match=r"done\.json states .*, but run\.json states"):
        check_run(rewrite(run, change))


def test_a_deleted_shard_is_missed_whether_done_json_names_it_or_not(run: Run) -> None:
    run.store.delete(run.shard_keys()[1])
    with pytest.raises(CountMismatch, match=r"in done\.json, but not in the folder"):
        check_run(run)
    with pytest.raises(CountMismatch, match="20 lost"):
        check_run(rewrite(run, lambda summary: replace(summary, shards=summary.shards[:1], embedded=20)))


@pytest.mark.parametrize("key", ["../../../outside.parquet", "/etc/passwd", "shards/../../q/a.parquet", ""])
def test_a_key_that_leaves_the_folder_is_refused(run: Run, key: str) -> None:
    outside = rewrite(run, lambda s: replace(s, shards=(replace(s.shards[0], key=key), s.shards[1])))
    with pytest.raises(CorruptObject, match=r"done\.json names .*outside of its folder"):
        outside.shard_keys()


def test_a_swapped_shard_of_the_same_model_is_noticed_without_reading_it(run: Run, make_run: MakeRun) -> None:
    other = make_run("other", 40, first=100, rows_per_shard=20)
    run.store.put(run.shard_keys()[0], run.store.get(other.shard_keys()[0]))
    with pytest.raises(CorruptObject, match="is a shard of run other, not of run r"):
        plan_load([run], verify=False)


def test_a_shard_with_other_rows_is_noticed_without_reading_it(run: Run) -> None:
    shorter = rewrite(run, lambda s: replace(s, shards=(replace(s.shards[0], rows=19), s.shards[1])))
    with pytest.raises(CorruptObject, match="has 20 rows, its run wrote 19"):
        plan_load([shorter], verify=False)


def test_a_sum_that_is_wrong_is_never_printed() -> None:
    assert checked_sum("x", ("", 2), ("embedded", 3), ("-erased", 1)) == "embedded 3 - erased 1 = 2"
    with pytest.raises(CountMismatch, match=r"listed 384 is not embedded 128 \+ quarantined 0, which is 128"):
        checked_sum("x", ("listed", 384), ("embedded", 128), ("quarantined", 0))
