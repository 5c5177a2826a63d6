"""The crops that a command embeds: the first phase of `embed`, and all that `plan` reads."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from index.archive.diff import Changes
from index.archive.inventory import is_inventory, read_inventory
from index.archive.key_choice import KeyChoice
from index.archive.key_pattern import KeyPattern
from index.archive.labels import read_label_table, require_fit, with_labels
from index.archive.listing import Listing
from index.archive.manifest import read_manifest
from index.archive.reader import ArchiveReader
from index.archive.reassigned import ReassignedIds, read_reassigned, record_reassigned
from index.archive.skipped import SkippedObjects
from index.archive.spool import Spool, TableFile
from index.catalogue.catalogue import open_catalogue
from index.catalogue.comparison import (
    ListedCrops,
    choose_ids,
    compare_listing,
    find_shared_ids,
    newest_day,
    take_listing,
    with_ids,
)
from index.catalogue.partition import KnownPartitions
from index.runs.accounting import ERASED_URI, crop_ids
from index.runs.run import Run, list_runs
from index.runs.tombstones import ErasedCrops, read_tombstones
from index.schema import MANIFEST_SCHEMA
from infra.errors import BadInput, BadSetting, ClvrError, EmptyArchive, StoreError
from infra.settings import Settings
from infra.store import Store, TimeRange, is_hidden, open_store, split_uri
from jobs.embed.listing import MAX_LOCAL_CROPS, ListingRequest, PlanningTasks, list_archive
from jobs.runtime.resolve import find_run

_MAX_CONCURRENT_HEADS = 32
_SAMPLED_CROPS = 64  # of a list
_MIN_EXISTING = 0.02  # of a sample


class NoChanges(EmptyArchive):
    """The archive has no new, changed or vanished crop since the run that it is compared with.

    `unchanged` counts the crops that are the same as in that run.
    """

    unchanged = 0


@dataclass(frozen=True, slots=True)
class CropSelection:
    """The crops of an archive to embed; with `archive` alone, all of them.

    manifest: an S3 Inventory's manifest.json, or a Parquet or CSV list of keys, instead of a listing.
    labels: the side table, for camera, time, track and labels.
    since_run: select crops that are new or changed since this run; with lookback_days, list no further back
    than so many days before its newest day.
    retry_quarantined: select the quarantined crops of this run, with `causes` ('truncated' or
    'decode/truncated') only those.
    include, exclude: globs over keys, see `KeyChoice`; without them a listing has no hidden files, and a list
    all that it names. times: the plausible capture times; None: those of the environment.
    """

    archive: str
    key_pattern: str | None = None
    manifest: str | None = None
    labels: str | None = None
    since_run: str | None = None
    lookback_days: int | None = None
    retry_quarantined: str | None = None
    causes: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    times: TimeRange | None = None

    def __post_init__(self) -> None:
        if self.retry_quarantined and (self.manifest or self.since_run):
            raise BadSetting("--requeue takes its crops from a run, not from --manifest or --since-run")
        if self.causes and not self.retry_quarantined:
            raise BadSetting("--cause needs --requeue RUN")
        if self.lookback_days is not None and (not self.since_run or self.manifest):
            raise BadSetting("--lookback-days needs --since-run RUN and a listing, not --manifest")
        if self.lookback_days is not None and self.lookback_days < 0:
            raise BadSetting(f"--lookback-days is {self.lookback_days}")

    def origin(self) -> dict[str, Any]:
        """Return the settings that decide the crops of a run, as run.json keeps them beside the archive.

        They have the content of the list and of the labels, so that a run of a corrected file is another run.
        """
        return {
            "manifest": self.manifest,
            "since_run": self.since_run,
            "lookback_days": self.lookback_days,
            "requeue": self.retry_quarantined,
            "causes": list(self.causes),
            "include": list(self.include) or None,
            "exclude": list(self.exclude) or None,
            "manifest_sha256": _content_digest(self.manifest),
            "labels_sha256": _content_digest(self.labels),
        }

    def choice(self) -> KeyChoice:
        """Return the choice of keys. Raises BadSetting for an unusable glob."""
        return KeyChoice(self.include, self.exclude)


Selection = TypeVar("Selection", bound=CropSelection)


def with_run_ids(selection: Selection, settings: Settings) -> Selection:
    """Return a selection whose runs are named by their ids: `latest` is the newest finished one.

    Raises BadInput for a run that does not exist, or that was merged into another one.
    """
    since, requeue = (
        find_run(name, settings).run_id if name else None
        for name in (selection.since_run, selection.retry_quarantined)
    )
    return replace(selection, since_run=since, retry_quarantined=requeue)


@dataclass(frozen=True, slots=True)
class Discovery:
    """The selected crops, notes for the user, and how they differ from an earlier run.

    crops: manifest rows in tables of one partition each, on local disk.
    """

    crops: TableFile
    notes: list[str] = field(default_factory=list)
    ignored: int = 0
    unmatched: int = 0
    changes: Changes | None = None


def discover(
    selection: CropSelection,
    archive: Store,
    runs: Store,
    *,
    keep: bool = True,
    tasks: PlanningTasks | None = None,
) -> Discovery:
    """Find the selected crops; `archive` is the store at `selection.archive`.

    keep: write what later runs need, which is the catalogue that the archive is compared with, and crop_ids
    that were given anew. tasks: list and compare a large archive by them. Memory for the crops of
    one partition, of some with tasks, and for a table of labels with its crops.
    Raises EmptyArchive without crops, StoreError, BadInput for lists and labels that are not valid,
    BadSetting for a key pattern.
    """
    archive.ensure()
    erased = read_tombstones(runs)
    if selection.retry_quarantined:
        discovery = _quarantined_crops(selection, archive, runs, erased)
    else:
        discovery = _listed_crops(selection, archive, runs, erased, keep=keep, tasks=tasks)
    if selection.labels is None:
        return discovery
    labels = read_label_table(selection.labels, times=selection.times)
    manifest, joined = with_labels(discovery.crops.read(), labels, archive=archive.uri)
    if selection.since_run is None and selection.retry_quarantined is None:
        # Only a part of the archive was selected otherwise, and all labels may be of the other part.
        require_fit(joined, manifest, selection.labels)
    note = (
        f"labels: {joined.labelled:,} crops labelled, {joined.unlabelled:,} not, "
        f"{joined.unmatched:,} labels without a crop"
    )
    return replace(discovery, crops=TableFile.of([manifest], MANIFEST_SCHEMA), notes=[*discovery.notes, note])


def _listed_crops(
    selection: CropSelection,
    archive: Store,
    runs: Store,
    erased: ErasedCrops,
    *,
    keep: bool,
    tasks: PlanningTasks | None,
) -> Discovery:
    """List the archive, and compare it with an earlier run if one is given."""
    known = _known_crops(selection, archive, runs, keep=keep)
    since = None
    if known is not None and selection.lookback_days is not None:
        newest = newest_day(known)
        since = newest - timedelta(selection.lookback_days) if newest else None
    listing = _list(selection, archive, runs, since, tasks)
    reassigned = read_reassigned(runs)
    if known is None:
        found = take_listing(listing.crops, erased, reassigned)
    else:
        each = tasks.each if tasks and listing.crops.num_rows > MAX_LOCAL_CROPS else map
        found = compare_listing(listing.crops, known, erased, reassigned, since=since, each=each)
    note = f"archive {archive.uri}: {found.listed:,} crops"
    if since is not None:
        note += f" since {since}"
    note += f", {listing.num_not_images:,} other objects ignored"
    if listing.unmatched:
        note += f", {listing.unmatched:,} keys do not match the pattern"
    if found.erased:
        note += f", {found.erased:,} left out because they were erased"
    notes = [note, *listing.notes()]
    changes = found.changes
    if changes is not None:
        if not found.crops.num_rows and not len(changes.vanished):
            error = NoChanges(
                f"{archive.uri} has no new, changed or vanished crop since run {selection.since_run} "
                f"({changes})",
                remedy="There is nothing to embed.",
            )
            error.unchanged = changes.unchanged
            raise error
        notes.append(f"since run {selection.since_run}: {changes}")
    found, given = _with_own_ids(found, known, archive, runs, keep=keep)
    if given:
        notes.append(
            f"{given:,} crops got another crop_id, because another crop has theirs, a hash of the URI"
        )
    return Discovery(found.crops, notes, listing.num_not_images, listing.unmatched, changes)


def _known_crops(
    selection: CropSelection, archive: Store, runs: Store, *, keep: bool
) -> KnownPartitions | None:
    """Return the catalogue of the run that the archive is compared with. Raises BadInput, CountMismatch."""
    if selection.since_run is None:
        return None
    known = open_catalogue(runs, selection.since_run, keep=keep)
    if known.catalogue.archive != archive.uri:
        raise BadInput(
            f"run {selection.since_run} is of the archive {known.catalogue.archive}, not of {archive.uri}",
            remedy="Name a run of this archive, or leave out --since-run.",
        )
    return known


def _with_own_ids(
    found: ListedCrops, known: KnownPartitions | None, archive: Store, runs: Store, *, keep: bool
) -> tuple[ListedCrops, int]:
    """Give another crop_id to each crop whose id belongs to another crop; return how many that were."""
    shared = find_shared_ids(found, known)
    if not shared:
        return found, 0
    earlier = [run for run in list_runs(runs) if run.info.archive == archive.uri]
    ids = choose_ids(shared, earlier, found, known)
    if keep:
        record_reassigned(runs, ids)
    return with_ids(found, ReassignedIds(ids)), len(ids)


def _list(
    selection: CropSelection, archive: Store, runs: Store, since: date | None, tasks: PlanningTasks | None
) -> Listing:
    """List the archive itself, or read the list of keys that stands in for it."""
    pattern = KeyPattern(selection.key_pattern, selection.times) if selection.key_pattern else None
    if selection.manifest is None:
        text = f"{selection.key_pattern} {selection.times}"
        return list_archive(archive, runs, ListingRequest(pattern, text, selection.choice(), since), tasks)
    if is_inventory(selection.manifest):
        return read_inventory(
            selection.manifest,
            archive=archive,
            pattern=pattern,
            settings=archive.settings,
            choice=selection.choice(),
        )
    skipped = SkippedObjects()
    manifest = read_manifest(
        selection.manifest,
        archive=archive.uri,
        pattern=pattern,
        settings=archive.settings,
        times=selection.times,
        skipped=skipped,
    )
    foreign = manifest.filter(pc.invert(pc.starts_with(manifest["uri"], archive.uri_of(""))))
    if foreign.num_rows:
        raise BadInput(
            f"{selection.manifest} names {foreign.num_rows:,} crops outside of {archive.uri}, "
            f"such as {foreign['uri'][0]}",
            remedy="Give a folder that contains all of them as the archive.",
        )
    if selection.include or selection.exclude:
        manifest = _chosen(manifest, archive, selection.choice(), skipped)
    _require_existing(manifest, archive, selection.manifest)
    crops = Spool(archive.uri, MANIFEST_SCHEMA)
    crops.add(manifest)
    return Listing(crops, 0, 0, skipped)


def _chosen(manifest: pa.Table, archive: Store, choice: KeyChoice, skipped: SkippedObjects) -> pa.Table:
    reader = ArchiveReader(archive)
    mask = []
    for uri in manifest["uri"].to_pylist():
        cause = choice.why_not(reader.key_of(uri))
        if cause:
            skipped.add(cause, uri)
        mask.append(not cause)
    chosen = manifest.filter(pa.array(mask, pa.bool_()))
    if not chosen.num_rows:
        raise EmptyArchive("; ".join(["the list has no crop that is chosen", *skipped.notes()]))
    return chosen


def _require_existing(manifest: pa.Table, archive: Store, source: str) -> None:
    """Raise BadInput, with an example of each side, if (almost) no crop of a sample of the list exists.

    A run would be frozen that can never be finished. What cannot be asked about counts as existing.
    """
    stride = -(-manifest.num_rows // _SAMPLED_CROPS)
    uris = manifest["uri"][::stride].to_pylist()
    reader = ArchiveReader(archive)

    def exists(uri: str) -> bool:
        try:
            return reader.head(uri) is not None
        except StoreError:
            return True

    with ThreadPoolExecutor(_MAX_CONCURRENT_HEADS) as pool:
        missing = [uri for uri, found in zip(uris, pool.map(exists, uris), strict=True) if not found]
    if len(uris) - len(missing) > _MIN_EXISTING * len(uris):
        return
    present = next((info.key for info in archive.list() if not is_hidden(info.key)), None)
    example = f"the archive has {archive.uri_of(present)}" if present else f"{archive.uri} has no object"
    raise BadInput(
        f"of {len(uris):,} sampled crops of {source}, {len(missing):,} do not exist: it names {missing[0]}, "
        f"{example}",
        remedy="Make the column 'uri' or 'key' the crops' own; keys are relative to the archive.",
    )


def _content_digest(uri: str | None) -> str | None:
    """Return the SHA-256 of a file, or None where there is none to read; its reader says why."""
    if uri is None:
        return None
    try:
        root, key = split_uri(uri)
        return hashlib.sha256(open_store(root).get(key)).hexdigest()
    except ClvrError:
        return None


def _quarantined_crops(
    selection: CropSelection, archive: Store, runs: Store, erased: ErasedCrops
) -> Discovery:
    """Select the quarantine of a run, with the present metadata of its crops."""
    assert selection.retry_quarantined is not None  # noqa: S101  # for the type checker
    run = Run.open(runs, selection.retry_quarantined)
    if run.info.archive != archive.uri:
        raise BadInput(f"run {run.run_id} is of the archive {run.info.archive}, not of {archive.uri}")
    quarantine = run.quarantine()
    quarantine = quarantine.filter(
        pc.and_not(
            pc.not_equal(quarantine["uri"], ERASED_URI), pa.array(erased.is_erased(crop_ids(quarantine)))
        )
    )
    if selection.causes:
        qualified = pc.binary_join_element_wise(quarantine["stage"], quarantine["cause"], "/")
        causes = pa.array(selection.causes)
        is_selected = pc.or_(
            pc.is_in(qualified, value_set=causes), pc.is_in(quarantine["cause"], value_set=causes)
        )
        quarantine = quarantine.filter(is_selected)
    if not quarantine.num_rows:
        with_causes = f" with cause {', '.join(selection.causes)}" if selection.causes else ""
        raise EmptyArchive(f"the quarantine of run {run.run_id} has no crop{with_causes}")
    wanted = quarantine["crop_id"].combine_chunks()
    rows = pa.concat_tables(
        rows.filter(pc.is_in(rows["crop_id"], value_set=wanted)) for rows in run.manifest_tables()
    )
    manifest = pa.Table.from_pylist(list(_refresh_metadata(rows, archive)), MANIFEST_SCHEMA)
    crops = TableFile.of([manifest], MANIFEST_SCHEMA)
    return Discovery(crops, [f"requeued from run {run.run_id}: {manifest.num_rows:,} crops"])


def _refresh_metadata(rows: pa.Table, archive: Store) -> Iterator[dict[str, Any]]:
    """Yield rows with the present etag, size and time: many crops are retried because they were rewritten."""
    crops = rows.to_pylist()
    reader = ArchiveReader(archive)
    with ThreadPoolExecutor(_MAX_CONCURRENT_HEADS) as pool:
        heads = pool.map(lambda crop: reader.head(crop["uri"]), crops)
        for crop, head in zip(crops, heads, strict=True):
            if head is not None:
                crop |= {
                    "etag": head.etag,
                    "size": head.size,
                    "last_modified": round(head.last_modified.timestamp() * 1000),
                }
            yield crop
