"""Checks of the Ray cluster and of its job server.

A child process connects to the cluster: a client that gets no answer cannot be stopped otherwise.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import httpx2

from infra.settings import Settings
from jobs.doctor.check import CheckResult, failed, ok, skipped, warning

_CLIENT = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)
nodes = [node for node in ray.nodes() if node["Alive"]]
print("answer " + json.dumps({"nodes": len(nodes), "resources": ray.cluster_resources()}))
"""
_AUTHENTICATE = "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN to the cluster's token."
_SAME_RELEASE = "Install the cluster's release of Ray on this machine."


def check_ray(settings: Settings, seconds: float) -> CheckResult:
    """Check that the configured cluster accepts a connection, and report its nodes."""
    local_version = version("ray")
    address = settings.ray or os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        return ok("ray", f"no address: each job starts a local Ray {local_version}")
    failure = _check_token_file() or _connection_refused(address)
    if failure is not None:
        return failure
    try:
        client = subprocess.run(
            [sys.executable, "-c", _CLIENT, address],
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        )
    except subprocess.TimeoutExpired:
        message = f"{address} accepts connections, but did not answer within {seconds:.0f} s"
        return failed("ray", message, f"With a wrong token Ray does not answer. {_AUTHENTICATE}")
    answer = [line for line in client.stdout.splitlines() if line.startswith("answer ")]
    if not answer:
        return _rejection(address, client.stdout + client.stderr)
    cluster = json.loads(answer[0].removeprefix("answer "))
    cpus, gpus = (int(cluster["resources"].get(name, 0)) for name in ("CPU", "GPU"))
    message = f"Ray {local_version} at {address}: {cluster['nodes']} nodes, {cpus} CPUs, {gpus} GPUs"
    if not cpus:
        return warning("ray", f"{message}: no job can run", "Add workers, or raise the autoscaler's limits.")
    return ok("ray", message)


def check_jobs(settings: Settings) -> CheckResult:
    """Check that the cluster accepts submitted jobs."""
    url = settings.jobs_url or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not url:
        return skipped("jobs", "CLVR_JOBS_URL is not set; only `clvr submit` and `clvr jobs` need it")

    token = _jobs_token(settings)
    context = ssl.create_default_context(cafile=str(settings.jobs_ca) if settings.jobs_ca else None)
    try:
        response = httpx2.get(
            f"{url.rstrip('/')}/api/version",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=5.0,
            verify=context,
            trust_env=False,
        )
    except httpx2.HTTPError as error:
        return failed("jobs", f"{url}: {error}", "Check that the dashboard runs, or correct CLVR_JOBS_URL.")
    if response.status_code in (401, 403):
        message = f"{url} rejects the token ({response.status_code})"
        return failed("jobs", message, f"Set CLVR_JOBS_TOKEN. Or: {_AUTHENTICATE}")
    cluster_version = response.json().get("ray_version", "?") if response.is_success else "?"
    local_version = version("ray")
    if cluster_version != local_version:
        message = f"{url} runs Ray {cluster_version}, this machine has {local_version}"
        return warning("jobs", message, _SAME_RELEASE)
    return ok("jobs", f"{url} accepts jobs, Ray {cluster_version}")


def _jobs_token(settings: Settings) -> str:
    if settings.jobs_token:
        return settings.jobs_token.get_secret_value()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return os.environ.get("RAY_AUTH_TOKEN") or (path.read_text().strip() if path.is_file() else "")


def _check_token_file() -> CheckResult | None:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path and not Path(path).is_file():
        return failed("ray", f"the token file {path} does not exist", _AUTHENTICATE)
    return None


def _connection_refused(address: str) -> CheckResult | None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return None
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except OSError as error:
        message = f"no process listens at {address}: {error.strerror or error}"
        return failed("ray", message, "Correct CLVR_RAY, or start a local cluster: clvr stack up")
    return None


def _rejection(address: str, output: str) -> CheckResult:
    lower = output.lower()
    if "version mismatch" in lower:
        line = next(line for line in output.splitlines() if "ersion mismatch" in line)
        return failed("ray", line.strip()[:200], _SAME_RELEASE)
    if "token" in lower or "unauthenticated" in lower:
        return failed("ray", f"{address} needs a token, which is missing or wrong", _AUTHENTICATE)
    last_line = (output.strip().splitlines() or ["no answer"])[-1]
    return failed(
        "ray", f"no Ray at {address}: {last_line[:160]}", "Start it, or correct --ray and RAY_ADDRESS."
    )
