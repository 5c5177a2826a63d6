"""The table of an attack: one row per attack, and every problem in words below it."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from facts import Problem

COLUMNS = ("lost", "doubled", "wrong", "half-done", "silent")


@dataclass
class Row:
    """One attack: its tries, its problems by kind, further counts, and the problems in words."""

    attack: str
    tries: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    list_all: bool = False
    """Whether notes that differ in numbers only are listed one by one."""

    def add(self, problems: Iterable[Problem], where: str) -> None:
        """Count each problem of one try once, and keep its words."""
        for kind, text in dict.fromkeys(problems):
            self.counts[kind] += 1
            self.notes.append(f"{where}: {kind}: {text}")

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, doubled, wrong, half-done or silent."""
        return not any(self.counts[kind] for kind in COLUMNS)


def as_markdown(rows: Iterable[Row], title: str) -> str:
    """Return a section: the table, then the problems."""
    rows = list(rows)
    lines = [f"## {title}", "", f"| attack | tries | {' | '.join(COLUMNS)} | other |", "| --- " * 8 + "|"]
    for row in rows:
        other = ", ".join(
            f"{count} {kind}" for kind, count in sorted(row.counts.items()) if kind not in COLUMNS and count
        )
        kinds = " | ".join(f"**{row.counts[kind]}**" if row.counts[kind] else "0" for kind in COLUMNS)
        lines.append(f"| {row.attack} | {row.tries} | {kinds} | {other} |")
    lines.append("")
    for row in rows:
        groups: dict[str, list[str]] = {}
        for note in row.notes:
            text = note if row.list_all else re.sub(r"\d+", "N", note.partition(": ")[2])
            groups.setdefault(text, []).append(note)
        for notes in groups.values():
            where, _, text = notes[0].partition(": ")
            lines.append(f"* {row.attack}: {text} ({len(notes)}x, first {where})")
    return "\n".join([*lines, ""])
