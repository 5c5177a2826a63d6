"""An index of crop_ids alone, in a file: it answers what an increment asks, so the rest can be measured."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.index_types import capabilities_of


class StubIndex(Milvus):
    """One live generation, whose crop_ids lie sorted in a local file; rows that are upserted are counted."""

    def __init__(self, ids: Path, generation: Generation) -> None:
        super().__init__("stub", None, capabilities_of("2.3.5", lite=False), 10.0)
        self.generation = generation
        self._ids = np.load(ids, mmap_mode="r")
        self._added: set[int] = set()
        self._deleted: set[int] = set()

    def call(self, method: str, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """Answer a call of pymilvus' MilvusClient. Raises AttributeError for others than an increment's."""
        return getattr(self, f"_{method}")(*args, **kwargs)

    def _holds(self, crop_id: int) -> bool:
        place = int(np.searchsorted(self._ids, crop_id))
        return place < len(self._ids) and int(self._ids[place]) == crop_id

    def _has_collection(self, name: str) -> bool:
        return name in (self.generation.name, self.generation.alias)

    def _describe_collection(self, name: str) -> dict[str, Any]:
        generation = self.generation
        description = {
            "alias": generation.alias,
            "fingerprint": generation.fingerprint,
            "schema_version": generation.schema_version,
            "run_ids": generation.run_ids,
            "index": {"type": generation.index.type, "params": generation.index.params},
            "created": generation.created,
            "dimension": generation.dimension,
        }
        return {"collection_name": generation.name, "description": json.dumps(description)}

    def _get_load_state(self, name: str) -> dict[str, Any]:
        return {"state": SimpleNamespace(name="Loaded")}

    def _query(self, name: str, filter: str = "", **_: Any) -> list[dict[str, int]]:
        if not filter:
            return [{"count(*)": len(self._ids) + len(self._added) - len(self._deleted)}]
        asked = map(int, filter.partition("[")[2].rstrip("]").split(","))
        return [{"count(*)": sum(self._holds(crop_id) or crop_id in self._added for crop_id in asked)}]

    def _query_iterator(self, name: str, filter: str, batch_size: int, **_: Any) -> "_Pages":
        ends = dict(re.findall(r"crop_id (>=|<) (\d+)", filter))
        low = int(np.searchsorted(self._ids, int(ends.get(">=", 0))))
        high = int(np.searchsorted(self._ids, int(ends["<"]))) if "<" in ends else len(self._ids)
        return _Pages(self._ids[low:high], batch_size)

    def _upsert(self, name: str, rows: list[dict[str, Any]]) -> None:
        self._added.update(row["crop_id"] for row in rows if not self._holds(row["crop_id"]))

    def _flush(self, name: str) -> None:
        pass

    def _delete(self, name: str, filter: str) -> None:
        asked = map(int, filter.partition("[")[2].rstrip("]").split(","))
        self._deleted.update(crop_id for crop_id in asked if self._holds(crop_id))

    def _describe_index(self, name: str, field: str) -> dict[str, Any]:
        return {"state": "Finished", "indexed_rows": 0, "total_rows": 0, "pending_index_rows": 0}


class _Pages:
    """The iterator of a query for crop_ids."""

    def __init__(self, ids: Any, rows: int) -> None:
        self._starts = iter(range(0, len(ids), rows))
        self._ids, self._rows = ids, rows

    def next(self) -> list[dict[str, int]]:
        """Return the next page, an empty one at the end."""
        first = next(self._starts, len(self._ids))
        return [{"crop_id": crop_id} for crop_id in self._ids[first : first + self._rows].tolist()]

    def close(self) -> None:
        """Do nothing."""
