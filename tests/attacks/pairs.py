"""Two commands at once: each succeeds, or is refused in words, and the index stays consistent.

The pairs follow each other on one alias of a Milvus server, so each starts from what the last one left.
On Milvus Lite, which one process at a time may open, each pair starts from a copy of a state.
"""

import random
import time
from datetime import UTC, datetime
from typing import Any

from facts import Problem, contradictions, leftovers
from forks import Command
from needles import files_below, needles_of, search
from table import Row
from world import SPEC, World

REFUSED = 10
ANSWERS = {0: "done", REFUSED: "locked", 3: "bad input", 8: "gate"}
"""Exit codes that two commands at once may have. Bad input: the other command removed what it needs."""

SIMPLE = ("load", "increment", "forget", "retain", "promote", "rollback", "retire", "sweep", "purge")
MUST = (
    ("load", "purge"),
    ("increment", "purge"),
    ("sweep", "purge"),
    ("embed", "purge"),
    ("reindex", "purge"),
    ("purge", "purge"),
    ("retire", "purge"),
    ("embed", "embed"),
    ("reindex", "forget"),
    ("reindex", "retain"),
    ("sweep", "sweep"),
    ("reindex", "reindex"),
)
RETIRE_EVERY = 5


class Pairs:
    """Starts random pairs in one world."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.random, self.number = world, random.Random(seed), 0

    def on_server(self, tries: int) -> Row:
        """Return the row of `tries` pairs on the server."""
        row = Row("two commands at once, Milvus server")
        with self.world.on_server():
            self.world.reset("embedded")
            for words in (("load", "r1"), ("promote", "latest"), ("load", "r1"), ("promote", "latest")):
                self.world.must(*words)
            for number in range(tries):
                self._try(row, self._choose(number))
                if number % RETIRE_EVERY == RETIRE_EVERY - 1:
                    self.world.clvr("retire", "--keep", "1")
        return row

    def on_lite(self, tries: int) -> Row:
        """Return the row of `tries` pairs on Milvus Lite."""
        row = Row("two commands at once, Milvus Lite")
        for _ in range(tries):
            self.world.reset("four")
            self._try(row, self._choose(len(MUST)))
        return row

    def _choose(self, number: int) -> tuple[str, str]:
        if number < len(MUST) and self.world.cluster is not None:
            return MUST[number]
        names = [name for name in SIMPLE if name != "sweep" or self.world.cluster]
        return self.random.choice(names), self.random.choice(names)

    def _try(self, row: Row, names: tuple[str, str]) -> None:
        self.number += 1
        words = [self._words(name, second=bool(position)) for position, name in enumerate(names)]
        commands: list[Command] = []
        for one in words:
            commands.append(self.world.start(*one))
            time.sleep(self.random.choice((0.0, 0.0, 0.1, 0.4)))
        where = f"pair {self.number} ({' + '.join(names)})"
        problems: list[Problem] = []
        codes = [command.wait(300) for command in commands]
        for name, command, code in zip(names, commands, codes, strict=True):
            row.counts[f"{ANSWERS.get(code, f'exit {code}')}"] += 1
            if code not in ANSWERS:
                problems.append(Problem("other", f"{name}: exit {code}: {command.err[-300:]}"))
            if code == REFUSED:
                again = self.world.clvr(*command.words)
                if again.poll() not in ANSWERS or again.poll() == REFUSED:
                    problems.append(
                        Problem("other", f"{name} alone: exit {again.poll()}: {again.err[-300:]}")
                    )
        facts = self.world.facts()
        row.tries += 1
        row.add([*problems, *contradictions(facts), *leftovers(facts)], where)
        if "purge" in names:
            self._look_for_purged(row, commands, where)

    def _look_for_purged(self, row: Row, commands: list[Command], where: str) -> None:
        """After a purge nothing is left, whatever ran beside it; the bucket needs its garbage collection."""
        audit = self.world.clvr("forget", "--audit", "latest")
        if audit.poll() != 0:
            row.add([Problem("half-done", f"exit {audit.poll()}: {audit.err[-300:]}")], f"{where}, --audit")
        for command in commands:
            if "--purge" in command.words:
                vehicle = int(command.words[command.words.index("--vehicle") + 1])
                needles = needles_of(self.world, self.world.states / "embedded/runs", vehicle)
                found = Row("")
                search(found, files_below(self.world.here), needles)
                row.add([Problem("half-done", note) for note in found.notes], f"{where}, bytes")

    def _words(self, name: str, *, second: bool) -> list[str]:
        vehicle = self.random.randrange(1, SPEC.vehicles + 1)
        cut = datetime(SPEC.first_day.year, SPEC.first_day.month, SPEC.first_day.day + 1, tzinfo=UTC)
        words: dict[str, list[Any]] = {
            "load": ["load", "r1"],
            "increment": ["load", "r2", "--into-live"],
            "forget": ["forget", "--vehicle", vehicle, "--reason", "attack", "--yes"],
            "purge": ["forget", "--vehicle", vehicle, "--reason", "attack", "--purge", "--yes"],
            "retain": ["retain", "--days", (datetime.now(UTC) - cut).days, "--yes"],
            "promote": ["promote", "latest"],
            "rollback": ["rollback"],
            "retire": ["retire", "--keep", "1"],
            "sweep": self.world.sweep_words(f"{self.world.out}-{self.number}"),
            "embed": self.world.embed_words(f"e{self.number}"),
            "reindex": self.world.night_words(f"n{self.number}"),
        }
        return [str(word) for word in words[name]]
