"""The connection to Ray, and the resources that a job requests from the cluster."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
import typer

from infra.errors import BadInput, RayUnreachable, WorkerLost
from infra.settings import Settings
from jobs.cli.app import app
from jobs.runtime import ray_cluster


def node(cpus: float, gpus: float = 0, *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The nodes of a fake cluster."""
    up: list[dict[str, Any]] = []

    def resources() -> dict[str, float]:
        return {k: sum(n["Resources"].get(k, 0) for n in up if n["Alive"]) for k in ("CPU", "GPU")}

    monkeypatch.setattr(ray, "nodes", lambda: up)
    monkeypatch.setattr(ray, "cluster_resources", resources)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    ray_cluster.connect(Settings())  # which expects no GPUs
    return up


@pytest.mark.parametrize("timeouts", [0, 1, 2])
def test_local_ray_whose_start_timed_out_is_started_once_more(
    timeouts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[str] = []

    def init(address: str, **_: object) -> None:
        starts.append(address)
        if len(starts) <= timeouts:
            raise Exception("The current node timed out during startup.\nMore of it.")  # as Ray does

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", init)
    if timeouts < 2:
        ray_cluster.connect(Settings())
    else:
        with pytest.raises(RayUnreachable, match=r"on this machine: The current node timed out.*startup\.$"):
            ray_cluster.connect(Settings())
    assert starts == ["local"] * min(timeouts + 1, 2)


def test_connect_to_a_missing_cluster_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[str] = []

    def init(address: str, **_: object) -> None:
        starts.append(address)
        raise ConnectionError("connection refused")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RayUnreachable, match=r"no Ray cluster at auto: connection refused") as caught:
        ray_cluster.connect(Settings(ray="auto"))
    assert starts == ["auto"]
    assert caught.value.remedy.startswith("if the cluster asks for a token, set RAY_AUTH_MODE=token")


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_address_where_nothing_listens_or_answers_is_unreachable(
    silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("ray.init tries for minutes"))
    monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 0.3)
    for address, reason in [
        ("127.0.0.1:1", "Connection refused"),
        ("ray://127.0.0.1:1", "Connection refused"),
        ("[::1]:1", "Connection refused|Cannot assign|unsupported"),
        ("no.such.host.invalid:6379", "."),
        ("a..b:1", "."),
        (f"127.0.0.1:{silent}", "no answer within"),
    ]:
        with pytest.raises(RayUnreachable, match=f"no Ray cluster at .*: .*({reason})") as caught:
            ray_cluster.connect(Settings(ray=address))
        assert "token" not in caught.value.remedy


def test_a_server_of_another_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            line, _ = server.accept()
            with line:
                line.recv(100)
                line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(RayUnreachable, match="what listens there is not Ray"):
            ray_cluster.connect(Settings(ray=f"127.0.0.1:{server.getsockname()[1]}"))


def test_a_grpc_server_answers_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    grpc = pytest.importorskip("grpc")
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    joined: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address, **_: joined.append(address))
    ray_cluster.connect(Settings(ray=f"127.0.0.1:{port}"))
    assert joined == [f"127.0.0.1:{port}"]
    server.stop(None)


def test_actor_takes_one_cpu_without_gpus(nodes: list[dict[str, Any]]) -> None:
    nodes.append(node(4))
    assert ray_cluster.actor_resources() == {"num_cpus": 1}


def test_actor_takes_no_more_cpus_than_every_node_with_a_gpu_has(
    nodes: list[dict[str, Any]],
) -> None:
    nodes += [node(64), node(8, 1), node(16, 4), node(8, 8, alive=False)]
    assert ray_cluster.actor_resources() == {"num_gpus": 1, "num_cpus": 3}


def test_actor_requests_a_gpu_that_the_settings_expect_before_a_node_is_up(
    nodes: list[dict[str, Any]],
) -> None:
    nodes.append(node(0))
    assert ray_cluster.num_gpus() == 0
    ray_cluster.connect(Settings.model_validate({"gpus": 4}))
    assert ray_cluster.num_gpus() == 4
    assert ray_cluster.actor_resources() == {"num_gpus": 1, "num_cpus": 1}


def test_a_dead_process_or_node_is_an_error_of_the_cluster_and_an_error_behind_it_is_not_hidden() -> None:
    for death in (
        ray.exceptions.LocalRayletDiedError(),
        ray.exceptions.ActorDiedError(),
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.NodeDiedError("node 7 ended"),
    ):
        wrapped = RuntimeError("ended by Ray Data")
        wrapped.__cause__ = death
        lost = ray_cluster.root_cause(wrapped)
        assert isinstance(lost, WorkerLost)
        assert "\n" not in lost.message
        death.__cause__ = BadInput("the true cause")
        assert ray_cluster.root_cause(wrapped) is death.__cause__
    other = ValueError("no death")
    assert ray_cluster.root_cause(other) is other


def test_a_death_that_no_command_expects_is_no_unexpected_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(*_: object, **__: object) -> None:
        raise ray.exceptions.LocalRayletDiedError

    monkeypatch.setattr("jobs.embed.status.run_status", dies)
    monkeypatch.setattr("jobs.cli.archive.require_runs", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        typer.main.get_command(app)(["status", "r1"])
    assert end.value.code == WorkerLost.exit_code
    assert "unexpected" not in capsys.readouterr().err
