"""The two documents of a run: run.json says what it was started with, done.json what came of it."""

from dataclasses import dataclass
from typing import Any

from index.documents import JsonDocument
from index.runs.shards import ShardInfo
from infra.errors import FingerprintMismatch, Mismatch

LEDGER_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunInfo(JsonDocument):
    """What a run was started with."""

    FORMAT = ("ledger_version", LEDGER_VERSION)

    run_id: str
    archive: str
    """URI of the archive's root."""
    fingerprint: str
    model: str
    """URI of the checkpoint."""
    settings: dict[str, Any]
    """Settings of the job: what decided the crops and the precision, so that it can continue."""
    manifest: str
    """SHA-256 over the manifest's rows; the manifest's files carry it in their names."""
    listed: int
    """Rows of the manifest as it was given."""
    duplicates: int
    """Rows that named a URI once more; they are left out of the run."""
    rows_per_part: int
    parts_per_shard: int
    created: str
    version: str
    """Release that made the run."""
    ledger_version: int = LEDGER_VERSION

    @property
    def rows(self) -> int:
        """Crops of the run: each ends in a shard or in the quarantine."""
        return self.listed - self.duplicates

    @property
    def parts(self) -> int:
        """Number of parts; the last may be shorter."""
        return -(-self.rows // self.rows_per_part)

    @property
    def shards(self) -> int:
        """Number of shards that the parts are compacted into."""
        return -(-self.parts // self.parts_per_shard)

    def require_same(self, asked: "RunInfo") -> None:
        """Raise FingerprintMismatch or Mismatch, with both values, unless both have the same input."""
        if self.fingerprint != asked.fingerprint:
            raise FingerprintMismatch(
                f"run {self.run_id} was started with model {self.fingerprint}, not {asked.fingerprint}",
                remedy="Choose another run_id.",
            )
        for name in ("archive", "manifest", "listed"):
            was, now_asked = getattr(self, name), getattr(asked, name)
            if was != now_asked:
                raise Mismatch(
                    f"run {self.run_id} was started with {name} {was}, not {now_asked}",
                    remedy="Choose another run_id, or resume with the manifest of this run.",
                )


@dataclass(frozen=True, slots=True)
class RunSummary(JsonDocument):
    """What came of a run: listed = embedded + quarantined + duplicates."""

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
    """Keys are relative to the run's folder, so that a run may be copied elsewhere."""
    started: str
    finished: str
    settings: dict[str, Any]
    ledger_version: int = LEDGER_VERSION
