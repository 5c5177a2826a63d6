"""Compare the primary keys of a generation with those that its plan has, range by range."""

from dataclasses import dataclass, field

import numpy as np

from index.generations.load_plan import LoadPlan
from index.milvus import collection
from index.milvus.client import Milvus

_MAX_EXAMPLES = 10


@dataclass(slots=True)
class KeyDifferences:
    """How many keys are only in a plan (missing) or only in a generation (foreign), and up to ten of each.

    indexed: rows of the generation. repeated: further rows of a primary key.
    """

    indexed: int = 0
    repeated: int = 0
    missing_count: int = 0
    foreign_count: int = 0
    missing: list[int] = field(default_factory=list)
    foreign: list[int] = field(default_factory=list)

    @property
    def any(self) -> bool:
        """Whether anything differs."""
        return bool(self.repeated or self.missing_count or self.foreign_count)


def compare_keys(milvus: Milvus, name: str, plan: LoadPlan) -> KeyDifferences:
    """Compare every primary key of a loaded generation with the plan. Memory for the keys of one range."""
    found = KeyDifferences()
    for expected in plan.id_ranges():
        indexed = collection.fetch_ids(milvus, name, expected.expression())
        distinct = np.unique(indexed)
        missing = np.setdiff1d(expected.ids, distinct, assume_unique=True)
        foreign = np.setdiff1d(distinct, expected.ids, assume_unique=True)
        found.indexed += indexed.size
        found.repeated += indexed.size - distinct.size
        found.missing_count += missing.size
        found.foreign_count += foreign.size
        found.missing += missing[: _MAX_EXAMPLES - len(found.missing)].tolist()
        found.foreign += foreign[: _MAX_EXAMPLES - len(found.foreign)].tolist()
    return found
