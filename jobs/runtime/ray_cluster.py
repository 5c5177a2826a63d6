"""The connection to Ray: the cluster that the settings name, or a local one for this job."""

import logging
import os
from collections.abc import Callable
from typing import Any

import ray

from infra.errors import ClvrError, RayUnreachable
from infra.settings import Settings

_awaited_gpus = 0  # see Settings.gpus


def connect(settings: Settings) -> None:
    """Join the cluster at `settings.ray`, or start a local Ray; do nothing where Ray is already up.

    A local Ray that did not come up is started once more: on a busy machine a part of it can miss its time.
    Raises RayUnreachable with the address in the message.
    """
    global _awaited_gpus
    _awaited_gpus = settings.gpus or 0
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not ray.is_initialized():
        address = settings.ray or os.environ.get("RAY_ADDRESS")
        for may_start_again in (False,) if address else (True, False):
            try:
                ray.init(
                    address=address or "local",
                    include_dashboard=None if address else False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
                break
            except Exception as error:  # a start that took too long is a bare Exception of Ray's
                if not may_start_again:
                    raise _unreachable(address, str(error).splitlines()[0]) from error
                ray.shutdown()
    _quiet_ray_data()


def _unreachable(address: str | None, reason: str) -> RayUnreachable:
    if address:
        return RayUnreachable(
            f"no Ray cluster at {address}: {reason}",
            remedy="check --ray and RAY_ADDRESS, or leave both out to start a local Ray",
        )
    return RayUnreachable(
        f"Ray did not start on this machine: {reason}",
        remedy="give the same command again when the machine is less busy, or join a cluster by --ray",
    )


def cores() -> int:
    """Logical CPUs of the whole cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def nodes() -> int:
    """Nodes of the cluster that are alive."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def gpus() -> int:
    """GPUs of the whole cluster: those that are up, or those that the settings say will come."""
    return max(int(ray.cluster_resources().get("GPU", 0)), _awaited_gpus)


def cpus_for_each_gpu() -> int:
    """Logical CPUs that every GPU finds on its own node; 1 where no node with a GPU is up yet."""
    shares = [
        int(node["Resources"].get("CPU", 0) // node["Resources"]["GPU"])
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0)
    ]
    return max(1, min(shares, default=1))


def root_cause(error: BaseException) -> BaseException:
    """The ClvrError inside what Ray wrapped around it, else the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        # Ray's wrapper is a ClvrError as well, but one whose text is a remote traceback.
        if isinstance(seen, ClvrError) and not isinstance(seen, ray.exceptions.RayTaskError):
            return seen
        failures = getattr(seen, "worker_failures", None)
        inner = next(iter(failures.values()), None) if failures else getattr(seen, "cause", None)
        seen = inner or seen.__cause__ or seen.__context__
    return error


def _quiet_ray_data() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def run_as_ray_task(work: Callable[..., Any], *arguments: Any) -> Any:
    """Do what needs memory by the crop in a process that ends with it: the driver stays small."""
    try:
        return ray.get(ray.remote(num_cpus=0, max_calls=1)(work).remote(*arguments))
    except Exception as error:
        raise root_cause(error) from error
