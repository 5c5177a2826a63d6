"""The Ray cluster of a job: connecting, its resources, and work in separate processes."""

import logging
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import ray

from infra.errors import ClvrError, RayUnreachable, WorkerLost
from infra.settings import Settings

CONNECT_SECONDS = 10.0
"""Until a cluster accepts a connection, and once more until it answers as gRPC does."""

MAX_AT_ONCE = 32
"""Items and results of `map_in_ray_tasks` that are in memory, of up to some 50 MB each."""

END_SECONDS = 60.0
"""Until the tasks of `map_in_ray_tasks` that are left behind an error have ended."""

_ADDRESS = re.compile(r"(?:ray://)?\[?(?P<host>[^\[\]/]+?)\]?:(?P<port>\d{1,5})/?")
# HTTP/2, which gRPC speaks: a client starts with these bytes and an empty frame of settings, and the server
# sends its own settings.
_HTTP2_START = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS = 4

_DEATHS = (
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
)

_expected_gpus = 0  # see Settings.gpus


def connect(settings: Settings) -> None:
    """Join the cluster at `settings.ray`, or start a local Ray; do nothing if Ray is already up.

    A local Ray that fails to start is started a second time: on a busy machine its start can time out.
    Raises RayUnreachable with the address in the message, and within 2 x `CONNECT_SECONDS`
    where nothing answers.
    """
    global _expected_gpus
    _expected_gpus = settings.gpus or 0
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not ray.is_initialized():
        address = settings.ray or os.environ.get("RAY_ADDRESS")
        if address:
            _require_answer(address)
        for can_retry in (False,) if address else (True, False):
            try:
                ray.init(
                    address=address or "local",
                    include_dashboard=None if address else False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
                break
            except Exception as error:  # Ray raises a bare Exception for a start that timed out
                if not can_retry:
                    raise _unreachable(address, str(error).splitlines()[0], answers=True) from error
                ray.shutdown()
    _quiet_ray_data()


def _require_answer(address: str) -> None:
    """Check that something that speaks gRPC listens: `ray.init` itself would try for minutes.

    Raises RayUnreachable. Addresses without a port, such as auto, are left to Ray.
    """
    match = _ADDRESS.fullmatch(address)
    if not match or int(match["port"]) > 65_535:
        return
    try:
        with socket.create_connection((match["host"], int(match["port"])), timeout=CONNECT_SECONDS) as line:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return  # only Ray has the certificates
            line.sendall(_HTTP2_START)
            answer = line.recv(9)
    except TimeoutError as error:
        raise _unreachable(address, f"no answer within {CONNECT_SECONDS:.0f} s") from error
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _unreachable(address, reason) from error
    if len(answer) < 4 or answer[3] != _SETTINGS:
        raise _unreachable(address, "what listens there is not Ray")


def _unreachable(address: str | None, reason: str, *, answers: bool = False) -> RayUnreachable:
    """Return the error; a cluster that answers may want a token, which Ray's own message does not say."""
    if address:
        remedy = "check --ray and RAY_ADDRESS, or leave both out to start a local Ray"
        if answers:
            remedy = (
                f"if the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH; {remedy}"
            )
        return RayUnreachable(f"no Ray cluster at {address}: {reason}", remedy=remedy)
    return RayUnreachable(
        f"Ray did not start on this machine: {reason}",
        remedy="repeat the command when the machine is less busy, or join a cluster with --ray",
    )


def _quiet_ray_data() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def num_cpus() -> int:
    """Logical CPUs of the whole cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def num_nodes() -> int:
    """Nodes of the cluster that are alive."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def num_gpus() -> int:
    """GPUs of the whole cluster: those that are up, or those that the settings expect to start."""
    return max(int(ray.cluster_resources().get("GPU", 0)), _expected_gpus)


def cpus_per_gpu() -> int:
    """Logical CPUs that each GPU has on its node; 1 where no node with a GPU is up yet."""
    shares = [
        int(node["Resources"].get("CPU", 0) // node["Resources"]["GPU"])
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0)
    ]
    return max(1, min(shares, default=1))


def actor_resources() -> dict[str, float]:
    """Return the Ray resources of one model actor: a GPU and its share of CPUs, or one CPU."""
    if not num_gpus():
        return {"num_cpus": 1}
    return {"num_gpus": 1, "num_cpus": max(1, cpus_per_gpu() - 1)}


def run_as_ray_task(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process that ends afterwards, so that its memory does not stay in the driver."""
    try:
        return ray.get(ray.remote(num_cpus=0, max_calls=1)(function).remote(*arguments))
    except Exception as error:
        raise root_cause(error) from error


def map_in_ray_tasks(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Yield the result of a function for each item, in order, from tasks of one CPU each.

    So many items and results exist at any time that every CPU is busy, and no more than MAX_AT_ONCE.
    After an error, tasks that were submitted end before it is raised, so none works on what the caller cleans
    up. They are not cancelled: in Ray 2.60, a cancellation that meets the end of its task aborts the driver.
    """
    call = ray.remote(num_cpus=1)(_call)
    shared = ray.put(function)
    at_once = min(2 * num_cpus(), MAX_AT_ONCE)
    pending: deque[Any] = deque()
    remaining = iter(items)
    try:
        while True:
            for item in islice(remaining, at_once - len(pending)):
                pending.append(call.remote(shared, item))
            if not pending:
                return
            yield ray.get(pending.popleft())
    except Exception as error:
        _wait_for_end(pending)
        raise root_cause(error) from error
    except GeneratorExit:  # the caller met an error
        _wait_for_end(pending)
        raise


def _wait_for_end(references: deque[Any]) -> None:
    if references:
        with suppress(Exception):  # Ray itself may have ended
            ray.wait(list(references), num_returns=len(references), timeout=END_SECONDS, fetch_local=False)


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def root_cause(error: BaseException) -> BaseException:
    """Return the ClvrError that Ray wrapped, WorkerLost for a dead process or node, or the error itself."""
    current: BaseException | None = error
    lost: BaseException | None = None
    while current is not None:
        # Ray's wrapper derives from the wrapped class, but its text is a remote traceback.
        if isinstance(current, ClvrError) and not isinstance(current, ray.exceptions.RayTaskError):
            return current
        if isinstance(current, _DEATHS):
            lost = current
        failures = getattr(current, "worker_failures", None)
        inner = next(iter(failures.values()), None) if failures else getattr(current, "cause", None)
        current = inner or current.__cause__ or current.__context__
    if lost is None:
        return error
    return WorkerLost(
        f"a process or a node of the Ray cluster ended: {str(lost).splitlines()[0]}",
        remedy="run the same command again; if it recurs, check the memory of the nodes",
    )
