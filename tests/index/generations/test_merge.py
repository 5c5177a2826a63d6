"""Small runs are merged into one that a load cannot tell from them; kills, erasures and branches included."""

import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from killed_writes import killed_at

from index.archive.manifest import crop_id_of
from index.generations import merge, records
from index.generations.erasure import forget
from index.generations.load import LoadOptions, load_runs
from index.generations.load_plan import plan_load
from index.generations.merge import MergePolicy, merge_runs, origins, remove_merged
from index.generations.purge import purge
from index.generations.reconcile import reconcile
from index.generations.selection import EraseSelection
from index.lock import ROWS, acquire
from index.milvus.client import Milvus
from index.milvus.collection import get_generation
from index.runs.accounting import QuarantinedCrop, quarantine_table
from index.runs.balance import check_run
from index.runs.lineage import lineage
from index.runs.merged import MergeSwitch, read_merges
from index.runs.run import Run, find_unfinished, list_runs
from index.runs.shards import shard_table
from index.schema import EMBEDDING_DIM, MANIFEST_SCHEMA
from infra.errors import CountMismatch, Locked
from infra.store import Store, open_store

ARCHIVE = "s3://archive"
LATEST = LoadOptions(latest_wins=True)


def uri(name: str) -> str:
    return f"{ARCHIVE}/cam-{len(name)}/{name}.jpg"


def ids(*names: str) -> list[int]:
    return sorted(crop_id_of(uri(name)) for name in names)


def make(
    store: Store,
    run_id: str,
    good: str = "",
    bad: str = "",
    gone: str = "",
    *,
    number: int,
    since: str | None = None,
    finish: bool = True,
) -> Run:
    """Make a run: names of one letter that are embedded, are unreadable, or vanished."""
    rows = [
        {
            "crop_id": crop_id_of(uri(name)),
            "uri": uri(name),
            "etag": f"{number}",
            "size": number,
            "last_modified": number,
            "camera_id": f"cam-{ord(name) % 3}",
            "captured_at": ord(name) * 1000 if ord(name) % 4 else -1,
            "track_id": "",
        }
        for name in good + bad
    ]
    run = Run.create(
        store,
        run_id,
        manifest=pa.Table.from_pylist(rows, MANIFEST_SCHEMA),
        archive=ARCHIVE,
        fingerprint="5eed" * 16,
        model="m",
        settings={"since_run": since},
        rows_per_part=2,
        rows_per_shard=4,
        vanished=pa.array(map(uri, gone), pa.string()),
        created=f"2026-11-{number:02d}T00:00:00.000+00:00",
    )
    for part in run.pending_parts() if finish else ():
        table = run.part_manifest(part)
        is_bad = np.isin(np.asarray(table["crop_id"]), ids(*bad))
        embedded = table.filter(pa.array(~is_bad))
        vectors = np.stack(
            [
                np.random.default_rng([number, crop_id]).random(EMBEDDING_DIM, np.float32)
                for crop_id in embedded["crop_id"].to_pylist()
            ]
            or [np.empty(EMBEDDING_DIM, np.float32)]
        )[: embedded.num_rows]
        shard = shard_table(
            embedded,
            vectors,
            np.full(embedded.num_rows, number, np.int32),
            np.ones(embedded.num_rows, np.float32),
        )
        pairs = table.filter(pa.array(is_bad)).select(["crop_id", "uri"]).to_pylist()
        broken = quarantine_table(QuarantinedCrop(**pair, stage="decode", cause="x") for pair in pairs)
        run.write_part(part, shard, broken)
    if finish:
        run.finish()
    return run


NIGHTS = (
    ("n1", "bxyz", "pq", ""),
    ("n2", "acu", "", "bx"),  # a again; b of n0 and x of n1 vanish
    ("n3", "pb", "ay", "c"),  # p is readable now, b is back; a and y are not, and keep their rows
    ("n4", "", "c", "u"),  # c is back and unreadable, so the rows of n0 and n2 stay hidden
    ("n5", "v", "", "d"),
)


def make_chain(store: Store) -> list[str]:
    """A first run, five nights, and two further ones that are never merged."""
    make(store, "n0", "abcdefgh" + "ijk", number=1)
    for number, (run_id, good, bad, gone) in enumerate(NIGHTS, 2):
        make(store, run_id, good, bad, gone, number=number, since=f"n{number - 2}")
    make(store, "n6", "ew", number=7, since="n5")
    make(store, "n7", "", "", "w", number=8, since="n6")
    return [f"n{number}" for number in range(8)]


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """All values of all rows that a load of runs takes."""
    found = [row for batch in plan_load(runs, latest_wins=True).batches(100) for row in batch.to_pylist()]
    return sorted(found, key=lambda row: row["crop_id"])


def origin_of(run: Run) -> dict[int, str]:
    """The run that embedded or quarantined each crop."""
    return {crop: name for name, table in origins(run) for crop in table["crop_id"].to_pylist()}


def chain(store: Store, last: str = "n7") -> list[Run]:
    return lineage(store, last)


@pytest.fixture
def policy() -> MergePolicy:
    return MergePolicy(runs=2, rows=10)  # n0 has eleven crops


def test_a_merge_leaves_every_row_and_one_run(store: Store, policy: MergePolicy) -> None:
    make_chain(store)
    before, balances = rows(chain(store)), [check_run(run) for run in chain(store)]
    (merged,) = merge_runs(store, "n7", policy)
    assert merged.sources == ("n1", "n2", "n3", "n4", "n5")
    assert [run.run_id for run in chain(store)] == ["n0", merged.run_id, "n6", "n7"]
    assert [run.run_id for run in list_runs(store)] == ["n0", merged.run_id, "n6", "n7"]
    assert rows(chain(store)) == before
    run = Run.open(store, merged.run_id)
    balance = check_run(run)
    assert (balance.embedded, balance.quarantined) == (merged.rows, 2)  # q of n1, c of n4
    assert sorted(run.quarantine()["crop_id"].to_pylist()) == ids("q", "c")
    stated = run.info.settings["merged"]
    assert [source["embedded"] for source in stated] == [one.embedded for one in balances[1:6]]
    of = origin_of(run)
    assert {of[crop] for crop in ids("y", "z", "q")} == {"n1"} and of[ids("p")[0]] == "n3"
    assert not [info.key for info in store.list("runs/n3")]
    assert merge_runs(store, "n7", policy) == []
    assert find_unfinished(store, archive=ARCHIVE, fingerprint=run.fingerprint) is None


def test_a_merged_run_is_merged_again_with_its_origins(store: Store, policy: MergePolicy) -> None:
    make_chain(store)
    (first,) = merge_runs(store, "n7", policy)
    for number in range(8, 12):
        make(store, f"n{number}", chr(ord("A") + number), number=number + 1, since=f"n{number - 1}")
    before = rows(chain(store, "n11"))
    (second,) = merge_runs(store, "n11", policy)
    assert second.sources == (first.run_id, "n6", "n7", "n8", "n9")
    assert rows(chain(store, "n11")) == before
    names = [source["run_id"] for source in Run.open(store, second.run_id).info.settings["merged"]]
    assert names == [f"n{number}" for number in range(1, 10)]
    of = origin_of(Run.open(store, second.run_id))
    assert of[ids("z")[0]] == "n1" and of[ids("e")[0]] == "n6"
    assert read_merges(store).run_of("n2") == second.run_id


def test_generations_name_the_merged_run_and_match_it(
    milvus: Milvus, store: Store, policy: MergePolicy
) -> None:
    names = make_chain(store)
    old = load_runs(milvus, store, chain(store, "n5"), alias="clvr", options=LATEST)
    live = load_runs(milvus, store, chain(store), alias="clvr", options=LATEST)
    (merged,) = merge_runs(store, "n7", policy)
    for name, expected in ((old.name, names[:1]), (live.name, [names[0], "n6", "n7"])):
        record = records.read(store, name)
        assert record is not None
        runs = [Run.open(store, run_id) for run_id in record.run_ids]
        assert [run.run_id for run in runs if run.run_id != merged.run_id] == expected
        assert not reconcile(milvus, store, get_generation(milvus, name), runs).differences


def test_runs_that_generations_hold_apart_are_not_merged_together(
    milvus: Milvus, store: Store, policy: MergePolicy
) -> None:
    make_chain(store)
    load_runs(milvus, store, chain(store, "n3"), alias="clvr", options=LATEST)
    (merged,) = merge_runs(store, "n7", policy)
    assert merged.sources == ("n1", "n2", "n3")  # n4 and n5 are two, and no generation has them


def test_a_run_from_which_another_chain_branches_ends_a_merge(store: Store, policy: MergePolicy) -> None:
    make_chain(store)
    make(store, "trial", "t", number=20, since="n4")
    (merged,) = merge_runs(store, "n7", policy)
    assert merged.sources == ("n1", "n2", "n3", "n4")
    assert [run.run_id for run in chain(store, "trial")] == ["n0", merged.run_id, "trial"]


def test_runs_of_a_pending_increment_and_large_runs_stay(
    milvus: Milvus, store: Store, policy: MergePolicy
) -> None:
    make_chain(store)
    live = load_runs(milvus, store, chain(store, "n0"), alias="clvr")
    records.update(store, live.name, pending=("n3",))
    assert merge_runs(store, "n7", policy) == []
    assert merge_runs(store, "n7", MergePolicy(runs=0, rows=10)) == []
    assert len(list_runs(store)) == 8


@pytest.mark.parametrize(
    ("meanwhile", "step"),
    [
        ("nothing", 7),
        ("purge", 20),
        pytest.param("nothing", 1, marks=pytest.mark.slow),
        pytest.param("erasure", 1, marks=pytest.mark.slow),
        pytest.param("purge", 1, marks=pytest.mark.slow),
    ],
)
def test_a_merge_may_be_killed_at_every_write(
    milvus: Milvus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str, step: int
) -> None:
    """Rows are the same after each kill, and after what follows; erased crops never come back."""
    policy, first = MergePolicy(runs=1, rows=5), tmp_path / "first"
    make(open_store(str(first)), "n0", "abcdef", number=1)
    for number, (run_id, good, bad, gone) in enumerate(NIGHTS[1:3], 2):
        since = "n0" if number == 2 else "n2"
        make(open_store(str(first)), run_id, good, bad, gone, number=number, since=since)
    make(open_store(str(first)), "n6", "z", number=5, since="n3")
    make(open_store(str(first)), "n7", "", "", "z", number=6, since="n6")
    for number in itertools.count(1, step):
        shutil.copytree(first, tmp_path / str(number))
        store = open_store(str(tmp_path / str(number)))
        before = rows(chain(store))
        is_killed = killed_at(number, lambda: merge_runs(store, "n7", policy), monkeypatch)  # noqa: B023
        assert rows(chain(store)) == before
        if meanwhile != "nothing":
            selection = EraseSelection(crop_ids=tuple(ids("u", "f")))
            forget(milvus, store, selection, reason="test", dry_run=False)
            before = [row for row in before if row["crop_id"] not in ids("u", "f")]
        if meanwhile == "purge":
            purge(milvus, store, lambda stores, erased: [], reason="test")
            assert not objects_with(store, uri("u"))
        merge_runs(store, "n7", policy)
        assert rows(chain(store)) == before
        assert len(list_runs(store)) == 4
        if meanwhile == "purge":
            assert not objects_with(store, uri("u"))
        for run in chain(store):
            check_run(run)
        if not is_killed:
            break
    assert number > 20


def test_an_erasure_during_a_merge_stops_it(
    store: Store, policy: MergePolicy, monkeypatch: pytest.MonkeyPatch, hide: Callable[..., Any]
) -> None:
    """As after a pause in which the lock ran out: the erasure did not see the merged run."""
    make_chain(store)
    original = merge._require_equal

    def erased_meanwhile(*args: Any) -> None:
        original(*args)
        hide(store, ids("z"))

    with monkeypatch.context() as patched:
        patched.setattr(merge, "_require_equal", erased_meanwhile)
        with pytest.raises(Locked, match="erased during a merge"):
            merge_runs(store, "n7", policy)
    assert [run.run_id for run in chain(store)] == [f"n{number}" for number in range(8)]
    merge_runs(store, "n7", policy)
    run = Run.open(store, read_merges(store).run_of("n1"))
    assert not np.isin(run.manifest()["crop_id"].to_pylist(), ids("z")).any()


def test_a_merge_that_stood_still_cannot_switch(store: Store, policy: MergePolicy) -> None:
    make_chain(store)
    late = MergeSwitch(store)
    (merged,) = merge_runs(store, "n7", policy)
    with pytest.raises(Locked, match="changed by another process"):
        late.add(replace(read_merges(store).merges[0], run_id="merged-late"))
    assert read_merges(store).run_of("n1") == merged.run_id


def test_a_purge_in_a_pause_of_a_merge_keeps_the_sources(
    store: Store, policy: MergePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The purge removes the run that is not switched to yet; the merge must not switch to it any more."""
    make_chain(store)
    before, original = rows(chain(store)), MergeSwitch.add

    def purged_meanwhile(self: MergeSwitch, added: Any) -> None:
        remove_merged(store)
        original(self, added)

    monkeypatch.setattr(MergeSwitch, "add", purged_meanwhile)
    with pytest.raises(Locked, match="changed by another process"):
        merge_runs(store, "n7", policy)
    assert rows(chain(store)) == before and len(list_runs(store)) == 8


def test_a_merged_run_that_differs_is_never_switched_to(
    store: Store, policy: MergePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_chain(store)
    before = rows(chain(store))
    original = merge._rows_of

    def altered(*args: Any) -> Any:
        for batch in original(*args):
            column = batch.schema.get_field_index("model_confidence")
            yield batch.set_column(column, "model_confidence", pa.array(np.full(len(batch), 0.5, np.float32)))

    monkeypatch.setattr(merge, "_rows_of", altered)
    with pytest.raises(CountMismatch, match="these stay as they are"):
        merge_runs(store, "n7", policy)
    assert rows(chain(store)) == before and len(list_runs(store)) == 9
    with acquire(store, ROWS, "test"):
        remove_merged(store)
    assert len(list_runs(store)) == 8


def objects_with(store: Store, text: str) -> list[str]:
    return [info.key for info in store.list() if text.encode() in store.get(info.key)]
