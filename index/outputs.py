"""What commands wrote outside the folder of runs and what shows crops there: kept so that a purge finds it.

outputs/<digest of the URI>.json
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from index.documents import JsonDocument, utc_now
from index.runs.tombstones import anonymous_ids, read_tombstones
from infra.errors import BadInput, ClvrError
from infra.store import Store, ignore_missing_root

_logger = logging.getLogger("clvr")

FEATURES_PREFIX = "features-"
"""How the names of the feature caches in the folder of a training begin."""

OutputKind = Literal["sweep", "page", "table", "training", "export", "dataset"]


@dataclass(frozen=True, slots=True)
class Output(JsonDocument):
    """One folder or file. `crops` are the anonymous numbers of the crops whose images it shows."""

    NOUN = "record of an output"

    kind: OutputKind
    uri: str
    crops: tuple[int, ...]
    written: str


def record_output(store: Store, kind: OutputKind, uri: str, crop_ids: Iterable[int] = ()) -> None:
    """Record what is about to be written, with the crop_ids of the crops whose images it shows.

    store: the folder of runs. One that may not be written is no reason not to search: then a warning says
    that a purge will not find the output.
    """
    try:
        numbers = anonymous_ids(store, np.fromiter(crop_ids, np.int64)).tolist()
        output = Output(kind, uri, tuple(sorted(numbers)), utc_now())
        store.put(f"outputs/{hashlib.sha256(uri.encode()).hexdigest()[:16]}.json", output.to_json())
    except ClvrError as error:
        _logger.warning("%s is not recorded, so a purge will not find it: %s", uri, error.message)


def list_outputs(store: Store) -> Iterator[Output]:
    """Yield all records, in no particular order. Raises CorruptObject, SchemaMismatch."""
    with ignore_missing_root(store):
        for info in store.list("outputs"):
            yield Output.read(store, info.key)


def unfinished_page(name: str) -> str:
    """Return the name of a page, or its key, while it is being written."""
    return f"{name}.part"


def withdraw_erased(store: Store, page: Path, crop_ids: Iterable[int]) -> None:
    """Delete a page that was just written if one of its crops was erased meanwhile, and raise BadInput.

    Called after the write: a purge has either not begun, and will see the page, or is seen here.
    """
    if read_tombstones(store).erased_ids(crop_ids):
        page.unlink(missing_ok=True)
        raise BadInput(f"a crop that {page} shows was erased meanwhile", remedy="Run the same command again.")
