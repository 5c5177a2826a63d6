"""Checks of object storage, Milvus and a checkpoint."""

import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra.errors import BucketMissing, ClvrError, ObjectChanged, ObjectExists
from infra.settings import Settings
from infra.store import Store, StoreSettings, open_store
from jobs.doctor.check import CheckResult, failed, ok, skipped, warning


def check_store(name: str, uri: str, storage: StoreSettings, *, writes: bool) -> CheckResult:
    """Check that a store can be listed and, with `writes`, written with working conditions."""
    store = open_store(uri, _with_short_timeouts(storage) if uri.startswith("s3://") else None)
    if store.local and not Path(store.uri).exists():
        return ok(name, f"{store.uri} does not exist yet: the first run creates it")
    try:
        store.ensure()
    except BucketMissing as error:
        return failed(name, error.message, error.remedy)
    if not writes:
        return ok(name, f"{store.uri} can be listed")
    key = f".doctor/{secrets.token_hex(8)}"
    try:
        fault = _check_conditional_write(store, key)
    finally:
        _delete_probe_object(store, key)
    if fault:
        return failed(name, f"{store.uri} {fault}", "Use a server that honours If-None-Match and If-Match.")
    return ok(name, f"{store.uri}: read, write, conditional create and replace, delete")


def check_archive(uri: str | None, storage: StoreSettings) -> CheckResult:
    """Check that the archive can be listed and its first object read."""
    if uri is None:
        return skipped("archive", "not requested: --archive URI")
    store = open_store(uri, _with_short_timeouts(storage) if uri.startswith("s3://") else None)
    store.ensure()
    first = next(iter(store.list()), None)
    if first is None:
        return failed("archive", f"{store.uri} is empty", "Correct the prefix: keys are case-sensitive.")
    size = len(store.get(first.key))
    return ok("archive", f"{store.uri} can be listed and read; {first.key} has {size:,} bytes")


def check_milvus(settings: Settings) -> list[CheckResult]:
    """Check that Milvus answers, and report the capabilities of its version."""
    if "://" not in settings.milvus and not Path(settings.milvus).exists():
        return [ok("milvus", f"{settings.milvus} does not exist yet: the first load creates it")]
    from jobs.runtime.resolve import open_milvus

    with open_milvus(settings) as milvus:
        capabilities = milvus.capabilities
        collections = len(milvus.call("list_collections"))
        aliases = _alias_of(milvus, settings.alias)
    server = "Milvus Lite" if capabilities.lite else "Milvus"
    results = [
        ok(
            "milvus",
            f"{server} {capabilities.version} at {settings.milvus}: {collections} collections, {aliases}",
        ),
        ok(
            "milvus index",
            f"{', '.join(sorted(capabilities.index_types))}; rows by {capabilities.import_interface}",
        ),
    ]
    if not capabilities.lite and capabilities.version_tuple < (2, 5, 5):
        results.append(
            warning(
                "milvus guard",
                f"{capabilities.version} lets any client drop the collection that an alias points to",
                "Drop generations only by `clvr retire`, or use Milvus 2.5.5 or newer.",
            )
        )
    if capabilities.lite and settings.ray:
        results.append(
            warning(
                "milvus",
                "Milvus Lite serves one machine only, but a Ray cluster is set",
                "Use a Milvus server.",
            )
        )
    return results


def check_milvus_bucket(settings: Settings, storage: StoreSettings) -> CheckResult:
    """Check that bulk import has a bucket, and whether runs are in it."""
    if "://" not in settings.milvus:
        return skipped("milvus bucket", "Milvus Lite has no bulk import")
    if not settings.milvus_bucket:
        return warning(
            "milvus bucket",
            "not set, so rows are inserted, which is slow for more than about 100,000",
            "Set CLVR_MILVUS_BUCKET to the server's own bucket.",
        )
    result = check_store("milvus bucket", settings.milvus_bucket, storage, writes=False)
    if result.state != "ok":
        return result
    inside = settings.runs.startswith(settings.milvus_bucket.rstrip("/") + "/")
    where = "runs are in it" if inside else "shards are copied into it"
    return replace(result, message=f"{result.message}; {where}")


def check_model(uri: str | None) -> CheckResult:
    """Check that a checkpoint is complete."""
    if uri is None:
        return skipped("model", "not requested: --checkpoint URI")
    from clvr_model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(uri)
    card = checkpoint.card
    trained = f", created {card.created_at[:10]}" if card.created_at else ""
    labels = f"{len(card.label_ids)} vehicle models" if card.label_ids else "no classifier of vehicle models"
    return ok("model", f"fingerprint {checkpoint.fingerprint}, {labels}{trained}")


def _with_short_timeouts(storage: StoreSettings) -> StoreSettings:
    # A diagnosis need not wait for two minutes of retries.
    return replace(storage, retries=1, retry_seconds=3.0, connect_seconds=3.0, read_seconds=5.0)


def _check_conditional_write(store: Store, key: str) -> str:
    store.create(key, b"first")
    try:
        store.create(key, b"second")
    except ObjectExists:
        pass
    else:
        return "lets a second writer overwrite a conditional create"
    etag = store.fetch(key).etag
    store.replace(key, b"third", etag=etag)
    try:
        store.replace(key, b"fourth", etag=etag)
    except ObjectChanged:
        pass
    else:
        return "ignores the etag of a conditional replace"
    return "" if store.get(key) == b"third" else "does not return the bytes that were written"


def _delete_probe_object(store: Store, key: str) -> None:
    try:
        store.delete(key)
    except ClvrError as error:
        raise type(error)(
            f"{store.uri}: the probe object cannot be deleted: {error.message}", remedy=error.remedy
        ) from error


def _alias_of(milvus: Any, alias: str) -> str:
    from index.milvus.collection import live_generation

    current = live_generation(milvus, alias)
    return f"{current.name} is live as {alias}" if current else f"no generation is live as {alias}"
