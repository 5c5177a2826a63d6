"""Attack the product from outside, and print one table: `make attack`.

    python tests/attacks [ATTACK ...] [--tries SHARE] [--seed N] [--output FILE]

Attacks: kills, boundaries, flips, pairs, erased (default: all). Nothing here is part of `make test`.
"""

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from table import Row
    from world import World

ATTACKS = ("kills", "boundaries", "flips", "pairs", "erased")
PAIRS_ON_LITE = 0.25


def main() -> int:
    """Return 1 if anything was lost, doubled, wrong, half-done or silent."""
    parser = argparse.ArgumentParser(prog="make attack", description=__doc__.splitlines()[0])
    parser.add_argument("attacks", nargs="*", choices=[[], *ATTACKS], help="default: all")
    parser.add_argument("--kills", type=int, default=200, help="kills at random moments")
    parser.add_argument("--flips", type=int, default=100, help="flipped bits of each kind of object")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of commands at once")
    parser.add_argument("--only", default="", help="parts of the names of commands or kinds, with commas")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument("--folder", type=Path, help="keep the world here, and use it again")
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--without-server", action="store_true")
    options = parser.parse_args()
    if options.folder is not None:
        return run(options, options.folder.resolve())
    folder = Path(tempfile.mkdtemp(prefix="attack-"))
    try:
        return run(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(options: argparse.Namespace, folder: Path) -> int:
    """Build the world, attack it, and report after each attack."""
    from table import Row, as_markdown
    from world import open_world

    started = time.monotonic()
    chosen = options.attacks or ATTACKS
    rows: list[Row] = []
    text = "nothing to attack"
    with open_world(folder, ray=not options.without_ray) as world:
        for make in _attacks(world, chosen, options):
            rows += make()
            minutes = (time.monotonic() - started) / 60
            text = as_markdown(rows, f"Attacks at {_commit()}, seed {options.seed}, {minutes:.0f} minutes")
            if options.output is not None:
                options.output.write_text(text)
            print(as_markdown(rows[-1:], f"{minutes:.1f} min").partition("\n")[2], flush=True)
    print(text)
    return 0 if all(row.clean for row in rows) else 1


def _attacks(
    world: "World", chosen: list[str], options: argparse.Namespace
) -> Iterator[Callable[[], list["Row"]]]:
    from erased import look_on_lite, look_on_server
    from flips import flip_bits
    from kills import Attacker
    from pairs import Pairs
    from readers import KINDS

    attacker, server = Attacker(world, options.seed), not options.without_server
    purge = "--purge" in world.must("forget", "--help").out
    scenarios = [one for one in attacker.chosen(server=server, purge=purge) if _is_meant(one.name, options)]
    shares = sum(one.share for one in scenarios)
    for one in scenarios if "kills" in chosen else ():
        kills = round(options.kills * one.share / shares)
        if kills:
            yield lambda one=one, kills=kills: attacker.random_kills(one, kills)
    for one in scenarios if "boundaries" in chosen else ():
        if one.boundaries:
            yield lambda one=one: [attacker.boundary_kills(one)]
    if "flips" in chosen:
        if world.cluster is not None and not (world.states / "purged").exists():
            world.build_full()
        kinds = [kind for kind in KINDS if _is_meant(kind.name, options)]
        for kind in (
            kinds if world.cluster else (kind for kind in kinds if kind.state not in ("full", "purged"))
        ):
            yield lambda kind=kind: [flip_bits(world, kind, options.flips, options.seed)]
    if "pairs" in chosen:
        pairs, lite = Pairs(world, options.seed), round(options.pairs * PAIRS_ON_LITE)
        if server:
            yield lambda: [pairs.on_server(options.pairs - lite)]
        yield lambda: [pairs.on_lite(lite)]
    if "erased" in chosen and purge:
        if _is_meant("Milvus Lite", options):
            yield lambda: look_on_lite(world)
        if server and _is_meant("Milvus server", options):
            yield lambda: look_on_server(world)


def _is_meant(name: str, options: argparse.Namespace) -> bool:
    return any(part in name for part in options.only.split(","))


def _commit() -> str:
    words = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    return f"{commit}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}"


def _with_tiny_backbone() -> None:
    """Start this program again with the folder of sitecustomize in PYTHONPATH, which Python reads first."""
    here = Path(__file__).resolve().parent
    paths = [str(path) for path in (here / "site", here, here.parents[1])]
    if os.environ.get("PYTHONPATH", "").split(os.pathsep)[: len(paths)] != paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        os.execv(sys.executable, [sys.executable, str(here), *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    _with_tiny_backbone()
    sys.exit(main())
