"""Objects that a manifest leaves out, counted by cause and named."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence

HIDDEN = "hidden file or folder"
EXCLUDED = "by --include or --exclude"
_MAX_EXAMPLES = 3
_MAX_SHOWN = 120


class SkippedObjects:
    """Counts the objects left out for each cause and keeps the first few, printable; threads may share it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def add(self, cause: str, key: str) -> None:
        """Count one object."""
        with self._lock:
            self.counts[cause] += 1
            examples = self.examples.setdefault(cause, [])
            if len(examples) < _MAX_EXAMPLES:
                examples.append(repr(key)[:_MAX_SHOWN])

    def update(self, counts: Mapping[str, int], examples: Mapping[str, Sequence[str]]) -> None:
        """Count what another listing left out."""
        self.counts.update(counts)
        for cause, keys in examples.items():
            kept = self.examples.setdefault(cause, [])
            kept += keys[: _MAX_EXAMPLES - len(kept)]

    def notes(self) -> list[str]:
        """Return one line for each cause, with the first keys, printable whatever they hold."""
        return [
            f"left out: {self.counts[cause]:,} ({cause}), such as " + ", ".join(self.examples[cause])
            for cause in sorted(self.counts)
        ]
