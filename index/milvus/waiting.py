"""Wait for work that a Milvus server does in the background, and notice when it makes no progress."""

import time

from index.milvus.client import Milvus
from index.milvus.collection import Generation, row_count
from infra.errors import CountMismatch, IndexRefused

POLL_SECONDS = 0.5

ROW_COUNT_STALL_SECONDS = 180.0
"""How long count(*) may stay the same before the wait fails."""

INDEX_STALL_SECONDS = 3600.0
"""The same for the indexed rows. A server counts them by segments of up to 250,000 rows: on two busy cores a
graph over 100,000 rows took longer than three minutes between two reports."""

COMPACT_AGAIN_SECONDS = 2.0
"""Between two requests to compact a generation."""

COMPACTION_SECONDS = 3600.0
"""How long the compaction of one generation may take."""

ORPHAN_STALL_SECONDS = 60.0
"""How long the imports of an interrupted load may show the same states before the wait ends."""


class StallTimer:
    """Measures how long a value has stayed the same."""

    def __init__(self) -> None:
        self._value: object = self  # equal to no value that is passed in
        self._changed_at = time.monotonic()

    def seconds_unchanged(self, value: object) -> float:
        """Return the seconds since `value` last differed from the previous call."""
        now = time.monotonic()
        if value != self._value:
            self._value, self._changed_at = value, now
        return now - self._changed_at


def wait_for_index(milvus: Milvus, generation: Generation) -> None:
    """Wait until the index covers all flushed rows. Raises IndexRefused if it fails or stalls."""
    timer = StallTimer()
    while True:
        status = milvus.call("describe_index", generation.name, "embedding")
        state, indexed_rows = str(status["state"]), status["indexed_rows"]
        if state == "Finished" and not int(status["pending_index_rows"]):
            return
        if state == "Failed":
            raise IndexRefused(f"the index of {generation.name} could not be built")
        if timer.seconds_unchanged(indexed_rows) > INDEX_STALL_SECONDS:
            raise IndexRefused(
                f"the index of {generation.name} makes no progress: "
                f"{indexed_rows} of {status['total_rows']} rows",
                remedy="Look at the server's log; it may hang on an index type that it cannot build.",
            )
        time.sleep(POLL_SECONDS)


def compact(milvus: Milvus, generation: Generation) -> None:
    """Rewrite all segments without their deleted rows, and wait for it: on a server only, Lite never does.

    The server deletes the old segments at its next garbage collection. Raises IndexRefused if it stalls.
    """
    milvus.call("flush", generation.name, timeout=600)
    deadline = time.monotonic() + COMPACTION_SECONDS
    while True:
        job = milvus.call("compact", generation.name, timeout=60)
        while not (is_done := str(milvus.call("get_compaction_state", job, timeout=60)) == "Completed"):
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        # A request leaves out segments that another compaction is rewriting, and is "Completed" at once.
        stored, visible = stored_rows(milvus, generation), row_count(milvus, generation)
        if is_done and stored == visible:
            return
        if time.monotonic() > deadline:
            raise IndexRefused(
                f"{generation.name} was not compacted within {COMPACTION_SECONDS / 60:.0f} minutes: it has "
                f"{stored:,} rows in its segments, of which {visible:,} are visible",
                remedy="Look at the server's log; then run the same command again.",
            )
        time.sleep(COMPACT_AGAIN_SECONDS)


def stored_rows(milvus: Milvus, generation: Generation) -> int:
    """Return the rows in the flushed segments of a generation on a server, deleted ones included."""
    segments = milvus.call("list_persistent_segments", generation.name, timeout=60)
    # A segment of level 0 holds deletions, not rows.
    return sum(
        int(segment.num_rows)
        for segment in segments
        if segment.state_name == "Flushed" and segment.level_name != "L0"
    )


def wait_for_row_count(milvus: Milvus, generation: Generation, expected: int) -> None:
    """Wait until count(*) is `expected`. Raises CountMismatch if it is higher, or stalls below."""
    # Rows of an import that is "Completed" are not searchable at once: it took up to 18 s on Milvus 2.3.5.
    timer = StallTimer()
    while (rows := row_count(milvus, generation)) != expected:
        if rows > expected or timer.seconds_unchanged(rows) > ROW_COUNT_STALL_SECONDS:
            raise CountMismatch(
                f"{generation.name}: {rows:,} rows in the index, {expected:,} in the shards",
                remedy="Load again: `clvr load`.",
            )
        time.sleep(POLL_SECONDS)


def wait_for_orphaned_jobs(milvus: Milvus, collection: str) -> None:
    """Wait until a 2.3 server has finished, or stalled on, the imports of an interrupted load.

    Dropping a collection during an import leaves the data node of 2.3.5 "busy", and it starts no further
    import into any collection.
    """
    timer = StallTimer()
    while True:
        states = [
            (task.task_id, task.state_name, task.infos.get("progress_percent"))
            for task in milvus.bulk_inserts(collection)
        ]
        if all(name == "Completed" or name.startswith("Failed") for _, name, _ in states):
            return
        if timer.seconds_unchanged(states) > ORPHAN_STALL_SECONDS:
            return
        time.sleep(POLL_SECONDS)
