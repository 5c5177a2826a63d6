"""The records of a run: run.json, its input, done.json, its result, and the marks of work in progress."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from index.documents import JsonDocument, UtcTime, require_keys_inside
from index.parquet import StoredFile
from index.runs.shards import ShardInfo
from infra.errors import CorruptObject, FingerprintMismatch, Mismatch

LEDGER_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunInfo(JsonDocument):
    """run.json: the input of a run."""

    FORMAT = ("ledger_version", LEDGER_VERSION)

    run_id: str
    archive: str
    """URI of the archive's root."""
    fingerprint: str
    model: str
    """URI of the checkpoint."""
    settings: dict[str, Any]
    """Settings of the job that decide the crops and the precision; a resumed job uses them again."""
    manifest: str
    """SHA-256 over the rows of the manifest; the names of its files contain it."""
    listed: int
    """Rows of the manifest, duplicates included."""
    duplicates: int
    """Further rows of the same URI, which are left out of the run."""
    rows_per_part: int
    parts_per_shard: int
    created: str
    version: str
    """Release that started the run."""
    revision: int = 0
    """How often erased crops were purged from the run: see `index.runs.purge`."""
    vanished: tuple[StoredFile, ...] | None = None
    """The list of vanished crops, if there are any, as `RunSummary.shards`; None in older releases."""
    ledger_version: int = LEDGER_VERSION

    def check(self, where: str) -> None:
        """Raise CorruptObject for a name or a key that leaves the folder of the run, or impossible sizes."""
        earlier = (self.settings.get(name) for name in ("since_run", "requeue"))
        names = [self.run_id, self.manifest, *(str(run_id) for run_id in earlier if run_id)]
        require_keys_inside([*names, *(file.key for file in self.vanished or ())], where)
        if not (0 <= self.duplicates <= self.listed and self.rows_per_part > 0 < self.parts_per_shard):
            raise CorruptObject(f"{where} states sizes that no run has")

    @property
    def rows(self) -> int:
        """Number of crops: each ends in a shard or in the quarantine."""
        return self.listed - self.duplicates

    @property
    def parts(self) -> int:
        """Number of parts; the last one may be shorter."""
        return -(-self.rows // self.rows_per_part)

    @property
    def shards(self) -> int:
        """Number of shards that the parts are compacted into."""
        return -(-self.parts // self.parts_per_shard)

    def rows_of_part(self, part: int) -> int:
        """Return the number of crops of a part."""
        return min(self.rows_per_part, self.rows - part * self.rows_per_part)

    def shards_of(self, parts: Iterable[int]) -> list[int]:
        """Return the numbers of the shards, and of their quarantine, that have the crops of some parts."""
        return sorted({part // self.parts_per_shard for part in parts})

    def require_same(self, requested: "RunInfo") -> None:
        """Raise FingerprintMismatch or Mismatch, with both values, unless both have the same input."""
        if self.fingerprint != requested.fingerprint:
            raise FingerprintMismatch(
                f"run {self.run_id} was started with model {self.fingerprint}, not {requested.fingerprint}",
                remedy="Choose another run id.",
            )
        for name in ("archive", "manifest", "listed"):
            value, requested_value = getattr(self, name), getattr(requested, name)
            if value != requested_value:
                raise Mismatch(
                    f"run {self.run_id} was started with {name} {value}, not {requested_value}",
                    remedy="Choose another run id, or resume with the manifest of this run.",
                )


@dataclass(frozen=True, slots=True)
class RunSummary(JsonDocument):
    """done.json: the result of a run; listed = embedded + quarantined + duplicates."""

    FORMAT = ("ledger_version", LEDGER_VERSION)

    run_id: str
    archive: str
    fingerprint: str
    manifest: str
    listed: int
    embedded: int
    quarantined: int
    duplicates: int
    causes: dict[str, int]
    """Quarantined crops by 'stage/cause'."""
    shards: tuple[ShardInfo, ...]
    """With keys relative to the run's folder, so a run may be copied elsewhere."""
    started: UtcTime
    finished: UtcTime
    settings: dict[str, Any]
    quarantine: tuple[StoredFile, ...] | None = None
    """The files of the quarantine, as `shards`; None in older releases."""
    ledger_version: int = LEDGER_VERSION

    def check(self, where: str) -> None:
        """Raise CorruptObject for a key that leaves the folder of the run."""
        require_keys_inside((file.key for file in (*self.shards, *(self.quarantine or ()))), where)

    def require_of(self, info: RunInfo, where: str) -> None:
        """Raise CorruptObject unless this is the result of the run that run.json describes."""
        for name in ("run_id", "archive", "fingerprint", "manifest", "listed", "duplicates"):
            stated, value = getattr(self, name), getattr(info, name)
            if stated != value:
                raise CorruptObject(
                    f"{where} states {name} {stated}, but run.json states {value}",
                    remedy="Restore both from a copy, or embed the archive again as a new run.",
                )


@dataclass(frozen=True, slots=True)
class StoredRows(JsonDocument):
    """The mark of a finished part, or of a compacted shard: its files, with keys as `RunSummary.shards`."""

    NOUN = "mark of a finished part"

    number: int
    shard: ShardInfo
    quarantine: StoredFile
    causes: dict[str, int] | None = None
    """Crops of the quarantine by 'stage/cause'; None in older releases."""

    def check(self, where: str) -> None:
        """Raise CorruptObject for a key that leaves the folder of the run."""
        require_keys_inside((self.shard.key, self.quarantine.key), where)
