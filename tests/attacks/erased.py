"""An erased vehicle is looked for in every byte that `clvr forget --purge` has to reach.

Needles: the URI of a crop and its key, the crop_id as text and as int64, the time of capture as text and as
int64 where no other crop has it, and a piece of the embedding. Parquet, also within other files, is decoded.
"""

import base64
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
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

from infra.errors import ClvrError
from jobs.pages.thumbnail import thumbnail

MAGIC = b"PAR1"
PIECE = 16  # numbers of an embedding
PICTURE = 200  # characters of a picture in a page
GARBAGE_SECONDS = 45.0
REFUSED = 3
EVALUATE = ("--protocol", "leave-one-out")


@dataclass(frozen=True)
class Needle:
    """What is looked for: a kind and its bytes."""

    kind: str
    data: bytes


def look_for_erased(world: World, *, server: bool) -> list[Row]:
    """Erase a vehicle with --purge and return rows for Milvus Lite and, if asked for, for the server.

    What was cut off before the purge is continued after it, and the bytes are searched again.
    """
    world.reset("live")
    needles = needles_of(world)
    write_everywhere(world, needles)
    before = Row("the same search before the purge (it must find)")
    _search(before, _files(world.here), needles)
    found = {kind: count for kind, count in before.counts.items() if kind not in ("files", "wrong")}
    before.counts = Counter(found)
    before.notes = []
    rows = [before, _purge(world, "an erased vehicle after --purge, Milvus Lite")]
    _search(rows[-1], _files(world.here), needles)
    _audit(rows[-1], world)
    if world.cluster is not None:
        rows.append(Row("the same after all commands were given again"))
        _again(rows[-1], world, needles)
        _search(rows[-1], _files(world.here), needles)
        _audit(rows[-1], world)
    return rows + (_on_server(world, needles) if server else [])


def _on_server(world: World, needles: list[Needle]) -> list[Row]:
    with world.on_server():
        world.reset("embedded")
        for words in (("load", "r1"), ("promote", "latest"), ("load", "r2", "--into-live"), ("load", "r1")):
            world.must(*words)
        if world.cluster is not None:
            world.must(*world.sweep_words(world.out, exact=False))
        found = _purge(world, "an erased vehicle after --purge, Milvus server: store")
        _search(found, _files(world.here), needles)
        _audit(found, world)
        bucket = Row("an erased vehicle after --purge, Milvus server: bucket")
        queue = Row("(for information) the server's own disk: message queue and metadata")
        time.sleep(GARBAGE_SECONDS)
        _search(bucket, world.bucket_objects(), needles)
        _search(queue, world.queue_files(), needles)
        queue.counts["left by design"] = queue.counts.pop("wrong", 0)
    return [found, bucket, queue]


def write_everywhere(world: World, needles: list[Needle]) -> None:
    """Let every command that writes somewhere write what the vehicle's crops are in."""
    uris = [needle.data.decode() for needle in needles if needle.kind == "uri"]
    here = world.here
    (here / "pages").mkdir()
    world.must("search", uris[0], "--top", "50", "--same-camera", "--html", here / "pages/search.html")
    world.must("evaluate", "r1", *EVALUATE, "--html", here / "pages/cmc.html", "--splits-file", here / "s.pq")
    world.must("calibrate", "r1", "--false-alarm-rate", "0.1")
    if world.cluster is None:
        return
    (world.root / "probes.csv").write_text("\n".join(["uri", *uris]))
    by_list = ["sweep", str(world.root / "probes.csv"), "--case-number", "1", "--top", "50", "--same-camera"]
    by_list += ["--exact", "--run-id", "r1"]
    world.must(*world.sweep_words(world.out))
    world.must(*by_list, "--output", here / "listed")
    for name, first in (("cut-a", "list"), ("cut-b", "results")):
        _cut_off(world, [*by_list, "--output", here / name], f"{name}/{first}/*")
    _cut_off(world, world.train_words(), "net/training/*/features-*.json")
    _cut_off(world, world.embed_words("cut", "--rows-per-shard", "32"), "runs/runs/cut/parts/part-*.json")
    world.must(*world.night_words("n1"))


def _cut_off(world: World, words: list[str], pattern: str) -> None:
    """Start a command and end it by SIGKILL as soon as it has written such a file, unless it was faster."""
    command = world.start(*words)
    while command.poll() is None and not list(world.here.glob(pattern)):
        time.sleep(0.01)
    command.kill()
    time.sleep(2.0)  # its actors end a little later


def _again(row: Row, world: World, needles: list[Needle]) -> None:
    uris = [needle.data.decode() for needle in needles if needle.kind == "uri"]
    here = world.here
    commands = {
        "embed": world.embed_words("cut"),
        "sweep": world.sweep_words(world.out),
        "load": ["load", "r1", "r2", "--latest-wins"],
        "promote": ["promote", "latest"],
        "evaluate": ["evaluate", "r1", *EVALUATE, "--html", str(here / "pages/cmc.html")],
        "reindex": world.night_words("n2"),
    }
    for name in ("listed", "cut-a", "cut-b"):
        commands[f"sweep {name}"] = [
            *("sweep", str(world.root / "probes.csv"), "--case-number", "1", "--top", "50", "--same-camera"),
            *("--exact", "--run-id", "r1", "--output", str(here / name)),
        ]
    for name, words in commands.items():
        command = world.clvr(*words)
        if command.poll() not in (0, REFUSED):
            row.add(
                [Problem("other", f"exit {command.poll()}: {command.err[-300:]}")], f"{name} after a purge"
            )
    search = world.clvr("search", uris[0], "--top", "50", "--html", here / "pages/again.html")
    if search.poll() == 0:
        row.add([Problem("wrong", "an erased crop can be a probe")], "search")


def _purge(world: World, title: str) -> Row:
    row = Row(title)
    command = world.clvr(*FORGET, "--purge")
    if command.poll() != 0:
        row.add([Problem("other", f"exit {command.poll()}: {command.err[-300:]}")], "forget --purge")
    return row


def _audit(row: Row, world: World) -> None:
    """Compare `clvr forget --audit latest` with the search of the bytes: both must find nothing."""
    command = world.clvr("forget", "--audit", "latest", "--json")
    try:
        found = int(json.loads(command.out)["found"])
    except ValueError:
        row.add([Problem("other", f"exit {command.poll()}: {command.err[-300:]}")], "forget --audit")
        return
    row.counts["found by --audit"] = found
    for place in json.loads(command.out)["places"]:
        if place["found"] or "not looked at" in place["note"]:
            row.notes.append(f"{place['where']}: audit: {place['found']} found {place['note']}")
    if (found == 0) != (row.counts["wrong"] == 0):
        row.add(
            [Problem("wrong", f"--audit finds {found}, the search of the bytes {row.counts['wrong']}")],
            "audit",
        )


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
        with suppress(ClvrError, OSError):
            picture = base64.b64encode(thumbnail(Path(uri).read_bytes()))
            needles.append(Needle("picture", picture[1000 : 1000 + PICTURE]))
        if crop["captured_at"] in times:
            time = crop["captured_at"]
            needles += [Needle("time, text", str(time).encode()), Needle("time, int64", _int64(time))]
        for vector in vectors.get(crop_id, ()):
            pieces = (vector[first : first + PIECE] for first in range(0, len(vector) - PIECE, PIECE))
            piece = max(pieces, key=np.count_nonzero).tobytes()
            if piece not in kept:
                needles.append(Needle("embedding", piece))
    return list(dict.fromkeys(needles))


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
            row.counts[kind] += times
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
