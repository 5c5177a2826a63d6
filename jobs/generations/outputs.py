"""Purge and search of what commands wrote elsewhere: sweeps, pages, tables and trainings."""

from collections.abc import Iterator, Sequence

import pyarrow.compute as pc

from index.generations.receipt import Place
from index.generations.traces import erased_tokens, redact, rows_of_erased
from index.outputs import FEATURES_PREFIX, Output, list_outputs, unfinished_page
from index.parquet import open_parquet, write_table
from index.runs.tombstones import ErasedCrops
from index.search.calibration import calibration_for
from infra.errors import ClvrError
from infra.store import Store, ignore_missing_root, open_store, split_uri
from infra.store.interrupted import interrupted_writes, remove_interrupted_writes
from infra.store.sealed import seal, unseal
from jobs.runtime.fiftyone import dataset_keys
from jobs.sweep.audit import AuditLog
from jobs.sweep.purge import count_in_sweep, purge_sweep
from jobs.sweep.state import Sweep

GONE = "is not there any more"
_WRITTEN_AGAIN = "deleted; the same command writes it again"


def purge_outputs(stores: Sequence[Store], erased: ErasedCrops) -> list[Place]:
    """Remove erased crops from every recorded output; one that cannot be read is left, and says so."""
    return [_attempt(store, output, erased) for store in stores for output in outputs_of(store)]


def find_in_outputs(stores: Sequence[Store], erased: ErasedCrops) -> list[Place]:
    """Count erased crops in every output that is recorded, and change nothing."""
    return [_attempt(store, output, erased, purge=False) for store in stores for output in outputs_of(store)]


def outputs_of(store: Store) -> Iterator[Output]:
    """Yield the recorded outputs, and the sweeps that only the audit log knows, each once."""
    known = {output.uri: output for output in list_outputs(store)}
    for _, record in AuditLog.read(store).records:
        uri = str(record.request.get("out", ""))
        if uri:
            try:
                canonical = open_store(uri).uri
            except ClvrError:
                continue
            known.setdefault(canonical, Output("sweep", canonical, (), record.when))
    yield from known.values()


def _attempt(store: Store, output: Output, erased: ErasedCrops, *, purge: bool = True) -> Place:
    try:
        if output.kind == "sweep":
            return _sweep(store, output, erased, purge=purge)
        if output.kind == "training":
            return _training(output, erased, purge=purge)
        if output.kind == "dataset":
            return _dataset(output, erased, purge=purge)
        return _file(output, erased, purge=purge)
    except ClvrError as error:
        return Place(output.kind, output.uri, 0, 0, f"not looked at: {error.message}")


def _sweep(store: Store, output: Output, erased: ErasedCrops, *, purge: bool) -> Place:
    folder = open_store(output.uri, store.settings if not store.local else None)
    if not purge:
        found = count_in_sweep(folder, erased)
        cut_off = len(interrupted_writes(folder))
        return Place("sweep", output.uri, (found or 0) + cut_off, 0, GONE if found is None else "")
    remove_interrupted_writes(folder)
    sweep = Sweep.open(folder)
    info = sweep.info if sweep else None
    calibration = calibration_for(store, info.generation, info.fingerprint, info.transform) if info else None
    return purge_sweep(folder, erased, calibration) or Place("sweep", output.uri, 0, 0, GONE)


def _file(output: Output, erased: ErasedCrops, *, purge: bool) -> Place:
    root, key = split_uri(output.uri)
    folder = open_store(root)
    if output.kind == "table":
        if folder.head(key) is None:
            return Place(output.kind, output.uri, 0, 0, GONE)
        return _table(output, folder, key, erased, purge=purge)
    # A command that was cut off leaves an unfinished page beside it.
    keys = [name for name in (key, unfinished_page(key)) if folder.head(name) is not None]
    if not keys:
        return Place(output.kind, output.uri, 0, 0, GONE)
    shows_erased = erased.is_erased_anonymous(output.crops)
    doomed = [
        name
        for name in keys
        if shows_erased or erased_tokens(folder.get(name).decode(errors="replace"), erased)
    ]
    if not doomed or not purge:
        return Place(output.kind, output.uri, len(doomed))
    folder.delete(*doomed)
    return Place(output.kind, output.uri, len(doomed), len(doomed), _WRITTEN_AGAIN)


def _dataset(output: Output, erased: ErasedCrops, *, purge: bool) -> Place:
    """An export of a run: its images and one file with all of its crops."""
    folder = open_store(output.uri)
    keys: list[str] = []
    with ignore_missing_root(folder):
        keys = dataset_keys(folder)
    cut_off = len(interrupted_writes(folder))
    if not keys and not cut_off:
        return Place(output.kind, output.uri, 0, 0, GONE)
    doomed = keys if erased.is_erased_anonymous(output.crops) else []
    found = len(doomed) + cut_off
    if purge:
        remove_interrupted_writes(folder)
        folder.delete(*doomed)
    note = _WRITTEN_AGAIN if doomed and purge else ""
    return Place(output.kind, output.uri, found, found if purge else 0, note)


def _table(output: Output, folder: Store, key: str, erased: ErasedCrops, *, purge: bool) -> Place:
    with open_parquet(folder, key) as file:
        table = file.read()
    is_erased = rows_of_erased(table, erased)
    found = int(pc.sum(is_erased, min_count=0).as_py())
    if found and purge:
        write_table(folder, key, table.filter(pc.invert(is_erased)).replace_schema_metadata(), metadata={})
    return Place(output.kind, output.uri, found, found if purge else 0)


def _training(output: Output, erased: ErasedCrops, *, purge: bool) -> Place:
    """The report shows images; an unfinished training has features of its images, and names some."""
    folder = open_store(output.uri)
    shows_erased = erased.is_erased_anonymous(output.crops)
    doomed: list[str] = []
    found = len(interrupted_writes(folder))
    for key in [info.key for info in folder.list()]:
        if key.rpartition("/")[2].startswith(FEATURES_PREFIX):
            doomed += [key] if shows_erased else []
            found += int(shows_erased)
        elif key.endswith((".json", ".html")):
            data = folder.get(key)
            tokens = erased_tokens(data.decode(errors="replace"), erased)
            shows = shows_erased and key.endswith(".html")
            found += len(tokens) or int(shows)
            if key.endswith(".html"):
                doomed += [key] if tokens or shows else []
            elif tokens and purge:
                values, _ = redact(unseal(data, folder.uri_of(key)), erased)
                folder.put(key, seal(values))
    if purge:
        folder.delete(*doomed)
        remove_interrupted_writes(folder)
    return Place("training", output.uri, found, found if purge else 0)
