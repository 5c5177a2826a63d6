"""Sweeps: many probes over one archive, in a folder that may be killed at any point.

    sweep.json                     first, once (If-None-Match): the request, the generation, the audit entry
    list/<digest>.parquet          the probes, one row group a part
    probes/part-00000.parquet      what became of each probe of a part
    results/part-00000.parquet     the answers; written last, so it is the part's done-mark
    done.json                      last: counts

A part is a fixed slice of the list with a fixed name: done once, or done again as if for the first time.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa

from index.documents import JsonDocument, utc_now
from index.parquet import open_parquet, write_table
from infra.errors import BadInput, CountMismatch, Mismatch, ObjectExists
from infra.store import Store, ignore_missing_root

VERSION = 1
LIST_SCHEMA = pa.schema([("probe_id", pa.string()), ("uri", pa.string())])
RESULT_SCHEMA = pa.schema(
    [
        ("probe_id", pa.string()),
        ("rank", pa.int32()),
        ("crop_id", pa.int64()),
        ("distance", pa.float32()),
        ("likelihood", pa.float32()),
        ("camera_id", pa.string()),
        ("captured_at", pa.int64()),
        ("track_id", pa.string()),
        ("generation", pa.string()),
    ]
)
"""One row an answer; `likelihood` is null where the model is not calibrated."""

PROBE_SCHEMA = pa.schema(
    [
        ("probe_id", pa.string()),
        ("uri", pa.string()),
        ("verdict", pa.string()),
        ("answers", pa.int32()),
        ("best_distance", pa.float32()),
        ("best_likelihood", pa.float32()),
        ("cause", pa.string()),
        ("detail", pa.string()),
    ]
)
"""One row a probe: found, not found, ranked, nothing or failed; a failed one has its cause."""


@dataclass(frozen=True, slots=True)
class SweepInfo(JsonDocument):
    """What sweep.json says."""

    NOUN = "sweep"
    FORMAT = ("version", VERSION)

    request: Mapping[str, Any]
    generation: str
    fingerprint: str
    list_digest: str
    probes: int
    rows_per_part: int
    audit: str
    created: str
    version: int = VERSION

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-self.probes // self.rows_per_part)


@dataclass(frozen=True, slots=True)
class SweepSummary(JsonDocument):
    """What done.json says: probes by verdict, answers, failures by cause."""

    probes: int
    answers: int
    verdicts: Mapping[str, int]
    causes: Mapping[str, int]
    generation: str
    finished: str


class Sweep:
    """One sweep's folder. Every method may be repeated."""

    def __init__(self, store: Store, info: SweepInfo) -> None:
        self.store = store
        self.info = info

    @classmethod
    def open(cls, store: Store) -> Self | None:
        """The sweep in this folder, or None. Raises SchemaMismatch."""
        head = None
        with ignore_missing_root(store):
            head = store.head("sweep.json")
        if head is None:
            return None
        return cls(store, SweepInfo.read(store, "sweep.json"))

    @classmethod
    def create(
        cls,
        store: Store,
        probes: pa.Table,
        *,
        request: Mapping[str, Any],
        generation: str,
        fingerprint: str,
        audit: str,
        rows_per_part: int,
    ) -> Self:
        """Start a sweep; the list is written before sweep.json. Raises Mismatch if the folder is taken."""
        digest = list_digest(probes)
        info = SweepInfo(
            request=request,
            generation=generation,
            fingerprint=fingerprint,
            list_digest=digest,
            probes=probes.num_rows,
            rows_per_part=rows_per_part,
            audit=audit,
            created=utc_now(),
        )
        sweep = cls(store, info)
        write_table(
            store, sweep._list_key, probes.cast(LIST_SCHEMA), metadata={}, row_group_rows=rows_per_part
        )
        try:
            store.create("sweep.json", info.to_json())
        except ObjectExists as error:
            raise Mismatch(
                f"{store.uri} holds a sweep already", remedy="repeat the command to continue it"
            ) from error
        return sweep

    @property
    def _list_key(self) -> str:
        # Named by contents and layout: the loser of two racing creators must not overwrite the winner's list.
        return f"list/{self.info.list_digest[:16]}-{self.info.rows_per_part}.parquet"

    def require_same(self, probes: pa.Table, request: Mapping[str, Any], fingerprint: str) -> None:
        """Raise Mismatch unless this is the sweep that is asked for now."""
        was = {"the probes": self.info.list_digest, "the model": self.info.fingerprint}
        now = {"the probes": list_digest(probes), "the model": fingerprint}
        was |= {name: json.dumps(value) for name, value in self.info.request.items()}
        now |= {name: json.dumps(value) for name, value in request.items()}
        other = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
        if other:
            raise Mismatch(
                f"{self.store.uri} holds a sweep with other {', '.join(other)}",
                remedy="give --out another folder, or repeat the same command",
            )

    def pending(self) -> list[int]:
        """Numbers of the parts that are not done."""
        done = {info.key for info in self.store.list("results")}
        return [part for part in range(self.info.parts) if _result_key(part) not in done]

    def probes(self, part: int) -> pa.Table:
        """The probes of one part: probe_id, uri."""
        with open_parquet(self.store, self._list_key) as file:
            return file.read_row_group(part)

    def write_part(self, part: int, results: pa.Table, probes: pa.Table) -> None:
        """Write what became of a part; its results come last. Raises CountMismatch if a probe is missing."""
        expected = self.probes(part)["probe_id"].to_pylist()
        if probes["probe_id"].to_pylist() != expected:
            raise CountMismatch(f"part {part} answers other probes than it was given")
        footer = {"clvr.generation": self.info.generation, "clvr.fingerprint": self.info.fingerprint}
        write_table(self.store, _probe_key(part), probes.cast(PROBE_SCHEMA), metadata=footer)
        write_table(self.store, _result_key(part), results.cast(RESULT_SCHEMA), metadata=footer)

    def outcomes(self) -> Iterator[pa.Table]:
        """What became of the probes, part by part."""
        for part in range(self.info.parts):
            with open_parquet(self.store, _probe_key(part)) as file:
                yield file.read()

    def results(self, part: int) -> pa.Table:
        """The answers of one part."""
        with open_parquet(self.store, _result_key(part)) as file:
            return file.read()

    @property
    def summary(self) -> SweepSummary | None:
        """What done.json says, or None for a sweep that is not finished."""
        if self.store.head("done.json") is None:
            return None
        return SweepSummary.read(self.store, "done.json")

    def finish(self) -> SweepSummary:
        """Count every probe once and write done.json. Raises CountMismatch for a part that is missing."""
        if missing := self.pending():
            raise CountMismatch(f"{len(missing):,} parts of {self.store.uri} are not done")
        verdicts: Counter[str] = Counter()
        causes: Counter[str] = Counter()
        seen: set[str] = set()
        answers = 0
        for table in self.outcomes():
            verdicts.update(table["verdict"].to_pylist())
            causes.update(cause for cause in table["cause"].to_pylist() if cause)
            answers += sum(table["answers"].to_pylist())
            seen.update(table["probe_id"].to_pylist())
        if not len(seen) == sum(verdicts.values()) == self.info.probes:
            raise CountMismatch(f"{self.info.probes:,} probes were given, {len(seen):,} have an outcome")
        rows = sum(self.results(part).num_rows for part in range(self.info.parts))
        if rows != answers:
            raise CountMismatch(f"the probes count {answers:,} answers, the results hold {rows:,}")
        summary = SweepSummary(
            self.info.probes, answers, dict(verdicts), dict(causes), self.info.generation, utc_now()
        )
        self.store.put("done.json", summary.to_json())
        return summary


def list_digest(probes: pa.Table) -> str:
    """SHA-256 over ids and URIs, in order."""
    digest = hashlib.sha256()
    for name in LIST_SCHEMA.names:
        for text in probes[name].to_pylist():
            digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def checked_list(probe_ids: list[str], uris: list[str], where: str) -> pa.Table:
    """A list of probes. Raises BadInput for none, for one without name or picture, and for a name twice."""
    if not uris:
        raise BadInput(f"no probe in {where}", remedy="pictures end in .jpg, .jpeg, .png or .webp")
    bad = next((row for row, pair in enumerate(zip(probe_ids, uris, strict=True)) if not all(pair)), None)
    if bad is not None:
        raise BadInput(f"{where}, probe {bad + 1}: no name or no picture")
    twice = [name for name, count in Counter(probe_ids).items() if count > 1]
    if twice:
        raise BadInput(f"{where}: {len(twice):,} probe ids come twice, such as {twice[0]}")
    return pa.table([probe_ids, uris], schema=LIST_SCHEMA)


def _probe_key(part: int) -> str:
    return f"probes/part-{part:05d}.parquet"


def _result_key(part: int) -> str:
    return f"results/part-{part:05d}.parquet"
