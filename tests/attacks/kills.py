"""SIGKILL at random moments and at every write: of the command, of a Ray actor, of a raylet.

After each kill nothing may be shown as done that is not. Then the same command is given again until it
succeeds, and nothing may be lost, doubled or wrong.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from facts import Facts, Problem, contradictions, leftovers
from forks import Command
from scenarios import SCENARIOS, Scenario
from table import Row
from world import World

KILLS_PER_TRY = 3
SERVER_STRIDE = 3
"""On a server every third write is tried, where a try takes a load of its own; the seed shifts them."""

REPEATS = 4
LOCKED = 10


@dataclass
class Outcome:
    """What one try came to."""

    kills: int = 0
    problems: list[Problem] = field(default_factory=list)
    repeats: int = 0
    tries: int = 1


class Attacker:
    """Kills commands in one world. Random choices follow from the seed."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.seed, self.random = world, seed, random.Random(seed)
        self.before: dict[str, Facts] = {}
        self.seconds: dict[str, float] = {}

    def chosen(self, *, server: bool, purge: bool) -> list[Scenario]:
        """Return the scenarios that this world can run."""
        return [
            one
            for one in SCENARIOS
            if (server or not one.server)
            and (purge or "--purge" not in one.name)
            and (self.world.cluster or not one.ray)
        ]

    def random_kills(self, scenario: Scenario, kills: int) -> list[Row]:
        """Kill a command at random moments, `kills` times in all; return a row for each kind of victim."""
        self.measure(scenario)
        victims = {"driver": kills}
        if scenario.ray:
            # A kill of a node costs most time, and a training of seconds outlives few kills.
            victims = {"driver": kills - kills // 4 - kills // 8, "actor": kills // 4, "raylet": kills // 8}
        return [self._kill(scenario, victim, count) for victim, count in victims.items() if count]

    def boundary_kills(self, scenario: Scenario) -> Row:
        """Kill a command before each of its writes, and after the last one; on a server, at some of them."""
        log = self.world.root / "writes"
        with self._prepared(scenario):
            log.unlink(missing_ok=True)
            count = {"kill": 0, "after": False, "log": str(log)}
            self.world.must(*scenario.words(self.world), wrap=count)
            writes = log.read_text().splitlines()
        stride = SERVER_STRIDE if scenario.server else 1
        chosen = range(1 + self.seed % stride, len(writes) + 2, stride)
        row = Row(f"{scenario.name}: at {len(chosen)} of the {len(writes) + 1} points around its writes")
        for number in chosen:
            after = number > len(writes)
            wrap = {"kill": min(number, len(writes)), "after": after, "log": str(log)}
            log.unlink(missing_ok=True)
            outcome = Outcome()
            with self._prepared(scenario) as before:
                command = self.world.clvr(*scenario.words(self.world), wrap=wrap)
                if command.poll() == -signal.SIGKILL:
                    outcome.kills += 1
                    self._after_kill(outcome)
                self._finish(scenario, outcome, before)
            _add(row, outcome, f"at write {number} ({writes[min(number, len(writes)) - 1]})")
        return row

    def measure(self, scenario: Scenario) -> None:
        """Run a command once without a kill. Raises RuntimeError if that is not clean."""
        with self._prepared(scenario) as before:
            started = time.monotonic()
            self.world.must(*scenario.words(self.world))
            self.seconds[scenario.name] = time.monotonic() - started
            outcome = Outcome()
            self._finish(scenario, outcome, before, repeat=False)
            if outcome.problems:
                raise RuntimeError(f"{scenario.name} without a kill: {outcome.problems}")

    def _kill(self, scenario: Scenario, victim: str, kills: int) -> Row:
        row = Row(f"{scenario.name}: {victim} at random moments")
        tries = 0
        while row.tries < kills and tries < 3 * kills:
            tries += 1
            outcome = Outcome()
            with self._prepared(scenario) as before:
                wanted = min(kills - row.tries, KILLS_PER_TRY) if victim == "driver" else 1
                for _ in range(wanted):
                    if not self._strike(scenario, victim, outcome):
                        break  # it was faster; given again it would be another command
                self._finish(scenario, outcome, before)
            _add(row, outcome, f"try {tries}")
        return row

    def _strike(self, scenario: Scenario, victim: str, outcome: Outcome) -> bool:
        """Start a command and kill the victim at a random moment; False if the command had ended."""
        command = self.world.start(*scenario.words(self.world))
        time.sleep(self.random.uniform(0.02, self.seconds[scenario.name]))
        if victim == "driver":
            struck = command.kill()
            if struck:
                outcome.kills += 1
                self._after_kill(outcome)
            return struck
        struck = self._kill_actor(command) if victim == "actor" else self._kill_raylet(command)
        outcome.kills += struck
        if command.wait(300) != 0:
            outcome.repeats += 1
        if struck:
            self._after_kill(outcome)
        if victim == "raylet":
            self.world.replace_worker_node()
        return struck

    def _kill_actor(self, command: Command) -> bool:
        if command.poll() is not None:
            return False
        busy = [pid for pid, title in ray_processes() if "IDLE" not in title and "Dashboard" not in title]
        if not busy:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.random.choice(busy), signal.SIGKILL)
            return True
        return False

    def _kill_raylet(self, command: Command) -> bool:
        cluster = self.world.cluster
        if command.poll() is not None or cluster is None:
            return False
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        return True

    def _after_kill(self, outcome: Outcome) -> None:
        outcome.problems += contradictions(self.facts())

    def _finish(self, scenario: Scenario, outcome: Outcome, before: Facts, *, repeat: bool = True) -> None:
        for _ in range(REPEATS if repeat else 0):
            command = self.world.clvr(*scenario.words(self.world))
            if command.poll() == 0:
                break
            outcome.repeats += 1
            time.sleep(1.0)
        else:
            if repeat:
                text = f"exit {command.poll()} {REPEATS} times: {command.err[-300:]}"
                outcome.problems.append(Problem("other", text))
        facts = self.facts()
        outcome.problems += contradictions(facts) + leftovers(facts)
        outcome.problems += scenario.expect(self.world, before, facts)

    def facts(self) -> Facts:
        """Observe; an actor of a killed driver may hold the Milvus Lite file for a moment."""
        for _ in range(10):
            with suppress(RuntimeError):
                return self.world.facts()
            time.sleep(1.0)
        return self.world.facts()

    @contextmanager
    def _prepared(self, scenario: Scenario) -> Iterator[Facts]:
        if not scenario.server:
            self.world.reset(scenario.state)
            if scenario.state not in self.before:
                self.before[scenario.state] = self.facts()
            yield self.before[scenario.state]
            return
        with self.world.on_server():
            self.world.reset(scenario.state)
            for words in scenario.prelude:
                self.world.must(*words)
            yield self.facts()


def ray_processes() -> list[tuple[int, str]]:
    """Return the workers of any Ray below this process: pid and title."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    below, last = set(), {os.getpid()}
    while last:
        last = {child for child, parent in parents.items() if parent in last} - below
        below |= last
    return [(pid, titles[pid]) for pid in sorted(below) if titles.get(pid, "").startswith("ray::")]


def _add(row: Row, outcome: Outcome, where: str) -> None:
    row.tries += outcome.kills
    row.counts["repeated"] += outcome.repeats
    row.add(outcome.problems, where)
