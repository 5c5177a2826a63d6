"""`clvr serve --replicas`: access control in every replica, and no application left after the end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from index.generations.load import load_runs
from index.generations.promotion import promote
from index.milvus.client import connect
from index.runs.run import Run
from infra.errors import BadSetting
from infra.servers import MilvusServer
from infra.store import open_store
from jobs.serve.request import ServeRequest
from jobs.serve.server import serve_page

pytestmark = pytest.mark.integration

TOKEN = "a-token-that-is-long-enough"
CLVR = [sys.executable, "-c", "from jobs.cli.app import main; main()"]


def fetch_json(url: str, token: str | None = None) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None


def test_replicas_with_a_milvus_lite_file_are_refused(searchable: Any) -> None:
    with pytest.raises(BadSetting, match="only one process"):
        serve_page(ServeRequest(replicas=2), searchable.settings)


@pytest.mark.slow
def test_two_replicas_serve_with_one_token(searchable: Any, milvus_server: MilvusServer) -> None:
    runs = open_store(searchable.settings.runs)
    token = milvus_server.token
    with connect(milvus_server.uri, token=token) as milvus:
        run = Run.open(runs, searchable.run_id)
        promote(milvus, runs, load_runs(milvus, runs, [run], alias="pages").name, force="a test")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "CLVR_RUNS": searchable.settings.runs,
        "CLVR_MILVUS": milvus_server.uri,
        "CLVR_ALIAS": "pages",
        "CLVR_SERVE_TOKEN": TOKEN,
        **({"CLVR_MILVUS_TOKEN": token} if token else {}),
    }
    served = subprocess.Popen(
        [*CLVR, "serve", "--replicas", "2", "--port", str(port)],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert served.stderr is not None
        deadline = time.monotonic() + 240
        while "The page:" not in (line := served.stderr.readline()):
            assert line, "it ended before it served"
            assert time.monotonic() < deadline
        url = f"http://127.0.0.1:{port}/api/about"
        assert fetch_json(url)[0] == 401
        # Requests go to either replica; both know the token, and hold the same generation.
        answers = [fetch_json(url, TOKEN) for _ in range(8)]
        assert {status for status, _ in answers} == {200}
        assert len({about["generation"] for _, about in answers}) == 1
    finally:
        served.send_signal(signal.SIGTERM)
        served.communicate(timeout=60)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
