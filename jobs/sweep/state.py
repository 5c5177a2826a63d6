"""The folder of a sweep, which can be continued after a kill at any point.

    sweep.json                     written once (If-None-Match): the request, the generation, the audit record
    list/<digest>.parquet          the probes, one row group per part
    probes/part-00000.parquet      the outcome of each probe of a part
    results/part-00000.parquet     the matches; written after the outcomes, it marks the part as done
    done.json                      written last: counts

A part is a fixed slice of the list and has a fixed name. Searching it again replaces it by the same content.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from index.documents import JsonDocument, UtcTime, require_keys_inside, utc_now
from index.generations.traces import REDACTED, rows_of_erased
from index.parquet import open_parquet, write_table
from index.runs.tombstones import ErasedCrops
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
"""One row per match; `likelihood` is null without a calibration."""

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
"""One row per probe; the verdict is found, not found, ranked, nothing, or failed with a cause."""


@dataclass(frozen=True, slots=True)
class SweepInfo(JsonDocument):
    """The content of sweep.json."""

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
    transform: str = ""
    """The id of the transform of what is searched, "" for none."""
    version: int = VERSION

    def check(self, where: str) -> None:
        """Raise CorruptObject for a key of the audit record, or of the list, that leaves its store."""
        require_keys_inside((self.audit, self.list_digest, *filter(None, [self.transform])), where)

    @property
    def parts(self) -> int:
        """The number of parts."""
        return -(-self.probes // self.rows_per_part)


@dataclass(frozen=True, slots=True)
class SweepSummary(JsonDocument):
    """The content of done.json: probes by verdict, number of matches, failures by cause.

    `runs` and `rows` are what was searched; a sweep of an earlier release does not state them.
    """

    probes: int
    answers: int
    verdicts: Mapping[str, int]
    causes: Mapping[str, int]
    generation: str
    finished: UtcTime
    runs: tuple[str, ...] = ()
    rows: int | None = None

    def searched(self) -> str:
        """Return what was searched, in words; '' if it is not known."""
        if self.rows is None:
            return ""
        noun = "run" if len(self.runs) == 1 else "runs"
        return f"{self.rows:,} rows of {len(self.runs)} {noun}: {', '.join(self.runs)}"


class Sweep:
    """The folder of one sweep. Every method may be repeated."""

    def __init__(self, store: Store, info: SweepInfo) -> None:
        self.store = store
        self.info = info

    @classmethod
    def open(cls, store: Store) -> Self | None:
        """Open the sweep in this folder; None if there is none. Raises SchemaMismatch."""
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
        transform: str = "",
    ) -> Self:
        """Start a sweep: write the list, then sweep.json. Raises Mismatch if the folder contains a sweep."""
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
            transform=transform,
        )
        sweep = cls(store, info)
        write_table(
            store, sweep._list_key, probes.cast(LIST_SCHEMA), metadata={}, row_group_rows=rows_per_part
        )
        try:
            store.create("sweep.json", info.to_json())
        except ObjectExists as error:
            raise Mismatch(
                f"{store.uri} already contains a sweep", remedy="run the same command again to continue it"
            ) from error
        return sweep

    @property
    def _list_key(self) -> str:
        # The name depends on the content and the layout, so that a second creator cannot overwrite the list
        # of the first one.
        return f"list/{self.info.list_digest[:16]}-{self.info.rows_per_part}.parquet"

    def require_same(
        self,
        probes: pa.Table,
        request: Mapping[str, Any],
        fingerprint: str,
        erased: ErasedCrops,
        transform: str = "",
    ) -> None:
        """Raise Mismatch if this sweep has other probes, another model, transform or request.

        Probes that are erased crops are compared by their place only: a purge took their names.
        """
        own, others = (list_digest(anonymous_list(table, erased)) for table in (self.all_probes(), probes))
        info = self.info
        stored = {"the probes": own, "the model": info.fingerprint, "the transform": info.transform}
        requested = {"the probes": others, "the model": fingerprint, "the transform": transform}
        stored |= {name: json.dumps(value) for name, value in self.info.request.items()}
        requested |= {name: json.dumps(value) for name, value in request.items()}
        names = sorted(stored.keys() | requested.keys())
        different = [name for name in names if stored.get(name) != requested.get(name)]
        if different:
            raise Mismatch(
                f"the sweep in {self.store.uri} differs in {', '.join(different)}",
                remedy="give --output another folder, or run the same command as before",
            )

    def pending(self) -> list[int]:
        """Return the numbers of the parts that are not done."""
        done = {info.key for info in self.store.list("results")}
        return [part for part in range(self.info.parts) if _result_key(part) not in done]

    def probes(self, part: int) -> pa.Table:
        """Read the probes of one part: probe_id, uri."""
        with open_parquet(self.store, self._list_key) as file:
            return file.read_row_group(part)

    def unfinished_files(self) -> list[str]:
        """Return the keys of lists that sweep.json does not name, and of outcomes of pending parts."""
        pending = set(map(_probe_key, self.pending()))
        written = (info.key for prefix in ("list", "probes") for info in self.store.list(prefix))
        return [key for key in written if key in pending or (key[:5] == "list/" and key != self._list_key)]

    def all_probes(self) -> pa.Table:
        """Read the whole list: probe_id, uri."""
        with open_parquet(self.store, self._list_key) as file:
            return file.read()

    def write_part(self, part: int, results: pa.Table, probes: pa.Table) -> None:
        """Write the outcomes, then the matches of a part. Raises CountMismatch if a probe is missing."""
        expected = self.probes(part)["probe_id"].to_pylist()
        if probes["probe_id"].to_pylist() != expected:
            raise CountMismatch(f"part {part} has outcomes of other probes")
        footer = {"clvr.generation": self.info.generation, "clvr.fingerprint": self.info.fingerprint}
        write_table(self.store, _probe_key(part), probes.cast(PROBE_SCHEMA), metadata=footer)
        write_table(self.store, _result_key(part), results.cast(RESULT_SCHEMA), metadata=footer)

    def replace_list(self, probes: pa.Table) -> "Sweep":
        """Write another list of as many probes, and return the sweep that has it."""
        sweep = Sweep(self.store, replace(self.info, list_digest=list_digest(probes)))
        if sweep.info.list_digest != self.info.list_digest:
            rows = self.info.rows_per_part
            write_table(
                self.store, sweep._list_key, probes.cast(LIST_SCHEMA), metadata={}, row_group_rows=rows
            )
            self.store.put("sweep.json", sweep.info.to_json())
            self.store.delete(self._list_key)
        return sweep

    def outcomes(self) -> Iterator[pa.Table]:
        """Read the outcomes of all probes, part by part."""
        yield from map(self.outcomes_of, range(self.info.parts))

    def outcomes_of(self, part: int) -> pa.Table:
        """Read the outcomes of one part."""
        with open_parquet(self.store, _probe_key(part)) as file:
            return file.read()

    def results(self, part: int) -> pa.Table:
        """Read the matches of one part."""
        with open_parquet(self.store, _result_key(part)) as file:
            return file.read()

    def table(self) -> pa.Table:
        """Return the matches of all probes in one table, with the URI, verdict and cause of the probe.

        A probe without a match has one row, whose other columns are null.
        """
        parts = []
        for part in range(self.info.parts):
            probes = self.outcomes_of(part).select(["probe_id", "uri", "verdict", "cause"])
            rows = probes.join(self.results(part), "probe_id")
            parts.append(rows.sort_by([("probe_id", "ascending"), ("rank", "ascending")]))
        return pa.concat_tables(parts)

    @property
    def summary(self) -> SweepSummary | None:
        """The content of done.json, or None for an unfinished sweep."""
        if self.store.head("done.json") is None:
            return None
        return SweepSummary.read(self.store, "done.json")

    def finish(self, run_ids: Sequence[str] = (), rows: int | None = None) -> SweepSummary:
        """Count every probe once and write done.json. Raises CountMismatch for a missing part.

        run_ids, rows: what was searched.
        """
        if missing := self.pending():
            raise CountMismatch(f"{len(missing):,} parts of {self.store.uri} are not done")
        verdicts: Counter[str] = Counter()
        causes: Counter[str] = Counter()
        probe_ids: set[str] = set()
        answers = 0
        for table in self.outcomes():
            verdicts.update(table["verdict"].to_pylist())
            causes.update(cause for cause in table["cause"].to_pylist() if cause)
            answers += sum(table["answers"].to_pylist())
            probe_ids.update(table["probe_id"].to_pylist())
        if not len(probe_ids) == sum(verdicts.values()) == self.info.probes:
            raise CountMismatch(f"{self.info.probes:,} probes are listed, {len(probe_ids):,} have an outcome")
        written = sum(self.results(part).num_rows for part in range(self.info.parts))
        if written != answers:
            raise CountMismatch(f"the outcomes count {answers:,} matches, the results contain {written:,}")
        summary = SweepSummary(
            probes=self.info.probes,
            answers=answers,
            verdicts=dict(verdicts),
            causes=dict(causes),
            generation=self.info.generation,
            finished=utc_now(),
            runs=tuple(run_ids),
            rows=rows,
        )
        self.store.put("done.json", summary.to_json())
        return summary


def anonymous_list(probes: pa.Table, erased: ErasedCrops) -> pa.Table:
    """Return a list of probes (n) in which erased crops have neither their name nor their URI."""
    is_erased = rows_of_erased(probes, erased)
    names = pa.array([f"{REDACTED}-{row}" for row in range(probes.num_rows)])
    return pa.table(
        {
            "probe_id": pc.if_else(is_erased, names, probes["probe_id"]),
            "uri": pc.if_else(is_erased, pa.scalar(REDACTED), probes["uri"]),
        }
    )


def list_digest(probes: pa.Table) -> str:
    """Return the SHA-256 of the ids and URIs, in order."""
    digest = hashlib.sha256()
    for name in LIST_SCHEMA.names:
        for text in probes[name].to_pylist():
            digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def checked_list(probe_ids: list[str], uris: list[str], where: str) -> pa.Table:
    """Make a list of probes. Raises BadInput for an empty list, a missing id or URI, and a repeated id."""
    if not uris:
        raise BadInput(f"{where} has no probe", remedy="images end in .jpg, .jpeg, .png or .webp")
    invalid = next((row for row, pair in enumerate(zip(probe_ids, uris, strict=True)) if not all(pair)), None)
    if invalid is not None:
        raise BadInput(f"{where}, probe {invalid + 1} has no id or no URI")
    repeated = [name for name, count in Counter(probe_ids).items() if count > 1]
    if repeated:
        raise BadInput(f"{where}: {len(repeated):,} probe ids are repeated, such as {repeated[0]}")
    return pa.table([probe_ids, uris], schema=LIST_SCHEMA)


def _probe_key(part: int) -> str:
    return f"probes/part-{part:05d}.parquet"


def _result_key(part: int) -> str:
    return f"results/part-{part:05d}.parquet"
