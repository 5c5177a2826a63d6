"""stdout is data, stderr is talk, whatever libraries do."""

import json
import subprocess
import sys

CHATTY_LIBRARY = """
import os
from jobs.cli.options import emit, redirect_stdout_to_stderr
redirect_stdout_to_stderr()
print("a worker died")                      # as Ray's Python does
os.write(1, b"and native code says so\\n")  # as its C++ does
emit({"rows": 3}, True, "")
"""


def test_what_libraries_print_does_not_reach_the_result() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHATTY_LIBRARY], capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(done.stdout) == {"rows": 3}
    assert "a worker died" in done.stderr
    assert "native code" in done.stderr
