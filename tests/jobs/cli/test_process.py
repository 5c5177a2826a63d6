"""`clvr` as a process: closed pipes, full devices, missing streams, and Ctrl-C from its first moment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.cli.interrupts import INTERRUPTED
from jobs.cli.streams import STDOUT_CLOSED

CLVR = [sys.executable, "-m", "jobs"]
ROOT = Path(__file__).parents[3]


def shell(command: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run `clvr` in bash; its exit code is the one of the pipe's first process."""
    text = command.replace("clvr", f"'{sys.executable}' -m jobs") + "; exit ${PIPESTATUS[0]}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["/bin/bash", "-c", text],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["config --json", "config", "--help", "embed --help"])
def test_a_closed_pipe_ends_a_command_without_a_word(
    tmp_path: Path, arguments: str, unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    # The reader is gone before the first byte.
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*CLVR, *arguments.split()],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=200,
        check=False,
        cwd=ROOT,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (STDOUT_CLOSED, "")


@pytest.mark.parametrize("arguments", ["config --json", "config", "--help"])
def test_a_full_device_is_one_line_and_a_remedy(tmp_path: Path, arguments: str) -> None:
    done = shell(f"clvr {arguments} > /dev/full", tmp_path)
    assert done.returncode == 4
    assert done.stderr.splitlines() == [
        "error: the output cannot be written: No space left on device",
        "remedy: send stdout to a file with free space",
    ]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("clvr config --json >&-", 0),
        ("clvr config 2>&-", 0),
        ("clvr config <&- >&- 2>&-", 0),
        ("clvr status unknown 2>/dev/full", 3),
        ("clvr status unknown 2>&1 | true", 3),
        ("clvr frob >/dev/full 2>&1", 2),
        ("clvr config | head -n 1", 0),
    ],
)
def test_streams_that_are_closed_or_full_leave_the_exit_code(tmp_path: Path, command: str, code: int) -> None:
    done = shell(command, tmp_path)
    assert done.returncode == code
    assert "Traceback" not in done.stderr + done.stdout
    assert "Exception ignored" not in done.stderr + done.stdout


@pytest.mark.parametrize("library", ["", "numpy", "pyarrow"])
def test_an_interrupt_during_the_imports_is_130_and_no_word(tmp_path: Path, library: str) -> None:
    """Sent when the first line of `clvr` has run, or when a library is being loaded."""
    program = "import sys; from jobs.cli.interrupts import exit_on_interrupt; exit_on_interrupt(); " + (
        "print('ready', flush=True); from jobs.cli.main import main; sys.argv[1:] = ['serve']; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout
    process.stdout.readline()
    while library and process.poll() is None and library not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == INTERRUPTED
    assert "Traceback" not in errors


def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    """As under nohup, or in the background of a script."""
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from jobs.cli.main import main; "
        + ("import os, sys; os.kill(os.getpid(), signal.SIGINT); sys.argv[1:] = ['config']; main()")
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=100, check=False
    )
    assert done.returncode == 0
