"""Stage shards for an import: a Milvus server reads only its own bucket."""

from collections.abc import Iterator
from contextlib import contextmanager

from index.generations.load_plan import LoadPlan, PlannedShard
from index.milvus.bulk_import import ImportFile
from index.runs.shards import write_shard
from infra.store import Store, open_store


def is_in_bucket(shard: PlannedShard, bucket: str) -> bool:
    """Return whether a shard is in the server's bucket ('s3://name')."""
    return shard.store.uri_of(shard.info.key).startswith(bucket.rstrip("/") + "/")


@contextmanager
def import_source(plan: LoadPlan, generation: str, bucket: str) -> Iterator[Iterator[ImportFile]]:
    """Yield the files of a plan for import, each staged when it is needed; copies are deleted at the end.

    A shard in the server's bucket is imported as it is, and one elsewhere is copied, within the object store
    if possible. A shard with excluded rows is rewritten without them, because Milvus imports whole files, and
    one whose vectors are transformed with these.
    """
    folder = _staging_folder(plan, generation, bucket)
    copied: list[str] = []
    try:
        yield _stage(plan, folder, bucket.rstrip("/") + "/", copied)
    finally:
        folder.delete(*copied)


def delete_copies(plan: LoadPlan, generation: str, bucket: str) -> None:
    """Delete the copies of a load that was killed, with the store settings of the plan's runs."""
    folder = _staging_folder(plan, generation, bucket)
    folder.delete(*(info.key for info in folder.list()))


def _staging_folder(plan: LoadPlan, generation: str, bucket: str) -> Store:
    runs_store = plan.shards[0].store
    settings = None if runs_store.local else runs_store.settings
    return open_store(f"{bucket.rstrip('/')}/clvr-import/{generation}", settings)


def _stage(plan: LoadPlan, folder: Store, bucket: str, copied: list[str]) -> Iterator[ImportFile]:
    for number, shard in enumerate(plan.shards):
        if not shard.rows:
            continue
        is_as_stored = not shard.excluded_ids.size and plan.transform is None
        if is_in_bucket(shard, bucket) and is_as_stored:
            yield ImportFile(shard.store.uri_of(shard.info.key).removeprefix(bucket), shard.rows)
            continue
        key = f"shard-{number:05d}.parquet"
        copied.append(key)
        if is_as_stored:
            folder.copy_from(shard.store, shard.info.key, key)
        else:
            write_shard(
                folder,
                key,
                plan.batches_of(shard, 8192),
                fingerprint=plan.fingerprint,
                run_id=shard.run_id,
                dimension=plan.dimension,
            )
        yield ImportFile(folder.uri_of(key).removeprefix(bucket), shard.rows)
