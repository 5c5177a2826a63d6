"""The two records of a run: run.json, its input, and done.json, its result."""

from dataclasses import dataclass
from typing import Any

from index.documents import JsonDocument
from index.runs.shards import ShardInfo
from infra.errors import FingerprintMismatch, Mismatch

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
    ledger_version: int = LEDGER_VERSION

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
    started: str
    finished: str
    settings: dict[str, Any]
    ledger_version: int = LEDGER_VERSION
