"""Handles of processes: a process is recognised by a later command, and ended with its session."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from infra.servers.process import ProcessHandle, processes_in_session, processes_with_tag

IDLE = "import time; time.sleep(300)"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", IDLE], env={**os.environ, "CLVR_STACK": "sleeper"})
    yield child
    child.kill()
    child.wait()


def test_a_handle_does_not_match_a_later_process_of_the_same_pid(sleeper: subprocess.Popen[bytes]) -> None:
    real = ProcessHandle.of(sleeper.pid)
    later = ProcessHandle(real.pid, real.started + 1, real.boot)
    other_boot = ProcessHandle(real.pid, real.started, "another boot")
    for impostor in (later, other_boot):
        assert not impostor.running
        impostor.end()
    assert real.running
    assert abs(real.since - time.time()) < 30


def test_a_zombie_counts_as_ended(
    sleeper: subprocess.Popen[bytes],
) -> None:
    process = ProcessHandle.of(sleeper.pid)
    assert process in processes_with_tag("sleeper")
    os.kill(sleeper.pid, signal.SIGKILL)
    process.end()
    assert not process.running
    assert processes_with_tag("sleeper") == []


def test_a_session_has_its_members_without_a_tag_and_after_its_leader() -> None:
    child = f"subprocess.Popen([sys.executable, '-c', {IDLE!r}])"
    script = f"import subprocess, sys; print({child}.pid, flush=True); {IDLE}"
    leader = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True, env={}
    )
    assert leader.stdout is not None
    member = ProcessHandle.of(int(leader.stdout.readline()))
    leader_handle = ProcessHandle.of(leader.pid)
    assert {process.pid for process in processes_in_session(leader_handle)} == {leader.pid, member.pid}
    leader_handle.end()
    assert [process.pid for process in processes_in_session(leader_handle)] == [member.pid]
    member.end()
    assert processes_in_session(leader_handle) == []


def test_end_sends_sigkill_after_an_ignored_sigterm() -> None:
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('.', flush=True); time.sleep(60)"
    stubborn = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    stubborn.stdout.read(1)
    process = ProcessHandle.of(stubborn.pid)
    process.end(grace=0.3)
    assert not process.running
