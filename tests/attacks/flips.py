"""One flipped bit in one stored object: the reader notices it, gives the same answer, or is silently wrong.

Each kind of object names its files and the call of the product that reads them. The tries of a kind run in a
fork, so that a crash of a native library ends one try only.

noticed: an error of the product, whose message names the object; unnamed: one that does not name it; raw: any
other exception; harmless: the same answer as without the flip; silent: another answer.
"""

import hashlib
import json
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from facts import Problem
from readers import KINDS, Kind
from table import Row
from world import World

from infra.errors import ClvrError

SECONDS_PER_KIND = 300.0


def flip_bits(world: World, kind: Kind, tries: int, seed: int) -> Row:
    """Flip one random bit `tries` times, each in a fresh copy of the object."""
    row = Row(f"one bit of {kind.name}")
    first = 0
    while first < tries:
        world.reset(kind.state)
        words = [str(world.root), kind.name, str(first), str(tries), str(seed)]
        command = world.forks.start(words, call="flips:main")
        code = command.wait(SECONDS_PER_KIND)
        results = [json.loads(line) for line in command.out.splitlines() if line.startswith("{")]
        for result in results:
            _count(row, result)
        first += len(results)
        if code == 0 and not results:
            break
        if code != 0:
            if not results and not command.out:
                raise RuntimeError(f"{kind.name}: {command.err}")
            _count(row, {"what": "crash", "text": f"exit {code}", "where": f"try {first}"})
            first += 1
    return row


def _count(row: Row, result: dict[str, str]) -> None:
    row.tries += 1
    if result["what"] in ("silent", "crash"):
        row.add([Problem(result["what"], result["text"])], result["where"])
    else:
        row.counts[result["what"]] += 1
        if result["what"] in ("raw", "unnamed"):
            row.notes.append(f"{result['where']}: {result['what']}: {result['text']}")


def main() -> None:
    """Run tries FIRST to TRIES of a kind: ROOT KIND FIRST TRIES SEED. Prints one JSON line per try."""
    root, name, first, tries, seed = sys.argv[1:]
    world = _Place(Path(root))
    kind = next(kind for kind in KINDS if kind.name == name)
    if kind.prepare is not None:
        kind.prepare(world.here, world.root)
    pristine = world.root / "pristine"
    shutil.rmtree(pristine, ignore_errors=True)
    shutil.copytree(world.here, pristine)
    expected = _digest(kind.read(world.here, world.root))
    world.restore(pristine, kind)
    if _digest(kind.read(world.here, world.root)) != expected:
        raise RuntimeError(f"{name} gives two answers without a flip")
    world.restore(pristine, kind)
    print("ready", flush=True)
    for number in range(int(first), int(tries)):
        rng = random.Random(f"{seed}/{name}/{number}")
        path = rng.choice(sorted(kind.files(world.here, world.root)))
        data = bytearray(path.read_bytes())
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        original = path.read_bytes()
        path.write_bytes(bytes(data))
        result = _judge(kind, world, path, expected)
        result["where"] = f"{path.name}, bit {bit} of {8 * len(data)}"
        print(json.dumps(result), flush=True)
        if path.exists() or not kind.changes:
            path.write_bytes(original)
        world.restore(pristine, kind)


@dataclass
class _Place:
    root: Path

    @property
    def here(self) -> Path:
        return self.root / "here"

    def restore(self, pristine: Path, kind: Kind) -> None:
        """Undo what the reading changed."""
        for name in kind.changes:
            shutil.rmtree(self.here / name, ignore_errors=True)
            shutil.copytree(pristine / name, self.here / name)


def _judge(kind: Kind, world: _Place, path: Path, expected: str) -> dict[str, str]:
    try:
        answer = _digest(kind.read(world.here, world.root))
    except ClvrError as error:
        text = f"{type(error).__name__}: {error.message}"
        # A checkpoint, a sweep or an erasure may be named by its folder.
        names = (path.name, path.stem, path.parent.name, *kind.names)
        named = any(name in error.message for name in names)
        return {"what": "noticed" if named else "unnamed", "text": text[:200]}
    except Exception as error:
        return {"what": "raw", "text": f"{type(error).__name__}: {error}"[:200]}
    if answer == expected:
        return {"what": "harmless", "text": ""}
    return {"what": "silent", "text": "another answer"}


def _digest(answer: Any) -> str:
    return hashlib.sha256(repr(_plain(answer)).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, dict):
        return [(key, _plain(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    to_pylist: Callable[[], Any] | None = getattr(value, "to_pylist", None)
    return to_pylist() if to_pylist else value
