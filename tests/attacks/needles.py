"""What of a vehicle's crops is looked for in the bytes of files.

The URI of a crop and its key, the crop_id as text and as int64, the time of capture as text and as int64
where no other crop has it, the picture as pages show it, and a piece of the embedding. Parquet, also within
other files, is decoded.
"""

import base64
import io
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
from table import Row
from world import World

from infra.errors import ClvrError
from jobs.pages.thumbnail import thumbnail

VEHICLE = 7
MAGIC = b"PAR1"
PIECE = 16  # numbers of an embedding
PICTURE = 200  # characters of a picture in a page


@dataclass(frozen=True)
class Needle:
    """What is looked for: a kind and its bytes."""

    kind: str
    data: bytes


def needles_of(world: World, runs: Path | None = None, vehicle: int = VEHICLE) -> list[Needle]:
    """Return the needles of all crops of a vehicle, read from the manifests and shards with pyarrow."""
    runs = runs or world.runs
    crops: list[dict[str, Any]] = []
    vectors: dict[int, list[Any]] = {}
    for path in sorted(runs.glob("runs/*/manifest/*.parquet")):
        crops += pq.read_table(path).to_pylist()
    for path in sorted(runs.glob("runs/*/shards/*.parquet")):
        table = pq.read_table(path, columns=["crop_id", "embedding"])
        for crop_id, vector in zip(
            *(table[name].to_pylist() for name in ("crop_id", "embedding")), strict=True
        ):
            vectors.setdefault(crop_id, []).append(np.asarray(vector, np.float32))
    wanted = [crop for crop in crops if crop["vehicle_id"] == vehicle]
    ids = {crop["crop_id"] for crop in wanted}
    others = [crop for crop in crops if crop["crop_id"] not in ids]
    times = {crop["captured_at"] for crop in wanted} - {crop["captured_at"] for crop in others}
    kept = b"".join(vector.tobytes() for crop in others for vector in vectors.get(crop["crop_id"], ()))
    copies = {path.read_bytes()[:-1] for path in world.probes.iterdir()}
    needles: list[Needle] = []
    for crop in wanted:
        crop_id, uri = crop["crop_id"], crop["uri"]
        needles += [Needle("uri", uri.encode()), Needle("key", Path(uri).name.encode())]
        needles += [Needle("crop_id, text", str(crop_id).encode()), Needle("crop_id, int64", _int64(crop_id))]
        with suppress(ClvrError, OSError):
            data = Path(uri).read_bytes()
            if data not in copies:  # people show what they have a copy of
                picture = base64.b64encode(thumbnail(data))
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


def search(row: Row, places: Iterator[tuple[str, bytes]], needles: list[Needle]) -> None:
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


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
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
