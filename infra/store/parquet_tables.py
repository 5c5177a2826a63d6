"""Parquet files of unknown origin, decoded within limits by `infra.store.parquet_worker`."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

OVER_BUDGET = "budget"

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
        source.seek(0)
        worker = subprocess.run(
            [sys.executable, "-P", str(_WORKER), request],
            stdin=source,
            stdout=target,
            stderr=subprocess.PIPE,
            env=environment,
            check=False,
        )
        answer = _answer(worker.stderr)
        target.seek(0)
        yield DecodedParquet(answer["names"], answer["nested"], answer.get("stopped", ""), target)


def _answer(stderr: bytes) -> dict[str, Any]:
    """Return the last line of the worker, or what stands for it if the worker died."""
    lines = stderr.decode(errors="replace").splitlines() or [""]
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
    except ValueError:
        reasons = [line.split("what():")[1].strip() for line in lines if "what():" in line]
        reason = (reasons or ["the Parquet library fails at it"])[0][:300]
        return {"names": [], "nested": {}, "stopped": reason}
    return answer
