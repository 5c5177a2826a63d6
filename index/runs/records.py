"""The two documents of a run: run.json says what it was started with, done.json what came of it."""

import json
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

from index.runs.shards import ShardFacts
from infra.errors import FingerprintMismatch, Mismatch, SchemaMismatch

LEDGER_VERSION = 1


class _Document:
    """Plain JSON with sorted keys, so that equal contents are equal bytes."""

    def to_json(self) -> bytes:
        """Return the document as UTF-8 JSON."""
        return json.dumps(_plain(self), indent=2, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Read the document. Raises SchemaMismatch for anything else, or another version of it."""
        try:
            found = json.loads(data)
            written = found.pop("ledger_version")
            if written == LEDGER_VERSION:
                return cls(**cls._parsed(found))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SchemaMismatch(f"{where} is not a document of this system: {error!r}") from error
        raise SchemaMismatch(
            f"{where} is of version {written}, this release reads version {LEDGER_VERSION}",
            remedy="Read it with the release that wrote it.",
        )

    @classmethod
    def _parsed(cls, found: dict[str, Any]) -> dict[str, Any]:
        return found


@dataclass(frozen=True, slots=True)
class RunInfo(_Document):
    """What a run was started with."""

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
class RunSummary(_Document):
    """What came of a run: listed = embedded + quarantined + duplicates."""

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
    shards: tuple[ShardFacts, ...]
    """Keys are relative to the run's folder, so that a run may be copied elsewhere."""
    started: str
    finished: str
    settings: dict[str, Any]

    @classmethod
    def _parsed(cls, found: dict[str, Any]) -> dict[str, Any]:
        return found | {"shards": tuple(ShardFacts(**shard) for shard in found["shards"])}


def now() -> str:
    """Return the time, UTC, as it stands in a ledger."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def release() -> str:
    """Return the version of this package, as it stands in a ledger."""
    try:
        return version("clvr-archive")
    except PackageNotFoundError:  # the sources were shipped to a cluster without being installed
        return "unknown"


def facts_to_json(facts: ShardFacts) -> bytes:
    """Return the record of one compacted shard."""
    return json.dumps(_facts(facts), sort_keys=True).encode()


def facts_from_json(data: bytes) -> ShardFacts:
    """Read the record of one compacted shard."""
    return ShardFacts(**json.loads(data))


def _facts(facts: ShardFacts) -> dict[str, Any]:
    return {"key": facts.key, "rows": facts.rows, "bytes": facts.bytes, "sha256": facts.sha256}


def _plain(document: Any) -> dict[str, Any]:
    found = {field.name: getattr(document, field.name) for field in fields(document)}
    if "shards" in found:
        found["shards"] = [_facts(shard) for shard in found["shards"]]
    return found | {"ledger_version": LEDGER_VERSION}
