"""What a job asks of a cluster: what one node can give, also where no node is up yet."""

from typing import Any

import pytest
import ray

from infra.errors import RayUnreachable
from infra.settings import Settings
from jobs.embed.job import actor_resources
from jobs.runtime import ray_cluster


def node(cpus: float, gpus: float = 0, *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The nodes of a stand-in for a cluster with GPUs: none can be had here."""
    up: list[dict[str, Any]] = []

    def resources() -> dict[str, float]:
        return {k: sum(n["Resources"].get(k, 0) for n in up if n["Alive"]) for k in ("CPU", "GPU")}

    monkeypatch.setattr(ray, "nodes", lambda: up)
    monkeypatch.setattr(ray, "cluster_resources", resources)
    monkeypatch.setattr(ray_cluster, "_awaited_gpus", 0)
    return up


@pytest.mark.parametrize("misses", [0, 1, 2])
def test_a_local_ray_that_misses_its_time_is_started_once_more(
    misses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[str] = []

    def init(address: str, **_: object) -> None:
        starts.append(address)
        if len(starts) <= misses:
            raise Exception("The current node timed out during startup.\nMore of it.")  # as Ray does

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", init)
    if misses < 2:
        ray_cluster.connect(Settings())
    else:
        with pytest.raises(RayUnreachable, match=r"on this machine: The current node timed out.*startup\.$"):
            ray_cluster.connect(Settings())
    assert starts == ["local"] * min(misses + 1, 2)


def test_a_cluster_that_is_not_there_is_not_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[str] = []

    def init(address: str, **_: object) -> None:
        starts.append(address)
        raise ConnectionError("nobody listens")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RayUnreachable, match=r"no Ray cluster at ray\.example:6379: nobody listens"):
        ray_cluster.connect(Settings(ray="ray.example:6379"))
    assert starts == ["ray.example:6379"]


def test_without_gpus_an_actor_takes_one_cpu(nodes: list[dict[str, Any]]) -> None:
    nodes.append(node(4))
    assert actor_resources() == {"num_cpus": 1}


def test_an_actor_fits_on_the_node_of_its_gpu_however_many_cpus_are_elsewhere(
    nodes: list[dict[str, Any]],
) -> None:
    nodes += [node(64), node(8, 1), node(16, 4), node(8, 8, alive=False)]
    assert actor_resources() == {"num_gpus": 1, "num_cpus": 3}


def test_a_cluster_that_is_asleep_is_asked_for_the_gpus_that_the_settings_promise(
    nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.append(node(0))
    assert ray_cluster.gpus() == 0
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    ray_cluster.connect(Settings.model_validate({"gpus": 4}))
    assert ray_cluster.gpus() == 4
    assert actor_resources() == {"num_gpus": 1, "num_cpus": 1}
