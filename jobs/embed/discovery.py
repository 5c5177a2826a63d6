"""Which crops a command means: the first phase of `embed`, and all that `plan` looks at. Writes nothing."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.archive.diff import Changes, days_of, diff_manifests, in_lookback
from index.archive.inventory import is_inventory, read_inventory
from index.archive.key_pattern import KeyPattern
from index.archive.labels import read_label_table, with_labels
from index.archive.listing import Listing, list_crops
from index.archive.manifest import read_manifest
from index.archive.reader import ArchiveReader
from index.runs.lineage import known_crops
from index.runs.run import Run
from index.schema import MANIFEST_SCHEMA
from infra.errors import BadInput, BadSetting, EmptyArchive
from infra.store import Store

_MAX_CONCURRENT_HEADS = 32


class NoChanges(EmptyArchive):
    """No crop that is new, changed or vanished since the run that the archive is compared with.

    `unchanged` counts those that are as they were.
    """

    unchanged = 0


@dataclass(frozen=True, slots=True)
class Source:
    """Which crops of an archive are meant. Without more than `archive`: all of them.

    manifest: an S3 Inventory's manifest.json, or a Parquet or CSV list of keys, instead of a listing.
    labels: the side table, for camera, time, track and labels. since_run: only what is new or changed since
    that run, listing no further back than lookback_days before its newest day. requeue: the quarantine of
    that run alone, of it only `causes` ('truncated' or 'decode/truncated') if there are any.
    """

    archive: str
    key_pattern: str | None = None
    manifest: str | None = None
    labels: str | None = None
    since_run: str | None = None
    lookback_days: int | None = None
    requeue: str | None = None
    causes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.requeue and (self.manifest or self.since_run):
            raise BadSetting("--requeue takes its crops from a run, not from --manifest or --since-run")
        if self.causes and not self.requeue:
            raise BadSetting("--cause needs --requeue RUN")
        if self.lookback_days is not None and (not self.since_run or self.manifest):
            raise BadSetting("--lookback-days needs --since-run RUN and a listing, not --manifest")
        if self.lookback_days is not None and self.lookback_days < 0:
            raise BadSetting(f"--lookback-days is {self.lookback_days}")

    def origin(self) -> dict[str, Any]:
        """What decides which crops a run is made of, as it stands in run.json beside the archive."""
        return {
            "manifest": self.manifest,
            "since_run": self.since_run,
            "lookback_days": self.lookback_days,
            "requeue": self.requeue,
            "causes": list(self.causes),
        }


@dataclass(frozen=True, slots=True)
class Discovery:
    """The crops that were found, and what is to be said of how."""

    manifest: pa.Table
    notes: list[str] = field(default_factory=list)
    ignored: int = 0
    unmatched: int = 0
    changes: Changes | None = None


def discover(source: Source, archive: Store, runs: Store) -> Discovery:
    """Find the crops that are meant; `archive` is the store at `source.archive`.

    Raises EmptyArchive where there are none, StoreError, BadInput for lists and labels that cannot be
    trusted, BadSetting for a key pattern.
    """
    archive.ensure()
    found = _crops_to_retry(source, archive, runs) if source.requeue else _found(source, archive, runs)
    if source.labels is None:
        return found
    labels = read_label_table(source.labels)
    manifest, joined = with_labels(found.manifest, labels, archive=archive.uri)
    note = (
        f"labels: {joined.labelled:,} crops labelled, {joined.unlabelled:,} not, "
        f"{joined.unmatched:,} labels of no crop here"
    )
    return replace(found, manifest=manifest, notes=[*found.notes, note])


def _found(source: Source, archive: Store, runs: Store) -> Discovery:
    before = known_crops(runs, source.since_run) if source.since_run else None
    since = None
    if before is not None and source.lookback_days is not None:
        days = days_of(before["uri"], archive.uri).values()
        since = max(days) - timedelta(source.lookback_days) if days else None
    listing = _listing(source, archive, since)
    note = f"archive {archive.uri}: {listing.manifest.num_rows:,} crops"
    if since is not None:
        note += f" since {since}"
    note += f", {listing.ignored:,} other objects ignored"
    if listing.unmatched:
        note += f", {listing.unmatched:,} keys not written like the pattern"
    if before is None:
        return Discovery(listing.manifest, [note], listing.ignored, listing.unmatched)
    shown = None if since is None else in_lookback(before["uri"], archive.uri, since)
    changes = diff_manifests(listing.manifest, before, shown=shown)
    notes = [note, f"since run {source.since_run}: {changes}"]
    if not changes.fresh.num_rows and not len(changes.vanished):
        nothing = NoChanges(
            f"{archive.uri} has no new, changed or vanished crop since run {source.since_run} ({changes})",
            remedy="There is nothing to embed.",
        )
        nothing.unchanged = changes.unchanged
        raise nothing
    return Discovery(changes.fresh, notes, listing.ignored, listing.unmatched, changes)


def _listing(source: Source, archive: Store, since: Any) -> Listing:
    pattern = KeyPattern(source.key_pattern) if source.key_pattern else None
    if source.manifest is None:
        return list_crops(archive, pattern=pattern, since=since)
    if is_inventory(source.manifest):
        return read_inventory(source.manifest, archive=archive, pattern=pattern, settings=archive.settings)
    manifest = read_manifest(source.manifest, archive=archive.uri, pattern=pattern, settings=archive.settings)
    foreign = manifest.filter(pc.invert(pc.starts_with(manifest["uri"], archive.uri_of(""))))
    if foreign.num_rows:
        raise BadInput(
            f"{source.manifest} names {foreign.num_rows:,} crops outside of {archive.uri}, "
            f"such as {foreign['uri'][0]}",
            remedy="Name the archive's root that all of them lie below.",
        )
    return Listing(manifest, 0, 0)


def _crops_to_retry(source: Source, archive: Store, runs: Store) -> Discovery:
    assert source.requeue is not None  # noqa: S101  # for the type checker; the caller looked
    run = Run.open(runs, source.requeue)
    if run.info.archive != archive.uri:
        raise BadInput(f"run {run.run_id} is of the archive {run.info.archive}, not of {archive.uri}")
    quarantine = run.quarantine()
    if source.causes:
        whole = pc.binary_join_element_wise(quarantine["stage"], quarantine["cause"], "/")
        asked = pa.array(source.causes)
        chosen = pc.or_(pc.is_in(whole, value_set=asked), pc.is_in(quarantine["cause"], value_set=asked))
        quarantine = quarantine.filter(chosen)
    if not quarantine.num_rows:
        causes = f" with cause {', '.join(source.causes)}" if source.causes else ""
        raise EmptyArchive(f"the quarantine of run {run.run_id} has no crop{causes}")
    manifest = run.manifest()
    rows = manifest.filter(pc.is_in(manifest["crop_id"], value_set=quarantine["crop_id"].combine_chunks()))
    manifest = pa.Table.from_pylist(list(_refresh_metadata(rows, archive)), MANIFEST_SCHEMA)
    return Discovery(manifest, [f"requeued from run {run.run_id}: {manifest.num_rows:,} crops"])


def _refresh_metadata(rows: pa.Table, archive: Store) -> Iterator[dict[str, Any]]:
    """Yield rows with today's etag, size and time: a crop is often requeued because it was written anew."""
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
