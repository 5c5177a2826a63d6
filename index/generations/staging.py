"""Bringing shards to where the Milvus server reads: its own bucket."""

from collections.abc import Iterator
from contextlib import contextmanager

from index.generations.load_plan import LoadPlan, PlannedShard
from index.milvus.bulk_import import ImportFile
from index.runs.shards import write_shard
from infra.store import Store, open_store


def is_in_bucket(shard: PlannedShard, bucket: str) -> bool:
    """Return whether a shard lies in the server's bucket ('s3://name')."""
    return shard.store.uri_of(shard.info.key).startswith(bucket.rstrip("/") + "/")


@contextmanager
def import_source(plan: LoadPlan, generation: str, bucket: str) -> Iterator[Iterator[ImportFile]]:
    """Give the files of a plan for import, made ready one by one; what was made is deleted at the end.

    A shard in the server's bucket is imported as it lies there. One elsewhere is copied, inside the object
    store where that can do it. One with rows that are left out is rewritten without them, for Milvus imports
    whole files.
    """
    folder = _copies(plan, generation, bucket)
    made: list[str] = []
    try:
        yield _files(plan, folder, bucket.rstrip("/") + "/", made)
    finally:
        folder.delete(*made)


def delete_copies(plan: LoadPlan, generation: str, bucket: str) -> None:
    """Delete what a load that was killed had made ready; its server settings are those of the plan's runs."""
    folder = _copies(plan, generation, bucket)
    folder.delete(*(found.key for found in folder.list()))


def _copies(plan: LoadPlan, generation: str, bucket: str) -> Store:
    of_runs = plan.shards[0].store
    settings = None if of_runs.local else of_runs.settings
    return open_store(f"{bucket.rstrip('/')}/clvr-import/{generation}", settings)


def _files(plan: LoadPlan, folder: Store, bucket: str, made: list[str]) -> Iterator[ImportFile]:
    for number, shard in enumerate(plan.shards):
        if not shard.rows:
            continue
        if is_in_bucket(shard, bucket) and not shard.excluded_ids.size:
            yield ImportFile(shard.store.uri_of(shard.info.key).removeprefix(bucket), shard.rows)
            continue
        key = f"shard-{number:05d}.parquet"
        made.append(key)
        if shard.excluded_ids.size:
            write_shard(folder, key, shard.batches(8192), fingerprint=plan.fingerprint, run_id=shard.run_id)
        else:
            folder.copy_from(shard.store, shard.info.key, key)
        yield ImportFile(folder.uri_of(key).removeprefix(bucket), shard.rows)
