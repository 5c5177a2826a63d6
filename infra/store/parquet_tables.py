"""Parquet files of unknown origin, decoded within limits by `infra.store.parquet_worker`."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

OVER_BUDGET = "budget"

_ATTEMPTS = 2
"""A worker that died may have been ended by a machine without memory: a damaged file ends it again."""

_ANSWER = '{"names":'

_WORKER = Path(__file__).with_name("parquet_worker.py")


@dataclass(frozen=True, slots=True)
class DecodedParquet:
    """The columns of a file. stopped: why there are no batches, one line or OVER_BUDGET; '' if there are.

    names: of all columns. nested: types of the used columns that are nested, which are not decoded.
    """

    names: list[str]
    nested: dict[str, str]
    stopped: str
    file: IO[bytes] = field(repr=False)

    def batches(self) -> Iterator[Any]:
        """Yield record batches of the used columns."""
        import pyarrow as pa

        if not os.fstat(self.file.fileno()).st_size:
            return
        with pa.ipc.open_stream(pa.memory_map(f"/dev/fd/{self.file.fileno()}")) as stream:
            yield from stream


@contextmanager
def decoded_parquet(data: bytes, columns: Sequence[str], budget: int) -> Iterator[DecodedParquet]:
    """Decode those of the columns that a Parquet file has, up to `budget` bytes.

    White space around the names in the file does not matter. Takes half a second, for the start of a process.
    """
    request = json.dumps({"columns": list(columns), "budget": budget})
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "ARROW_DEFAULT_MEMORY_POOL": "system",  # the others reserve gigabytes of address space
        "OPENBLAS_NUM_THREADS": "1",
    }
    with tempfile.TemporaryFile(prefix="clvr-") as source, tempfile.TemporaryFile(prefix="clvr-") as target:
        source.write(data)
        for attempt in range(_ATTEMPTS):
            source.seek(0)
            target.seek(0)
            target.truncate()
            worker = subprocess.run(
                [sys.executable, "-P", str(_WORKER), request],
                stdin=source,
                stdout=target,
                stderr=subprocess.PIPE,
                env=environment,
                check=False,
            )
            answer = _answer(worker.stderr)
            if answer is not None or attempt == _ATTEMPTS - 1:
                break
        answer = answer or _death(worker.returncode, worker.stderr)
        target.seek(0)
        yield DecodedParquet(answer["names"], answer["nested"], answer.get("stopped", ""), target)


def _answer(stderr: bytes) -> dict[str, Any] | None:
    """Return what the worker said; None if it died before. A library may write to stderr after it."""
    for line in reversed(stderr.decode(errors="replace").splitlines()):
        if line.startswith(_ANSWER):
            with suppress(ValueError):
                answer: dict[str, Any] = json.loads(line)
                return answer
    return None


def _death(code: int, stderr: bytes) -> dict[str, Any]:
    """Return the answer that stands for a worker that died each time: the file is the cause."""
    lines = stderr.decode(errors="replace").splitlines()
    reasons = [line.split("what():")[1].strip() for line in lines if "what():" in line]
    reason = (reasons or [f"the Parquet library fails at it (exit code {code})"])[0][:300]
    return {"names": [], "nested": {}, "stopped": reason}
