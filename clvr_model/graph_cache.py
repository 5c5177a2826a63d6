"""Networks converted for OpenVINO, kept on disk: a process that finds its network there needs no torch.

`graphs/` in the cache holds a folder for each graph: `graph.xml`, `graph.bin`, and `graph.json`, which names
what the graph was made from and the SHA-256 of both files. A graph counts only if all of that is as expected;
otherwise it is made again from the checkpoint. A graph is float32 and for any batch size: precision, threads
and batch size are settings of its compilation, which follows on each machine.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from clvr_model.card import Card
from clvr_model.engines import openvino

CONVERSION_VERSION = 2
"""Raise it when the converted graph changes."""

FOLDER = "graphs"
MAX_GRAPHS = 8
"""Graphs that are kept, the last used ones; one of Inception-V3 takes 97 MB."""

_XML, _BIN, _ORIGIN = "graph.xml", "graph.bin", "graph.json"
_SCRATCH = ".new-"
_CONVERTERS = ("clvr-archive", "torch", "timm")

logger = logging.getLogger(__name__)


def cached_graph(cache: Path | None, card: Card, convert: Callable[[], Any]) -> Any:
    """Return the openvino.Model of the checkpoint with that card: from the cache, else from `convert`.

    A new graph is stored, and of too many the one that was not used for longest is removed. Where the cache
    cannot be used, a warning says why. With and without a cache the graph is one that was read from a file,
    since OpenVINO compiles a graph that it just converted to other last bits.
    """
    # A card that was never saved does not tell its network from another one.
    if cache is None or not card.weights_sha256:
        return _as_stored(convert())
    origin = _origin_of(card)
    with ExitStack() as stack:
        try:
            folder = _own_folder(cache)
            kept = _kept(folder, origin)
            graph = _read(kept, origin)
            if graph is None:
                # Processes start together: all but the first find what it made.
                stack.enter_context(_locked(folder))
                graph = _read(kept, origin)
        except OSError as error:
            logger.warning(f"the converted network is not kept: {error}")
            return _as_stored(convert())
        if graph is not None:
            return graph
        converted = convert()
        try:
            _write(kept, origin, converted)
            _remove_unused(folder)
            return openvino().Core().read_model(kept / _XML)
        except (OSError, RuntimeError) as error:  # OpenVINO raises the latter if the disk is full
            logger.warning(f"the converted network is not kept: {error}")
            return _as_stored(converted)


def has_graph(cache: Path, card: Card) -> bool:
    """Whether the cache names a graph of the checkpoint with that card; only reading shows if it is whole."""
    return openvino() is not None and (_kept(cache / FOLDER, _origin_of(card)) / _ORIGIN).is_file()


def _kept(folder: Path, origin: Mapping[str, Any]) -> Path:
    return folder / _digest(json.dumps(origin, sort_keys=True).encode())


def _as_stored(graph: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _XML
        openvino().save_model(graph, path, compress_to_fp16=False)
        return openvino().Core().read_model(path)


def _origin_of(card: Card) -> dict[str, Any]:
    """Return all that decides a graph, as JSON values."""
    origin = {
        "conversion": CONVERSION_VERSION,
        "weights_sha256": card.weights_sha256,
        "architecture": dict(card.architecture),
        "versions": {"openvino": openvino().__version__, **_versions()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(origin))
    return plain


def _versions() -> dict[str, str]:
    versions = {}
    for name in _CONVERTERS:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _own_folder(cache: Path) -> Path:
    """Return the folder of graphs. Raises OSError for one that others may write to."""
    folder = cache / FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or others_write:
        raise PermissionError(f"{folder} belongs to another user, or others may write to it")
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder against other writers. The lock ends with its process."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(kept: Path, origin: Mapping[str, Any]) -> Any:
    """Return the graph, or None if it is missing or damaged."""
    try:
        stored = json.loads((kept / _ORIGIN).read_bytes())
        if stored != _document(kept, origin):
            raise ValueError("its digest is another one")
        with suppress(OSError):  # of a disk that cannot be written
            os.utime(kept)
        return openvino().Core().read_model(kept / _XML)
    except FileNotFoundError:
        return None
    except (ValueError, RuntimeError) as error:
        logger.warning(f"{kept} is damaged and is made again: {str(error).splitlines()[0]}")
        return None


def _document(folder: Path, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of graph.json for the files of a folder."""
    digests = {}
    for name in (_XML, _BIN):
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"made_from": dict(origin), "sha256": digests}


def _write(kept: Path, origin: Mapping[str, Any], graph: Any) -> None:
    """Store a graph under a name that has it whole or not at all. The folder is locked."""
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=kept.parent))
    try:
        openvino().save_model(graph, scratch / _XML, compress_to_fp16=False)
        (scratch / _ORIGIN).write_text(json.dumps(_document(scratch, origin), indent=1) + "\n")
        shutil.rmtree(kept, ignore_errors=True)  # a damaged one
        scratch.rename(kept)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_unused(folder: Path) -> None:
    """Remove what killed processes left, and all but the last used graphs. The folder is locked."""
    graphs = []
    for path in folder.iterdir():
        if path.name.startswith(_SCRATCH):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_dir():
            graphs.append(path)
    graphs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in graphs[MAX_GRAPHS:]:
        shutil.rmtree(path, ignore_errors=True)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
