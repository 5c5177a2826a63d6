"""Feed mutated pictures, tables, containers, keys and documents to the readers: `make fuzz`.

Every item must end in a result or in a ClvrError, within a budget of CPU time and memory. Each chunk of items
runs in a process of its own, so a crash is counted, and the seed that is printed repeats it:

    python tests/fuzz/run.py --only pictures --first 40000 --items 10000
"""

import argparse
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests")) if path not in sys.path]

import pyarrow as pa  # noqa: E402
import pyarrow.compute as pc  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from fuzz.mutations import mutate, mutate_json  # noqa: E402
from hostile_images import chunk, encoded, png, progressive_jpeg, scene  # noqa: E402
from PIL import Image  # noqa: E402

from clvr_model.preprocessing import decode  # noqa: E402
from index.archive.key_pattern import KeyPattern  # noqa: E402
from index.archive.labels import read_label_table, with_labels  # noqa: E402
from index.archive.listing import list_crops  # noqa: E402
from index.archive.manifest import read_manifest  # noqa: E402
from index.archive.reader import ArchiveReader  # noqa: E402
from index.parquet import SealedWriter, open_parquet  # noqa: E402
from index.runs.records import RunInfo  # noqa: E402
from index.search.calibration import Calibration  # noqa: E402
from index.search.travel_time import read_cameras  # noqa: E402
from infra.errors import ClvrError, UnreadableImage  # noqa: E402
from infra.store import open_store  # noqa: E402
from infra.store.sealed import encode_json, seal  # noqa: E402
from jobs.pages.thumbnail import thumbnail  # noqa: E402
from jobs.sweep.probe_list import read_probe_list  # noqa: E402

MAX_CPU_SECONDS = 10.0
MAX_MEMORY = 1 << 30  # bytes that one item may add to the process
CHUNK = 5_000
CAUSES = {"empty", "truncated", "not-a-picture", "too-large", "unsupported"}


@dataclass
class Outcome:
    """The counts of some items, and what must not have happened."""

    items: int = 0
    results: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)  # crashes, foreign exceptions, items over budget

    def add(self, other: dict[str, Any]) -> None:
        self.items += other["items"]
        self.results.update(other["results"])
        self.slowest = max(self.slowest, other["slowest"])
        self.faults += other["faults"]


class Pictures:
    """Small pictures of all formats through the decoder, every fourth one through the thumbnail too."""

    def __init__(self, folder: Path) -> None:
        image = scene(48, 40)
        exif = Image.Exif()
        exif[0x0112] = 6
        noise = Image.effect_noise((60, 50), 80)
        self.bases = [
            encoded(image, quality=80),
            encoded(image, quality=60, exif=exif.tobytes(), progressive=True),
            encoded(noise.convert("CMYK"), quality=50),
            encoded(noise, quality=50, restart_marker_blocks=4),
            progressive_jpeg(64, 60),
            encoded(image, "PNG", exif=exif.tobytes()),
            encoded(image.quantize(16), "PNG"),
            png(40, 30, 16, 6, extra=chunk(b"tEXt", b"Comment\0text")),
            encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG"),
            encoded(image, "WEBP", quality=50, exif=exif.tobytes()),
            encoded(image.convert("RGBA"), "WEBP", lossless=True),
            encoded(image, "BMP"),
            encoded(image.quantize(16), "BMP"),
        ]

    def run(self, rng: random.Random) -> str:
        data = mutate(rng.choice(self.bases), self.bases, rng)
        try:
            pixels = decode(data)
            if pixels.shape != (299, 299, 3) or pixels.dtype != np.uint8:
                raise AssertionError(f"a result of {pixels.shape} {pixels.dtype}")
            if not rng.randrange(4):
                thumbnail(data)
        except UnreadableImage as error:
            if error.cause not in CAUSES:
                raise AssertionError(f"the cause is {error.cause}") from error
            return error.cause
        return "decoded"


class Tables:
    """CSV, Parquet and gzip files through the readers of labels, lists, probes and camera positions."""

    def __init__(self, folder: Path) -> None:
        import gzip

        self.folder = folder
        columns = {
            "uri": [f"/archive/c{n}/2026-01-0{n}.jpg" for n in range(1, 8)],
            "camera_id": ["001", "002", "", "é", "5", "6", "7"],
            "captured_at": [1_767_600_000_000 + n for n in range(7)],
            "vehicle_id": [4, None, -1, 5, 6, 7, 8],
            "split": ["train", "test"] * 3 + ["test"],
        }
        table = pa.table(columns)
        csv = b"uri,camera_id,captured_at,vehicle_id,split\n" + b"\n".join(
            ",".join("" if value is None else str(value) for value in row.values()).encode()
            for row in table.to_pylist()
        )
        cameras = b"camera_id,lat,lon\n001,52.1,4.2\n002,52.2,4.3\n"
        self.bases = [csv, csv.replace(b",", b";"), cameras, gzip.compress(csv), b"uri\n/a.jpg\ncrop:12\n"]
        for options in ({"compression": "zstd"}, {"compression": "none", "use_dictionary": False}):
            buffer = io.BytesIO()
            pq.write_table(table, buffer, **options)
            self.bases.append(buffer.getvalue())
        sealed = SealedWriter(folder / "sealed.parquet", table.schema, {}, compress=True)
        sealed.write_row_group(table)
        sealed.close()
        self.bases.append(sealed.path.read_bytes())
        self.readers: list[Callable[[str], Any]] = [
            read_label_table,
            read_manifest,
            read_probe_list,
            read_cameras,
            self._labels_of_manifest,
            self._stream,
        ]

    def _labels_of_manifest(self, uri: str) -> None:
        manifest = read_manifest(uri, archive="/archive", pattern=KeyPattern("c{camera_id}/{*}.jpg"))
        with_labels(manifest, read_label_table(uri), archive="/archive")

    def _stream(self, uri: str) -> None:
        with open_parquet(open_store(str(self.folder)), Path(uri).name) as file:
            file.read()
            for batch in file.batches(3):
                batch.validate(full=True)

    def run(self, rng: random.Random) -> str:
        suffix = rng.choice((".csv", ".parquet"))
        path = self.folder / f"table{suffix}"
        path.write_bytes(mutate(rng.choice(self.bases), self.bases, rng))
        reader = rng.choice(self.readers)
        try:
            reader(str(path))
        except ClvrError as error:
            _require_one_line(error)
            return type(error).__name__
        return "read"


class Containers:
    """Parquet and tar files of crops through the listing and the reader."""

    def __init__(self, folder: Path) -> None:
        self.store = open_store(str(folder))
        images = [bytes([number]) * (30 + number) for number in range(12)]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        structs = [{"bytes": data, "path": f"{len(data)}.jpg"} for data in images]
        names = pa.array([f"cam={number % 2}/{number}.jpg" for number in range(12)])
        tables = (
            {
                "image": images,
                "name": names,
                "camera_id": ["a", None] * 6,
                "captured_at": [1_767_225_600_000] * 12,
            },
            {"image": pa.array(structs, kind)},
            {"image": pa.array(images).dictionary_encode()},
        )
        self.bases = []
        for number, columns in enumerate(tables):
            sink = io.BytesIO()
            compression = ("none", "zstd", "snappy")[number]
            pq.write_table(pa.table(columns), sink, row_group_size=5, compression=compression)
            self.bases.append((".parquet", sink.getvalue()))
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as file:
            for number, data in enumerate(images):
                member = tarfile.TarInfo(f"{number}.jpg")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
        self.bases.append((".tar", sink.getvalue()))

    def run(self, rng: random.Random) -> str:
        suffix, base = rng.choice(self.bases)
        key = f"crops{suffix}"
        self.store.delete(*(info.key for info in self.store.list()))
        self.store.put(key, mutate(base, [data for _, data in self.bases], rng))
        try:
            crops = list_crops(self.store).crops.read()
        except ClvrError as error:
            _require_one_line(error)
            return type(error).__name__
        uris, etags = crops["uri"].to_pylist(), crops["etag"].to_pylist()
        reader, failed = ArchiveReader(self.store), 0
        for span in reader.spans(uris, etags):
            for body in reader.fetch_span(span, uris):
                if isinstance(body, ClvrError):
                    _require_one_line(body)
                    failed += 1
        return "read" if not failed else "read in part"


class Keys:
    """Keys of an archive, of any text, through patterns."""

    def __init__(self, folder: Path) -> None:
        patterns = (
            "dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg",
            "{*}/{camera_id}_{*}.jpg",
            "{camera_id}",
        )
        self.patterns = [KeyPattern(text) for text in patterns]
        self.bases = [
            b"dt=2026-01-01/cam=001/1767600000000_t1.jpg",
            "a/b/caméra_1.jpg".encode(),
            b"x//../y\t\n.jpg",
        ]

    def run(self, rng: random.Random) -> str:
        texts = [
            mutate(rng.choice(self.bases), self.bases, rng)[:3000].decode("utf-8", "replace")
            for _ in range(8)
        ]
        try:
            columns = rng.choice(self.patterns).extract(pa.array(texts))
        except ClvrError as error:
            _require_one_line(error)
            return type(error).__name__
        matched = pc.sum(columns["matched"]).as_py()
        return "matched" if matched else "not matched"


class Documents:
    """JSON documents through their classes."""

    def __init__(self, folder: Path) -> None:
        calibration = Calibration(
            "f", "r", 0.01, 1.0, 0.5, 9, 3, 9, 4, 0.1, 0.2, False, (1.0, 2.0), (0.9, 0.1), "t"
        )
        run = {
            "run_id": "r",
            "archive": "/a",
            "crops": 3,
            "parts": 1,
            "manifest": "abc",
            "fingerprint": "f",
            "model": "m",
            "settings": {"precision": "float32"},
            "version": "0.1.0",
            "created": "2026-01-01T00:00:00.000+00:00",
        }
        sealed = [(Calibration, calibration.to_json()), (RunInfo, seal(run))]
        # Without a digest a document is accepted, so that mutations reach the checks of its fields.
        plain = [(Calibration, encode_json(calibration.plain_values())), (RunInfo, encode_json(run))]
        self.bases = [*sealed, *plain, *plain]

    def run(self, rng: random.Random) -> str:
        kind, text = rng.choice(self.bases)
        try:
            document = kind.from_json(mutate_json(text, rng), "s3://bucket/document.json")
        except ClvrError as error:
            _require_one_line(error)
            return type(error).__name__
        try:
            document.to_json()
        except ValueError:
            return "read, not finite"
        return "read"


TARGETS: dict[str, Callable[[Path], Any]] = {
    "pictures": Pictures,
    "tables": Tables,
    "keys": Keys,
    "containers": Containers,
    "documents": Documents,
}


def _require_one_line(error: ClvrError) -> None:
    if "\n" in error.message or len(error.message) > 2000 or not error.message:
        raise AssertionError(f"a message of {len(error.message)} characters: {error.message[:200]!r}")


def run_items(name: str, first: int, items: int, seconds: float = float("inf")) -> dict[str, Any]:
    """Run items first, first + 1, … in this process, for at most some seconds."""
    results: Counter[str] = Counter()
    faults: list[str] = []
    slowest, done, ends = 0.0, 0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = TARGETS[name](Path(folder))
        before = _resident()
        for number in range(first, first + items):
            if time.monotonic() > ends:
                break
            _forget_peak()
            started = time.process_time()
            try:
                results[target.run(random.Random(f"{name}-{number}"))] += 1
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                faults.append(
                    f"{name} {number}: {type(error).__name__} at {where.filename}:{where.lineno}: {error}"[
                        :400
                    ]
                )
            spent = time.process_time() - started
            slowest = max(slowest, spent)
            grown = _peak() - before
            if spent > MAX_CPU_SECONDS:
                faults.append(f"{name} {number}: {spent:.1f} s of CPU time")
            if grown > MAX_MEMORY:
                faults.append(f"{name} {number}: {grown >> 20} MiB")
            done += 1
    return {"items": done, "results": dict(results), "slowest": slowest, "faults": faults}


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    return _memory("VmHWM")


def _resident() -> int:
    return _memory("VmRSS")


def _memory(name: str) -> int:
    with open("/proc/self/status", "rb") as status:  # noqa: PTH123 (called for every item)
        line = next(line for line in status if line.startswith(name.encode()))
    return 1024 * int(line.split()[1])


def run_in_processes(name: str, first: int, items: int, seconds: float) -> Outcome:
    """Run items in processes of `CHUNK` items each, for at most some seconds in all."""
    outcome, ends = Outcome(), time.monotonic() + seconds
    while outcome.items < items and time.monotonic() < ends:
        start = first + outcome.items
        count = min(CHUNK, items - outcome.items)
        command = [
            sys.executable,
            __file__,
            "--worker",
            "--only",
            name,
            "--first",
            str(start),
            "--items",
            str(count),
        ]
        left = max(1.0, ends - time.monotonic())
        done = subprocess.run([*command, "--seconds", str(left)], capture_output=True, text=True, check=False)
        if done.returncode:
            outcome.items += count
            outcome.faults.append(
                f"{name} {start} to {start + count}: exit {done.returncode}: {done.stderr[-300:]}"
            )
        else:
            outcome.add(json.loads(done.stdout.splitlines()[-1]))
    return outcome


def main() -> int:
    """Run as the command line asks; return 1 if anything happened that must not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(TARGETS))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--items", type=int, help="of each kind (500,000 pictures, 100,000 others in all)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each kind")
    parser.add_argument("--worker", action="store_true")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(run_items(options.only, options.first, options.items, options.seconds)))
        return 0
    failed = False
    for name in [options.only] if options.only else TARGETS:
        items = options.items or {"pictures": 500_000, "tables": 50_000}.get(name, 25_000)
        outcome = run_in_processes(name, options.first, items, options.seconds)
        counts = ", ".join(f"{count:,} {result}" for result, count in outcome.results.most_common())
        print(
            f"{name}: {outcome.items:,} items, {len(outcome.faults)} faults, "
            f"slowest {outcome.slowest:.2f} s; {counts}"
        )
        for fault in outcome.faults[:20]:
            print(f"  {fault}")
        failed |= bool(outcome.faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
