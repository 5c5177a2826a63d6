"""Commands of the product in processes that start within milliseconds: forks of one process with all imports.

The parent writes one JSON line per command to the server's standard input. Each command gets a folder with
`out`, `err`, `pid` and, at its end, `rc`. A fork runs what `clvr` runs, under the environment of the request.
"""

import atexit
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

ATTACKS = Path(__file__).parent
SITE = ATTACKS / "site"
IMPORTS = (
    "torch",
    "ray",
    "ray.data",
    "ray.train.torch",
    "pymilvus",
    "milvus_lite.adapter.grpc.server",
    "pyarrow.parquet",
    "boto3",
    "jobs.cli.app",
    "jobs.embed.job",
    "jobs.sweep.job",
    "jobs.reindex.job",
    "jobs.generations.load",
    "jobs.generations.erase",
    "jobs.train.train",
    "jobs.search.search",
    "jobs.evaluate.calibrate",
)


class Command:
    """One started command. `rc` is negative for a signal, as in subprocess."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.folder, self.words = folder, words
        while not (text := self._read("pid")):
            time.sleep(0.002)
        self.pid = int(text)

    def poll(self) -> int | None:
        """Return the exit status, or None while the command runs."""
        text = self._read("rc")
        return int(text) if text else None

    def wait(self, seconds: float = 240.0) -> int:
        """Wait for the end and return the exit status; a command that takes longer is killed: -9."""
        end = time.monotonic() + seconds
        while (code := self.poll()) is None and time.monotonic() < end:
            time.sleep(0.005)
        if code is None:
            self.kill()
            return self.wait(10.0)
        return code

    def kill(self) -> bool:
        """End the command by SIGKILL; False if it had ended before."""
        if self.poll() is not None:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return self.wait(30.0) == -signal.SIGKILL

    @property
    def out(self) -> str:
        """The standard output."""
        return self._read("out")

    @property
    def err(self) -> str:
        """The end of the standard error."""
        return self._read("err")[-3000:]

    def _read(self, name: str) -> str:
        with suppress(FileNotFoundError):
            return (self.folder / name).read_text(errors="replace")
        return ""


class ForkServer:
    """Starts commands. `environment` holds for all of them; a request may add to it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment, self.number = folder, environment, 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, str(ATTACKS / "forks.py")],
            stdin=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(
        self,
        words: list[str],
        *,
        call: str = "jobs.cli.app:main",
        wrap: dict[str, Any] | None = None,
        more: dict[str, str] | None = None,
    ) -> Command:
        """Start `clvr WORDS`, or another function. wrap: the arguments of `boundaries.install`."""
        self.number += 1
        folder = self.folder / f"{self.number:05d}"
        folder.mkdir()
        request = {"words": words, "folder": str(folder), "call": call, "wrap": wrap}
        request["environment"] = self.environment | (more or {})
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Command(folder, words)

    def run(self, words: list[str], **options: Any) -> Command:
        """Start a command and wait for it."""
        command = self.start(words, **options)
        command.wait()
        return command

    def json(self, call: str, *words: str) -> Any:
        """Call a function in a process of its own and return what it prints. Raises RuntimeError."""
        command = self.run(list(words), call=call)
        if command.poll() != 0:
            raise RuntimeError(f"{call} {words}: {command.err}")
        return json.loads(command.out)

    def close(self) -> None:
        """End the server; commands go on."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def _serve() -> dict[str, Any] | None:
    """Fork for each request; return the request in the new process, None at the end of the input."""
    for name in IMPORTS:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # otherwise each fork copies the memory of all modules when it looks for garbage
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while line := sys.stdin.readline():
        if os.fork():
            continue
        request: dict[str, Any] = json.loads(line)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        folder = Path(request["folder"])
        child = os.fork()
        if not child:
            return request
        _write(folder / "pid", str(child))
        _write(folder / "rc", str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        os._exit(0)
    return None


def _write(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


def _become(request: dict[str, Any]) -> None:
    folder = Path(request["folder"])
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(folder)
    sys.argv = ["clvr", *request["words"]]
    if request["wrap"] is not None:
        importlib.import_module("boundaries").install(**request["wrap"])
    module, _, function = request["call"].partition(":")
    getattr(importlib.import_module(module), function)()


def _exit_status(request: dict[str, Any]) -> int:
    try:
        _become(request)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(status: int) -> None:
    """End as the interpreter does, except that modules are not taken apart, which takes two seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


if __name__ == "__main__":
    mine = _serve()
    if mine is not None:
        _end(_exit_status(mine))
