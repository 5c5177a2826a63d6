"""What is on disk and in Milvus, read with pyarrow and pymilvus only, and what of it contradicts itself.

`observe` runs in a process of its own, because one process at a time may open a Milvus Lite file.
"""

import json
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

Facts = dict[str, Any]
TOLERANCE = 1e-3
PAGE = 1000


class Problem(NamedTuple):
    """kind: lost, doubled, wrong, half-done or other."""

    kind: str
    text: str


def observe() -> None:
    """Print the facts of a folder of runs, a Milvus and its alias: RUNS MILVUS TOKEN ALIAS REFERENCE."""
    runs, milvus, token, alias, reference = sys.argv[1:]
    facts = read_store(Path(runs), Path(reference))
    facts["collections"], facts["aliases"] = {}, {}
    if milvus.startswith("http") or Path(milvus).exists():
        facts |= _read_milvus(milvus, token, alias, facts, Path(runs))
    for run in facts["runs"].values():
        run.pop("features")
    print(json.dumps(facts))


def read_store(root: Path, reference: Path) -> Facts:
    """Read runs, records, erasures, locks and reindex runs below a folder of runs."""
    known = dict(np.load(reference)) if reference.is_file() else {}
    listed = known.pop("listed", np.empty(0, np.int64))
    runs = {folder.name: _read_run(folder, known) for folder in sorted(root.glob("runs/*"))}
    crops = set(listed.tolist()) | {number for run in runs.values() for number in run["manifest"]}
    return {
        "runs": runs,
        "records": {path.stem: _json(path) for path in root.glob("generations/*.json")},
        "erasures": _read_erasures(root, sorted(crops)),
        "locks": {path.stem: _json(path) for path in root.glob("locks/*.json")},
        "nights": {path.name: (path / "done.json").exists() for path in root.glob("nights/*")},
        "temporary": [str(path) for path in root.rglob("*") if "#" in path.name],
    }


def _read_erasures(root: Path, crops: list[int]) -> dict[str, dict[str, Any]]:
    """Read the erasures that have a receipt. A tombstone is a keyed hash, so every known crop is asked."""
    key = _json(root / "erasures/key.json")
    hashed = {siphash(bytes.fromhex(key["key"]), number): number for number in crops} if key else {}
    erasures = {}
    for receipt in sorted(root.glob("erasures/*/receipt.json")):
        path = receipt.with_name("hashes.parquet")
        hashes = pq.read_table(path)["crop_hash"].to_pylist() if path.exists() else []
        ids = [hashed[one] for one in hashes if one in hashed]
        erasures[receipt.parent.name] = {"crops": ids, "receipt": _json(receipt)}
    return erasures


def siphash(key: bytes, number: int) -> int:
    """Return SipHash-2-4 of a number of 8 bytes, written after the paper and not after the product."""
    mask = (1 << 64) - 1
    k0, k1 = (int.from_bytes(half, "little") for half in (key[:8], key[8:]))
    a, b = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D
    c, d = k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573

    def left(word: int, bits: int) -> int:
        return (word << bits | word >> 64 - bits) & mask

    for word, rounds in ((number & mask, 2), (8 << 56, 2), (None, 4)):
        if word is None:
            c ^= 0xFF
        else:
            d ^= word
        for _ in range(rounds):
            a, c = (a + b) & mask, (c + d) & mask
            b, d = left(b, 13) ^ a, left(d, 16) ^ c
            a = left(a, 32)
            a, c = (a + d) & mask, (c + b) & mask
            d, b = left(d, 21) ^ a, left(b, 17) ^ c
            c = left(c, 32)
        if word is not None:
            a ^= word
    return a ^ b ^ c ^ d


def _read_run(folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    info = _json(folder / "run.json")
    revision = (info or {}).get("revision", 0)
    done = _json(folder / (f"done-{revision}.json" if revision else "done.json"))
    manifest = {"crop_id": [], "uri": []}
    stem = f"{info['manifest'][:16]}-{info['rows_per_part']}-*.parquet" if info else "*.parquet"
    for path in sorted(folder.glob(f"manifest/{stem}")):
        table = pq.read_table(path, columns=["crop_id", "uri"])
        for name, values in manifest.items():
            values += table[name].to_pylist()
    embedded: list[int] = []
    features: dict[int, Any] = {}
    for path in _named(folder, done, "shards"):
        table = pq.read_table(path, columns=["crop_id", "embedding"])
        embedded += table["crop_id"].to_pylist()
        vectors = np.asarray(table["embedding"].combine_chunks().flatten()).reshape(-1, 1024)
        features |= dict(zip(table["crop_id"].to_pylist(), vectors, strict=True))
    quarantined = [
        number
        for path in _named(folder, done, "quarantine")
        for number in pq.read_table(path, columns=["crop_id"])["crop_id"].to_pylist()
    ]
    vanished = [folder / file["key"] for file in (info or {}).get("vanished") or ()]
    return {
        "started": info is not None,
        "done": done is not None,
        "created": (info or {}).get("created", ""),
        "manifest": manifest["crop_id"],
        "uris": manifest["uri"],
        "embedded": embedded,
        "quarantined": quarantined,
        "vanished": [uri for path in vanished for uri in pq.read_table(path)["uri"].to_pylist()],
        "parts": len(list(folder.glob("parts/*"))),
        "wrong": sum(_differs(vector, known.get(str(number))) for number, vector in features.items()),
        "features": features,
    }


def _named(folder: Path, done: Any, name: str) -> list[Path]:
    """Return the files that the result of a run names; of an unfinished run, all that lie there."""
    if done is None:
        return sorted(folder.glob(f"{name}/*.parquet"))
    return [folder / file["key"] for file in done[name]]


def drop() -> None:
    """Drop every collection of an alias: MILVUS TOKEN ALIAS."""
    from pymilvus import MilvusClient

    uri, token, alias = sys.argv[1:]
    client = MilvusClient(uri, token=token)
    for name in client.list_collections():
        if name.startswith(alias + "_"):
            for pointer in client.list_aliases(name)["aliases"]:
                client.drop_alias(pointer)
            client.drop_collection(name, timeout=180)
    print("null")


def _read_milvus(uri: str, token: str, alias: str, facts: Facts, root: Path) -> Facts:
    from pymilvus import MilvusClient

    client = MilvusClient(uri, token=token)
    found: Facts = {"collections": {}, "aliases": {}}
    for name in client.list_collections():
        if not name.startswith(alias + "_"):
            continue
        for pointer in client.list_aliases(name)["aliases"]:
            found["aliases"][pointer] = name
        rows: list[dict[str, Any]] | None = None
        count = 0
        with suppress(Exception):  # the collection of an interrupted load may not be readable
            client.load_collection(name, timeout=120)
            strong = {"consistency_level": "Strong"}
            (counted,) = client.query(name, filter="", output_fields=["count(*)"], **strong)
            count = int(counted["count(*)"])
            pages = client.query_iterator(
                name, batch_size=PAGE, output_fields=["crop_id", "embedding"], **strong
            )
            rows = []
            while page := pages.next():
                rows += page
        record = facts["records"].get(name) or {}
        expected = features_of(facts, record.get("run_ids", ()))
        found["collections"][name] = {
            "ids": None if rows is None else [row["crop_id"] for row in rows],
            "count": count,
            "wrong": sum(_differs(row["embedding"], expected.get(row["crop_id"])) for row in rows or ()),
        }
    client.close()
    return found


def features_of(facts: Facts, run_ids: Any) -> dict[int, Any]:
    """Return crop_id -> feature of the rows that a generation of these runs has, before any erasure."""
    rows: dict[int, Any] = {}
    of_uri: dict[str, int] = {}
    chosen = [facts["runs"][run_id] for run_id in run_ids if run_id in facts["runs"]]
    for run in sorted(chosen, key=lambda run: run["created"]):
        for uri in run["vanished"]:
            rows.pop(of_uri.get(uri, 0), None)
        of_uri |= dict(zip(run["uris"], run["manifest"], strict=True))
        rows |= run.get("features") or dict.fromkeys(run["embedded"])
    return rows


def erased_ids(facts: Facts) -> set[int]:
    """Return all crop_ids with a tombstone."""
    return {number for erasure in facts["erasures"].values() for number in erasure["crops"]}


def contradictions(facts: Facts) -> list[Problem]:
    """Return what is shown as done, ready or live and is not. True at every moment, also after a kill."""
    problems = [problem for run in facts["runs"].items() for problem in _of_run(*run, erased_ids(facts))]
    begun = [one for one in facts["erasures"].values() if (one["receipt"] or {}).get("state") != "done"]
    under_way = {number for erasure in begun for number in erasure["crops"]}
    for name, record in facts["records"].items():
        if record is None:
            problems.append(Problem("half-done", f"the record of {name} is no JSON"))
        elif record["state"] == "ready":
            problems += _of_generation(name, record, facts, under_way)
    for alias, name in facts["aliases"].items():
        state = (facts["records"].get(name) or {}).get("state")
        if state != "ready":
            problems.append(Problem("half-done", f"{alias} points to {name}, which is {state}"))
    for erasure in facts["erasures"].values():
        if (erasure["receipt"] or {}).get("state") == "done":
            left = set(erasure["crops"]) & {
                number for one in facts["collections"].values() for number in one["ids"] or ()
            }
            if left:
                problems.append(Problem("half-done", f"{len(left)} rows of a done erasure are in Milvus"))
    return problems


def _of_run(run_id: str, run: dict[str, Any], erased: set[int]) -> list[Problem]:
    if not run["done"]:
        return []
    problems = []
    seen = Counter(run["embedded"] + run["quarantined"])
    if lost := set(run["manifest"]) - set(seen) - erased:
        problems.append(Problem("lost", f"{len(lost)} crops of run {run_id} are nowhere"))
    if twice := [number for number, times in seen.items() if times > 1]:
        problems.append(Problem("doubled", f"{len(twice)} crops of run {run_id} are there twice"))
    if set(seen) - set(run["manifest"]):
        problems.append(Problem("wrong", f"run {run_id} has crops that are not in its manifest"))
    return problems


def _of_generation(name: str, record: Any, facts: Facts, under_way: set[int]) -> list[Problem]:
    collection = facts["collections"].get(name)
    if collection is None:
        return [Problem("half-done", f"the record of {name} is ready, and its collection is gone")]
    if collection["ids"] is None:
        return [Problem("half-done", f"{name} is ready and cannot be read")]
    ids = Counter(collection["ids"])
    expected = set(features_of(facts, record["run_ids"])) - erased_ids(facts)
    allowed = under_way | set(features_of(facts, [*record["run_ids"], *record["pending"]]))
    optional = under_way | (
        set(features_of(facts, record["run_ids"]))
        - set(features_of(facts, [*record["run_ids"], *record["pending"]]))
    )
    problems = []
    if lost := expected - set(ids) - optional:
        problems.append(Problem("lost", f"{len(lost)} rows of {name} are missing"))
    if twice := [number for number, times in ids.items() if times > 1]:
        # A search shows each crop once, and the repeated increment removes the second rows.
        kind = "other" if record["pending"] else "doubled"
        problems.append(Problem(kind, f"{len(twice)} keys of {name} are there twice"))
    if extra := set(ids) - expected - allowed:
        problems.append(Problem("wrong", f"{len(extra)} rows of {name} should not be there"))
    if collection["count"] != len(collection["ids"]):
        problems.append(
            Problem("doubled", f"count(*) of {name} is {collection['count']}, it has {len(ids)} keys")
        )
    if collection["wrong"] and not record["pending"]:
        problems.append(
            Problem("wrong", f"{collection['wrong']} vectors of {name} are not those of its runs")
        )
    return problems


def leftovers(facts: Facts) -> list[Problem]:
    """Return what a command that ended well must not leave behind."""
    problems = [Problem("other", f"temporary file {path}") for path in facts["temporary"]]
    for run_id, run in facts["runs"].items():
        if run["done"] and run["parts"]:
            problems.append(Problem("other", f"{run['parts']} parts of the finished run {run_id} remain"))
        if not run["done"]:
            problems.append(Problem("other", f"run {run_id} is not finished"))
        if run["wrong"] and run_id != "r1":  # the archive has changed since r1
            problems.append(Problem("wrong", f"{run['wrong']} features of run {run_id} are wrong"))
    for name, record in facts["records"].items():
        if record and (record["state"] == "loading" or record["pending"]):
            problems.append(Problem("other", f"{name} is {record['state']}, pending {record['pending']}"))
        if record and record["state"] == "dropped" and name in facts["collections"]:
            problems.append(
                Problem("half-done", f"{name} is recorded as dropped, and its collection is there")
            )
    for name, lock in facts["locks"].items():
        if lock and not lock["released"]:
            problems.append(Problem("other", f"the lock {name} is not released"))
    problems += [
        Problem("other", f"erasure {name} is not done")
        for name, one in facts["erasures"].items()
        if one["receipt"] and one["receipt"]["state"] != "done"
    ]
    return problems


def _differs(vector: Any, expected: Any) -> bool:
    if expected is None:
        return False
    return not np.allclose(np.asarray(vector, np.float32), expected, rtol=TOLERANCE, atol=TOLERANCE)


def _json(path: Path) -> Any:
    with suppress(FileNotFoundError, ValueError):
        return json.loads(path.read_text())
    return None
