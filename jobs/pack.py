"""`clvr pack`: the crops of an archive in tar files, one Ray task a folder."""

import shlex
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import ray
from typing_extensions import TypedDict

from index.archive.packing import TAR_BYTES, Packed, pack_folder, write_indexes
from index.lock import acquire
from index.runs.tombstones import read_tombstones
from infra.errors import BadInput, BadSetting, EmptyArchive
from infra.settings import Settings
from infra.store import Store, is_hidden, open_store
from jobs.runtime.json_fields import FieldsOf
from jobs.runtime.progress import ProgressState, progress
from jobs.runtime.ray_cluster import connect

LOCK = "pack"
MIN_TAR_MB = 1


@dataclass(frozen=True, slots=True)
class PackRequest:
    """A request of `clvr pack`. target: the folder of the tar files; None to write missing indexes only."""

    archive: str
    target: str | None
    tar_mb: int = TAR_BYTES >> 20

    def __post_init__(self) -> None:
        if self.tar_mb < MIN_TAR_MB:
            raise BadSetting(f"--tar-size is {self.tar_mb} MiB", remedy=f"give at least {MIN_TAR_MB}")


class PackCounts(TypedDict):
    """What was packed, from where to where, and the folders of the archive."""

    archive: str
    target: str
    folders: int


@dataclass(frozen=True, slots=True)
class PackResult:
    """What was packed, from where to where. The names of the fields are keys of the command's JSON."""

    archive: str
    target: str
    folders: int
    counts: Packed

    def to_json(self) -> Annotated[dict[str, Any], FieldsOf(Packed, PackCounts)]:
        """Return the result as a JSON object."""
        counts = PackCounts(archive=self.archive, target=self.target, folders=self.folders)
        return {**counts, **asdict(self.counts)}

    def to_text(self) -> str:
        """Return the counts, and what to do with the tar files."""
        counts = self.counts
        if self.archive == self.target:
            return f"{self.target}: {counts.indexes:,} indexes written, of {counts.packed_before:,} members"
        megabytes = f"{counts.bytes / 1e6:,.1f} MB"
        line = f"{self.target}: {counts.crops:,} crops in {counts.tars:,} tar files ({megabytes})"
        if counts.packed_before:
            line += f", {counts.packed_before:,} were packed before"
        if counts.erased:
            line += f", {counts.erased:,} left out because they were erased"
        if counts.vanished:
            line += f", {counts.vanished:,} vanished meanwhile"
        return f"{line}\nnext: clvr plan {shlex.quote(self.target)}"


def pack(request: PackRequest, settings: Settings) -> PackResult:
    """Pack an archive's images into tar files of another folder, or write indexes that its tar files lack.

    Killed and given again, it packs the rest; new crops of a folder go behind those of its last tar file, or
    to further ones. Raises BadInput
    where the target is in the archive, EmptyArchive without images, Locked while another one packs,
    StoreError.
    """
    archive = open_store(request.archive)
    archive.ensure()
    if request.target is None:
        connect(settings)
        return _run(archive, archive, request, settings)
    target = open_store(request.target)
    if f"{target.uri}/".startswith(f"{archive.uri}/") or f"{archive.uri}/".startswith(f"{target.uri}/"):
        raise BadInput(
            f"{target.uri} and the archive {archive.uri} contain each other",
            remedy="Give --to a folder outside of the archive.",
        )
    target.create_bucket()
    connect(settings)
    runs = open_store(settings.runs)
    runs.create_bucket()
    with acquire(runs, LOCK, f"pack {archive.uri}"):
        return _run(archive, target, request, settings)


def _run(archive: Store, target: Store, request: PackRequest, settings: Settings) -> PackResult:
    folders = ["", *(folder for folder in archive.folders() if not is_hidden(folder))]
    task = ray.remote(max_retries=3)(_pack_folder)
    tar_bytes = request.tar_mb << 20
    uri = None if request.target is None else target.uri
    pending = [task.remote(archive.uri, uri, folder, settings.runs, tar_bytes) for folder in folders]
    total, done = Packed(), 0
    with progress("pack", "folders", lambda: ProgressState(done, len(folders))):
        while pending:
            ready, pending = ray.wait(pending)
            for counts in ray.get(ready):
                total += counts
                done += 1
    if uri is not None and not (total.crops or total.packed_before or total.erased):
        raise EmptyArchive(f"no images outside of tar files below {archive.uri}", remedy="Check the folder.")
    return PackResult(archive.uri, target.uri, len(folders), total)


def _pack_folder(archive: str, target: str | None, folder: str, runs: str, tar_bytes: int) -> Packed:
    if target is None:
        return write_indexes(open_store(archive), folder)
    erased = read_tombstones(open_store(runs))
    return pack_folder(open_store(archive), open_store(target), folder, erased, tar_bytes=tar_bytes)
