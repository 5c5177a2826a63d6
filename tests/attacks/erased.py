"""An erased vehicle is looked for in every byte that `clvr forget --purge` has to reach.

Needles: the URI of a crop and its key, the crop_id as text and as int64, the time of capture as text and as
int64 where no other crop has it, and a piece of the embedding. Parquet, also within other files, is decoded.
"""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from facts import Problem
from scenarios import FORGET, VEHICLE
from table import Row
from world import World

MAGIC = b"PAR1"
PIECE = 16  # numbers of an embedding


@dataclass(frozen=True)
class Needle:
    """What is looked for: a kind and its bytes."""

    kind: str
    data: bytes


def look_for_erased(world: World, *, server: bool) -> list[Row]:
    """Erase a vehicle with --purge and return a row for Milvus Lite and, if asked for, one for the server."""
    world.reset("live")
    if world.cluster is not None:
        world.must(*world.sweep_words(world.out))
    needles = needles_of(world)
    probe = next(needle.data.decode() for needle in needles if needle.kind == "uri")
    world.must("search", probe, "--top", "50", "--same-camera", "--html", world.here / "search.html")
    rows = [_report("an erased vehicle after --purge, Milvus Lite", world, needles, _files(world.here))]
    if server:
        with world.on_server():
            world.reset("embedded")
            for words in (("load", "r1"), ("promote", "latest"), ("load", "r2", "--into-live")):
                world.must(*words)
            found = _report(
                "an erased vehicle after --purge, Milvus server: store", world, needles, _files(world.here)
            )
            bucket = Row("an erased vehicle after --purge, Milvus server: bucket")
            _search(bucket, world.bucket_objects(), needles)
            rows += [found, bucket]
    return rows


def needles_of(world: World) -> list[Needle]:
    """Return the needles of all crops of the vehicle, read from the manifests and shards with pyarrow."""
    crops: list[dict[str, Any]] = []
    vectors: dict[int, list[Any]] = {}
    for path in sorted(world.runs.glob("runs/*/manifest/*.parquet")):
        crops += pq.read_table(path).to_pylist()
    for path in sorted(world.runs.glob("runs/*/shards/*.parquet")):
        table = pq.read_table(path, columns=["crop_id", "embedding"])
        for crop_id, vector in zip(
            *(table[name].to_pylist() for name in ("crop_id", "embedding")), strict=True
        ):
            vectors.setdefault(crop_id, []).append(np.asarray(vector, np.float32))
    wanted = [crop for crop in crops if crop["vehicle_id"] == VEHICLE]
    ids = {crop["crop_id"] for crop in wanted}
    others = [crop for crop in crops if crop["crop_id"] not in ids]
    times = {crop["captured_at"] for crop in wanted} - {crop["captured_at"] for crop in others}
    kept = b"".join(vector.tobytes() for crop in others for vector in vectors.get(crop["crop_id"], ()))
    needles: list[Needle] = []
    for crop in wanted:
        crop_id, uri = crop["crop_id"], crop["uri"]
        needles += [Needle("uri", uri.encode()), Needle("key", Path(uri).name.encode())]
        needles += [Needle("crop_id, text", str(crop_id).encode()), Needle("crop_id, int64", _int64(crop_id))]
        if crop["captured_at"] in times:
            time = crop["captured_at"]
            needles += [Needle("time, text", str(time).encode()), Needle("time, int64", _int64(time))]
        for vector in vectors.get(crop_id, ()):
            pieces = (vector[first : first + PIECE] for first in range(0, len(vector) - PIECE, PIECE))
            piece = max(pieces, key=np.count_nonzero).tobytes()
            if piece not in kept:
                needles.append(Needle("embedding", piece))
    return list(dict.fromkeys(needles))


def _report(title: str, world: World, needles: list[Needle], places: Iterator[tuple[str, bytes]]) -> Row:
    row = Row(title)
    command = world.clvr(*FORGET, "--purge")
    if command.poll() != 0:
        row.add([Problem("other", f"exit {command.poll()}: {command.err[-300:]}")], "forget --purge")
    _search(row, places, needles)
    return row


def _search(row: Row, places: Iterator[tuple[str, bytes]], needles: list[Needle]) -> None:
    """Count every needle in every place once; the note names the file and the first offset."""
    row.tries, row.list_all = len(needles), True
    for place, data in places:
        row.counts["files"] += 1
        found: Counter[str] = Counter()
        first: dict[str, str] = {}
        for where, piece in ((place, data), *_decoded(place, data)):
            for needle in needles:
                offset = piece.find(needle.data)
                if offset >= 0:
                    found[needle.kind] += 1
                    first.setdefault(needle.kind, f"{where} at byte {offset}")
        for kind, times in found.items():
            row.add([Problem("wrong", f"{kind}, {times} found in {first[kind]}")], place)


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


def _decoded(place: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the decoded columns of every Parquet file that begins anywhere in the bytes."""
    starts = list(_all(data, MAGIC))
    for start, end in pairwise(starts):
        try:
            table = pq.read_table(io.BytesIO(data[start : end + len(MAGIC)]))
        except (pa.ArrowException, OSError, ValueError):
            continue
        for name in table.column_names:
            for chunk in table[name].chunks:
                plain = chunk.dictionary_decode() if isinstance(chunk, pa.DictionaryArray) else chunk
                for buffer in plain.buffers():
                    if buffer is not None:
                        yield f"{place}, column {name}", buffer.to_pybytes()


def _all(data: bytes, word: bytes) -> Iterator[int]:
    offset = data.find(word)
    while offset >= 0:
        yield offset
        offset = data.find(word, offset + 1)


def _int64(number: int) -> bytes:
    return np.int64(number).tobytes()
