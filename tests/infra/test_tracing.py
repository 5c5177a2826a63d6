"""OpenTelemetry traces: off by default, on by the standard variables, and over processes."""

import json
import os
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra import tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def provider(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    tracing._provider.cache_clear()
    yield
    tracing._provider.cache_clear()


def spans_of(text: str) -> list[dict[str, Any]]:
    """The spans that the console exporter printed, one JSON object after the other."""
    spans, decoder = [], json.JSONDecoder()
    while (start := text.find("{")) >= 0:
        span, end = decoder.raw_decode(text[start:])
        spans.append(span)
        text = text[start + end :]
    return spans


def test_without_variables_nothing_is_recorded() -> None:
    with tracing.command_span("embed"), tracing.span("part", part=1):
        assert tracing.carrier() == {}


def test_spans_of_a_command_and_of_another_process_are_one_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("TRACEPARENT", PARENT)
    with pytest.raises(ValueError, match="secret"), tracing.command_span("embed"), tracing.span("embedding"):
        elsewhere = tracing.carrier()
        raise ValueError("secret")
    started = time.time_ns() - 10**9
    tracing.record_span("part", started, elsewhere, run="r1", part=3)
    errors = capsys.readouterr().err
    embedding, command, part = spans_of(errors)
    assert [span["name"] for span in (embedding, command, part)] == ["embedding", "clvr embed", "part"]
    assert {span["context"]["trace_id"][2:] for span in (embedding, command, part)} == {PARENT.split("-")[1]}
    assert command["parent_id"][2:] == PARENT.split("-")[2]
    assert embedding["parent_id"] == command["context"]["span_id"]
    assert part["parent_id"] == embedding["context"]["span_id"]
    times = [datetime.fromisoformat(part[name]) for name in ("start_time", "end_time")]
    assert timedelta(seconds=1) <= times[1] - times[0] < timedelta(seconds=5)
    assert part["attributes"] == {"clvr.run": "r1", "clvr.part": 3}
    assert embedding["status"] == {"status_code": "ERROR", "description": "ValueError"}
    assert "secret" not in errors


@pytest.mark.parametrize("exporter", ["zipkin", "otlp"])
def test_an_exporter_that_cannot_be_used_is_a_warning(
    exporter: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    monkeypatch.setattr(tracing, "_is_installed", lambda module: False)
    with tracing.command_span("embed"), tracing.span("part"):
        assert tracing.carrier() == {}
    assert capsys.readouterr().err.count("no traces: ") == 1


def test_a_command_has_a_span(tmp_path: Path) -> None:
    variables = {"OTEL_TRACES_EXPORTER": "console", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "jobs", "runs", "--json", "--runs", str(tmp_path)]
    options: Any = {"capture_output": True, "text": True, "timeout": 60, "check": True}
    done = subprocess.run(command, env=os.environ | variables, **options)
    assert [span["name"] for span in spans_of(done.stderr)] == ["clvr runs"]
