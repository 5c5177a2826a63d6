"""What `clvr doctor` asks of Ray, in a process of its own: a client without an answer cannot be stopped."""

import json
import os
import socket
import ssl
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from infra.checks import Finding, broken, ok, skipped, warning
from infra.settings import Settings

_QUESTION = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)
nodes = [node for node in ray.nodes() if node["Alive"]]
print("answer " + json.dumps({"nodes": len(nodes), "resources": ray.cluster_resources()}))
"""
_ENTRY = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) to the cluster's token"


def check_ray(settings: Settings, seconds: float) -> Finding:
    """Whether the cluster that the settings name lets us in, and what it has."""
    ours = version("ray")
    address = settings.ray or os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        return ok("ray", f"no address: each job starts a local Ray {ours}")
    fault = _token_fault() or _nobody_there(address)
    if fault is not None:
        return fault
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _QUESTION, address],
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        )
    except subprocess.TimeoutExpired:
        says = f"{address} listens, but has not let us in within {seconds:.0f} s"
        return broken("ray", says, f"if it is up: {_ENTRY}")
    answer = [line for line in asked.stdout.splitlines() if line.startswith("answer ")]
    if not answer:
        return _refusal(address, asked.stdout + asked.stderr)
    told = json.loads(answer[0].removeprefix("answer "))
    cpus, gpus = (int(told["resources"].get(kind, 0)) for kind in ("CPU", "GPU"))
    has = f"Ray {ours} at {address}: {told['nodes']} nodes, {cpus} CPUs, {gpus} GPUs"
    if not cpus:
        return warning("ray", f"{has}: no job can run", "add workers, or raise the autoscaler's bounds")
    return ok("ray", has)


def check_jobs(settings: Settings) -> Finding:
    """Whether the cluster takes submitted jobs from us."""
    url = settings.jobs_url or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not url:
        return skipped("jobs", "not named: CLVR_JOBS_URL; only `clvr submit` needs it")
    import httpx2

    token = _jobs_token(settings)
    trust = ssl.create_default_context(cafile=str(settings.jobs_ca) if settings.jobs_ca else None)
    try:
        reply = httpx2.get(
            f"{url.rstrip('/')}/api/version",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=5.0,
            verify=trust,
            trust_env=False,
        )
    except httpx2.HTTPError as error:
        return broken("jobs", f"{url}: {error}", "see whether the dashboard is up, or correct CLVR_JOBS_URL")
    if reply.status_code in (401, 403):
        return broken("jobs", f"{url} refuses us ({reply.status_code})", "set CLVR_JOBS_TOKEN, or " + _ENTRY)
    theirs, ours = reply.json().get("ray_version", "?") if reply.is_success else "?", version("ray")
    if theirs != ours:
        return warning(
            "jobs", f"{url} runs Ray {theirs}, we have {ours}", "install the release that the cluster runs"
        )
    return ok("jobs", f"{url} takes jobs, Ray {theirs}")


def _jobs_token(settings: Settings) -> str:
    if settings.jobs_token:
        return settings.jobs_token.get_secret_value()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return os.environ.get("RAY_AUTH_TOKEN") or (path.read_text().strip() if path.is_file() else "")


def _token_fault() -> Finding | None:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path and not Path(path).is_file():
        return broken("ray", f"the token file {path} is not there", _ENTRY)
    return None


def _nobody_there(address: str) -> Finding | None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return None
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except OSError as error:
        says = f"nobody listens at {address}: {error.strerror or error}"
        return broken("ray", says, "start it (`clvr stack up` for one of your own), or correct CLVR_RAY")
    return None


def _refusal(address: str, words: str) -> Finding:
    lower = words.lower()
    if "version mismatch" in lower:
        line = next(line for line in words.splitlines() if "ersion mismatch" in line)
        return broken("ray", line.strip()[:200], "install the release on this machine that the cluster runs")
    if "token" in lower or "unauthenticated" in lower:
        return broken("ray", f"{address} wants a token, and ours is missing or wrong", _ENTRY)
    last = (words.strip().splitlines() or ["no answer"])[-1]
    return broken("ray", f"no Ray at {address}: {last[:160]}", "start it, or correct --ray and RAY_ADDRESS")
