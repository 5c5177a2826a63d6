"""An erased vehicle is looked for in every byte that `clvr forget --purge` has to reach."""

import json
import shutil
import time
from collections import Counter

from facts import Problem
from needles import Needle, files_below, needles_of, search
from scenarios import FORGET
from table import Row
from world import World

GARBAGE_SECONDS = 600.0
"""How long the server's garbage collection may take: a loaded machine delays it."""

LOOK_EVERY_SECONDS = 15.0
REFUSED = 3
EVALUATE = ("--protocol", "leave-one-out")


def look_on_lite(world: World) -> list[Row]:
    """Erase a vehicle with --purge from all that commands write, and return what is found.

    What was cut off before the purge is continued after it, and the bytes are searched again.
    """
    world.reset("live")
    needles = needles_of(world)
    write_everywhere(world, needles)
    before = Row("the same search before the purge (it must find)")
    search(before, files_below(world.here), needles)
    found = {kind: count for kind, count in before.counts.items() if kind not in ("files", "wrong")}
    before.counts = Counter(found)
    before.notes = []
    rows = [before, _purge(world, "an erased vehicle after --purge, Milvus Lite")]
    search(rows[-1], files_below(world.here), needles)
    _audit(rows[-1], world)
    if world.cluster is not None:
        rows.append(Row("the same after all commands were given again"))
        _again(rows[-1], world, needles)
        search(rows[-1], files_below(world.here), needles)
        _audit(rows[-1], world)
    return rows


def look_on_server(world: World) -> list[Row]:
    """Erase a vehicle with --purge from a Milvus server, and return what is found in store and bucket."""
    with world.on_server():
        world.reset("embedded")
        needles = needles_of(world)
        for words in (("load", "r1"), ("promote", "latest"), ("load", "r2", "--into-live"), ("load", "r1")):
            world.must(*words)
        if world.cluster is not None:
            world.must(*world.sweep_words(world.out, exact=False))
        found = _purge(world, "an erased vehicle after --purge, Milvus server: store")
        search(found, files_below(world.here), needles)
        _audit(found, world)
        bucket, waited = _look_until_clean(world, needles)
        bucket.counts["seconds until the bucket was clean"] = waited
        queue = Row("(for information) the server's own disk: message queue and metadata")
        search(queue, world.queue_files(), needles)
        queue.counts["left by design"] = queue.counts.pop("wrong", 0)
        queue.notes = [note.replace(": wrong: ", ": by design: ") for note in queue.notes]
    return [found, bucket, queue]


def _look_until_clean(world: World, needles: list[Needle]) -> tuple[Row, int]:
    """Search the server's bucket until nothing is left in it; return the last search, and the seconds."""
    started = time.monotonic()
    while True:
        time.sleep(LOOK_EVERY_SECONDS)
        row = Row("an erased vehicle after --purge, Milvus server: bucket")
        search(row, world.bucket_objects(), needles)
        waited = time.monotonic() - started
        if row.clean or waited > GARBAGE_SECONDS:
            return row, round(waited)


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
    # What a write leaves that is cut off at its end; a kill hits this moment too rarely.
    for path in (here / "pages/search.html", next(world.runs.glob("runs/r1/shards/*"))):
        end = ".part" if path.suffix == ".html" else "#1"
        shutil.copy(path, path.with_name(path.name + end))
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
    row.counts["--audit agrees"] = int((found == 0) == (row.counts["wrong"] == 0))
    for place in json.loads(command.out)["places"]:
        if place["found"] or "not looked at" in place["note"]:
            row.notes.append(f"{place['where']}: audit: {place['found']} found {place['note']}")
    if not row.counts["--audit agrees"]:
        row.add(
            [Problem("wrong", f"--audit finds {found}, the search of the bytes {row.counts['wrong']}")],
            "audit",
        )
