"""The commands under attack: the state that each starts from, its words, and what must be true at its end."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from facts import Facts, Problem, erased_ids, features_of
from needles import VEHICLE, files_below, needles_of, search
from table import Row
from world import World

_CACHE: dict[str, Any] = {}
Expect = Callable[[World, Facts, Facts], list[Problem]]
FORGET = ["forget", "--vehicle", str(VEHICLE), "--reason", "attack", "--yes"]


@dataclass(frozen=True)
class Scenario:
    """One command. `prelude` is run before each try on a server, where states cannot be copied.

    share: of the kills at random moments. ray: actors and nodes may be killed too.
    """

    name: str
    state: str
    words: Callable[[World], list[str]]
    expect: Expect
    share: int = 0
    ray: bool = False
    server: bool = False
    prelude: tuple[tuple[str, ...], ...] = ()
    boundaries: bool = False


def _embedded(world: World, before: Facts, after: Facts) -> list[Problem]:
    run = after["runs"].get("new")
    if run is None or not run["done"]:
        return [Problem("lost", "the run is not finished")]
    if len(after["runs"]) != len(before["runs"]) + 1:
        return [Problem("other", f"{len(after['runs'])} runs instead of {len(before['runs']) + 1}")]
    return []


def _loaded(world: World, before: Facts, after: Facts) -> list[Problem]:
    new = [
        name
        for name, record in after["records"].items()
        if record["state"] == "ready" and name not in before["records"] and record["run_ids"] == ["r1"]
    ]
    if not new:
        return [Problem("lost", "no generation is ready")]
    return [Problem("other", f"{len(new)} generations instead of one")] if len(new) > 1 else []


def _increment(world: World, before: Facts, after: Facts) -> list[Problem]:
    record = after["records"][after["aliases"][world.alias]]
    rows = set(after["collections"][record["name"]]["ids"])
    expected = set(features_of(after, ["r1", "r2"])) - erased_ids(after)
    problems = [] if record["run_ids"] == ["r1", "r2"] else [Problem("lost", "the record has no run r2")]
    if rows != expected:
        problems.append(Problem("wrong", f"{len(rows ^ expected)} rows differ after the increment"))
    return problems


def _promoted(world: World, before: Facts, after: Facts) -> list[Problem]:
    newest, live = max(before["records"]), after["aliases"].get(world.alias)
    return [] if live == newest else [Problem("wrong", f"{live} is live instead of {newest}")]


def _rolled_back(world: World, before: Facts, after: Facts) -> list[Problem]:
    previous = before["records"][before["aliases"][world.alias]]["replaced"]
    live = after["aliases"].get(world.alias)
    return (
        [] if live == previous else [Problem("other", f"the repeated rollback undid itself: {live} is live")]
    )


def _forgotten(world: World, before: Facts, after: Facts) -> list[Problem]:
    wanted = crops_of_vehicle(world.states / "live/runs", VEHICLE)
    missing = wanted - erased_ids(after)
    done = [one for one in after["erasures"].values() if (one["receipt"] or {}).get("state") == "done"]
    problems = [] if done else [Problem("lost", "no receipt is done")]
    if missing:
        problems.append(Problem("lost", f"{len(missing)} crops of the vehicle have no tombstone"))
    rest = erased_ids(after) - wanted
    return problems + ([Problem("wrong", f"{len(rest)} other crops were erased")] if rest else [])


def _purged(world: World, before: Facts, after: Facts) -> list[Problem]:
    """No byte may be left, wherever the purge was cut off."""
    row = Row("bytes")
    if "needles" not in _CACHE:
        _CACHE["needles"] = needles_of(world, world.states / "live/runs")
    search(row, files_below(world.here), _CACHE["needles"])
    left = [Problem("half-done", note) for note in row.notes]
    rest = erased_ids(after) - crops_of_vehicle(world.states / "live/runs", VEHICLE)
    if rest:
        left.append(Problem("wrong", f"{len(rest)} other crops were erased"))
    done = [one for one in after["erasures"].values() if (one["receipt"] or {}).get("state") == "done"]
    return left if done else [*left, Problem("lost", "no receipt is done")]


def _retired(world: World, before: Facts, after: Facts) -> list[Problem]:
    live = before["aliases"][world.alias]
    expected = {live, before["records"][live]["replaced"], max(before["records"])} - {None}
    left = set(after["collections"])
    states = {name for name, record in after["records"].items() if record["state"] == "ready"}
    if left == expected == states:
        return []
    return [Problem("wrong", f"{len(left)} collections and {len(states)} records remain of {len(expected)}")]


def _swept(world: World, before: Facts, after: Facts) -> list[Problem]:
    out = world.out
    if not (out / "done.json").exists():
        return [Problem("lost", "the sweep is not finished")]
    outcomes = [
        name for path in out.glob("probes/*.parquet") for name in pq.read_table(path)["probe_id"].to_pylist()
    ]
    problems = []
    if len(set(outcomes)) != len(list(world.probes.iterdir())):
        problems.append(Problem("lost", f"{len(set(outcomes))} probes have an outcome"))
    if len(set(outcomes)) != len(outcomes):
        problems.append(Problem("doubled", "a probe was searched twice"))
    answers = sorted(
        (row["probe_id"], row["rank"], row["crop_id"])
        for path in out.glob("results/*.parquet")
        for row in pq.read_table(path, columns=["probe_id", "rank", "crop_id"]).to_pylist()
    )
    generation = json.loads((out / "sweep.json").read_text())["generation"]
    expected = world.root / f"answers-{generation.replace(':', '-')}.json"
    if not expected.exists():
        expected.write_text(json.dumps(answers))
    if json.loads(expected.read_text()) != [list(answer) for answer in answers]:
        problems.append(Problem("wrong", "other answers than without a kill"))
    return problems


def _reindexed(world: World, before: Facts, after: Facts) -> list[Problem]:
    if not after["nights"].get("n9"):
        return [Problem("lost", "the reindex run is not finished")]
    live = after["records"][after["aliases"][world.alias]]
    expected = set(features_of(after, after["runs"]))
    rows = after["collections"][live["name"]]["ids"]
    problems = [] if len(live["run_ids"]) == 2 else [Problem("lost", "the new run is not live")]
    return problems + ([] if set(rows) == expected else [Problem("wrong", "the live rows are not all runs'")])


def _trained(world: World, before: Facts, after: Facts) -> list[Problem]:
    card_file = world.here / "net/card.json"
    if not card_file.exists():
        return [Problem("lost", "there is no checkpoint")]
    card: dict[str, Any] = json.loads(card_file.read_text())
    digest = hashlib.sha256((world.here / "net/weights.safetensors").read_bytes()).hexdigest()
    if digest != card["weights_sha256"]:
        return [Problem("half-done", "the card is of other weights")]
    expected = world.root / "trained"
    if not expected.exists():
        expected.write_text(digest)
    return [] if expected.read_text() == digest else [Problem("wrong", "other weights than without a kill")]


def crops_of_vehicle(runs: Path, vehicle: int) -> set[int]:
    """Return the crop_ids with this label in any manifest below a folder of runs."""
    found: set[int] = set()
    for path in runs.glob("runs/*/manifest/*.parquet"):
        table = pq.read_table(path, columns=["crop_id", "vehicle_id"]).to_pylist()
        found |= {row["crop_id"] for row in table if row["vehicle_id"] == vehicle}
    return found


def _fixed(*words: str) -> Callable[[World], list[str]]:
    return lambda world: list(words)


LOAD, PROMOTE = ("load", "r1"), ("promote", "latest")
SCENARIOS = (
    Scenario("train", "bare", World.train_words, _trained, 2, ray=True),
    Scenario("embed", "bare", lambda world: world.embed_words("new"), _embedded, 10, ray=True),
    Scenario("sweep --exact", "live", lambda world: world.sweep_words(world.out), _swept, 3, ray=True),
    Scenario("sweep", "live", lambda world: world.sweep_words(world.out, exact=False), _swept, 3, ray=True),
    Scenario("reindex", "night", lambda world: world.night_words("n9"), _reindexed, 5, ray=True),
    Scenario("load", "embedded", _fixed(*LOAD), _loaded, 16, boundaries=True),
    Scenario("increment", "live", _fixed("load", "r2", "--into-live"), _increment, 12, boundaries=True),
    Scenario("promote", "four", _fixed(*PROMOTE), _promoted, 10, boundaries=True),
    Scenario("rollback", "four", _fixed("rollback"), _rolled_back, 5, boundaries=True),
    Scenario("forget", "live", _fixed(*FORGET), _forgotten, 12, boundaries=True),
    Scenario("forget --purge", "live", _fixed(*FORGET, "--purge"), _purged, 8, boundaries=True),
    Scenario("retire", "four", _fixed("retire", "--keep", "1"), _retired, 8, boundaries=True),
    Scenario("load, server", "embedded", _fixed(*LOAD), _loaded, 3, server=True, boundaries=True),
    Scenario(
        "import, server",
        "embedded",
        _fixed(*LOAD, "--target", "grpc_v1", "--index-type", "IVF_FLAT"),
        _loaded,
        2,
        server=True,
        boundaries=True,
    ),
    Scenario(
        "promote, server",
        "embedded",
        _fixed(*PROMOTE),
        _promoted,
        server=True,
        prelude=(LOAD,),
        boundaries=True,
    ),
    Scenario(
        "forget, server",
        "embedded",
        _fixed(*FORGET),
        _forgotten,
        server=True,
        prelude=(LOAD, PROMOTE),
        boundaries=True,
    ),
    Scenario(
        "forget --purge, server",
        "embedded",
        _fixed(*FORGET, "--purge"),
        _purged,
        server=True,
        prelude=(LOAD, PROMOTE),
        boundaries=True,
    ),
    Scenario(
        "retire, server",
        "embedded",
        _fixed("retire", "--keep", "1"),
        _retired,
        server=True,
        prelude=(LOAD, PROMOTE, LOAD, PROMOTE, LOAD),
        boundaries=True,
    ),
)
