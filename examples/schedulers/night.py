"""One night of the archive for any scheduler: run `clvr reindex`, and tell what is worth another try.

The same command continues an unfinished night, so a retry repeats the command with the same --night.
"""

import os
import shlex
import subprocess

# Of `clvr exit-codes`: storage, Milvus and Ray that are unreachable, a lock of another process, and a killed
# process. Nothing else gets better by waiting: wrong input, counts that differ, a failed gate.
WORTH_A_RETRY = frozenset({4, 5, 10, 12, 130, 137, 143})
MAX_RETRIES = 4
RETRY_SECONDS = 600


class NightFailed(Exception):
    """The night did not finish. The log has the error and its remedy."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"clvr reindex ended with exit code {exit_code}")
        self.can_retry = exit_code in WORTH_A_RETRY


def run_night(name: str) -> None:
    """Run the night of this name, such as its date. Raises NightFailed.

    `NIGHT` has the arguments of `clvr reindex`; the other settings are `CLVR_` and `AWS_` variables.
    """
    command = ["clvr", "reindex", *shlex.split(os.environ["NIGHT"]), "--night", name]
    exit_code = subprocess.run(command, check=False).returncode
    if exit_code:
        # A process that a signal killed has the negative number of the signal.
        raise NightFailed(exit_code if exit_code > 0 else 128 - exit_code)
