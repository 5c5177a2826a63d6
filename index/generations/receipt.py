"""The receipt of an erasure: what was erased, and every place that was looked at."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from index.documents import JsonDocument, OptionalUtcTime, UtcTime
from index.generations.records import Unit
from infra.store import Store

State = Literal["dry run", "nothing matches", "begun", "purging", "done"]


@dataclass(frozen=True, slots=True)
class GenerationErasure:
    """One generation: rows before, matching rows of them, rows after, and matching rows that are `left`.

    `folder` is the folder of runs that holds its record. In a generation of tracks a row leaves with the
    first erased crop that has a share in it: `crops` counts the erased crops on the matching rows, and
    `withdrawn` the other ones, which the next load brings back.
    """

    generation: str
    alias: str
    live: bool
    rows_before: int
    matching: int
    rows_after: int | None = None
    left: int | None = None
    folder: str = ""
    unit: Unit = "crop"
    crops: int | None = None
    withdrawn: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """One place that may hold erased crops.

    `found` counts rows or objects of erased crops there, `removed` those that are gone now; the rest is
    hidden by the tombstones. `note` says how, or why something stays.
    """

    kind: str
    where: str
    found: int
    removed: int = 0
    note: str = ""

    @property
    def left(self) -> int:
        """How many are still there."""
        return self.found - self.removed


@dataclass(frozen=True, slots=True)
class Receipt(JsonDocument):
    """What was erased, where, when, by whom and why. A dry run has no id and changes nothing.

    `crops` counts the matching crops of all manifests and generations, `copies` those of them that have other
    names and the same bytes; `unread` counts those whose bytes are unknown, so that a copy under another name
    is not recognised. `runs` counts their embedded rows by run. `unknown_time` counts crops that match except
    for their unknown time: they are not erased. `purge`: whether their bytes are removed too. `folders`: all
    folders of runs that the erasure reaches. `by_design`: what no erasure can reach, and how to find it.
    """

    NOUN = "receipt"

    erasure_id: str
    state: State
    wanted: dict[str, Any]
    reason: str
    by: str
    begun: UtcTime
    crops: int
    unknown_time: int
    runs: dict[str, int]
    generations: tuple[GenerationErasure, ...]
    tombstones: str = ""
    finished: OptionalUtcTime = ""
    copies: int = 0
    unread: int = 0
    purge: bool = False
    folders: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    by_design: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        """How many rows and objects of erased crops are left in all places."""
        return sum(place.left for place in self.places)


def receipt_key(erasure_id: str) -> str:
    """Return the key of a receipt."""
    return f"erasures/{erasure_id}/receipt.json"


def read_receipt(store: Store, erasure_id: str) -> Receipt:
    """Read the receipt of an erasure. Raises ObjectMissing, SchemaMismatch."""
    return Receipt.read(store, receipt_key(erasure_id))


def beyond_reach(stores: Iterable[Store], archives: Iterable[str], *, server: bool) -> tuple[str, ...]:
    """Say what no erasure reaches, and how to find it. server: whether Milvus is one, or a local file."""
    notes = [f"the images themselves, in {archive}: delete them there" for archive in sorted(set(archives))]
    for store in stores:
        if store.local:
            notes.append(f"backups and snapshots of {store.uri}")
        else:
            bucket, _, prefix = store.uri.removeprefix("s3://").partition("/")
            notes.append(
                f"older versions of objects: aws s3api list-object-versions --bucket {bucket}"
                + (f" --prefix {prefix}/" if prefix else "")
            )
            notes.append(f"parts of interrupted uploads: aws s3api list-multipart-uploads --bucket {bucket}")
            notes.append(f"backups and replicas of {store.uri}")
    if server:
        notes.append(
            "in Milvus: deleted segments until its garbage collection (dataCoord.gc.dropTolerance, 3 hours "
            "by default), and its message log until its retention"
        )
    return (
        *notes,
        "backups of Milvus",
        "pages, tables and images that people downloaded or copied",
        "what models learnt from the images: train again without them",
    )
