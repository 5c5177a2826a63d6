"""stdout contains results only, whatever libraries print."""

import json
import subprocess
import sys

PRINTING_LIBRARY = """
import os
from jobs.cli.options import emit
from jobs.cli.streams import redirect_stdout_to_stderr
redirect_stdout_to_stderr()
print("a worker died")                      # as Ray's Python does
os.write(1, b"and native code prints\\n")  # as its C++ does
emit({"rows": 3}, True, "")
"""


def test_output_of_libraries_is_not_part_of_the_result() -> None:
    completed = subprocess.run(
        [sys.executable, "-c", PRINTING_LIBRARY], capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(completed.stdout) == {"rows": 3}
    assert "a worker died" in completed.stderr
    assert "native code" in completed.stderr
