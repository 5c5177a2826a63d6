"""OpenTelemetry traces: a span for the command, its phases, each part, a load and a gate.

The standard variables switch it on: `OTEL_TRACES_EXPORTER` (`otlp` or `console`), or an endpoint in
`OTEL_EXPORTER_OTLP_ENDPOINT`. `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` and the other variables of the
exporter apply. `TRACEPARENT`, as schedulers set it, is the parent of the command. Otherwise nothing is
imported and nothing is sent. Platforms set these variables for all programs, so an exporter that cannot be
used is a warning.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

from infra.logging import bind_context, logger

EXPORTERS = ("otlp", "console", "none")
_EXPORTER = "OTEL_TRACES_EXPORTER"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_MS = 2000

Carrier = Mapping[str, str]
"""The position in a trace, for another process: `traceparent` and `tracestate`."""


@contextmanager
def span(name: str, *, parent: Carrier | None = None, **attributes: str | int) -> Iterator[None]:
    """Record a span around the block, if traces are on; an exception makes its status an error.

    parent: of another process; by default the span around this one. Messages of errors are not recorded:
    they may name crops.
    """
    tracer = _tracer()
    if tracer is None:
        yield
        return
    from opentelemetry import propagate
    from opentelemetry.trace import Status, StatusCode

    context = propagate.extract(parent) if parent else None
    named = {f"clvr.{attribute}": value for attribute, value in attributes.items()}
    with tracer.start_as_current_span(
        name, context, attributes=named, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except BaseException as error:
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def record_span(name: str, started_ns: int, parent: Carrier, **attributes: str | int) -> None:
    """Record a span that ends now, if traces are on. started_ns: nanoseconds since the epoch."""
    if (tracer := _tracer()) is not None:
        from opentelemetry import propagate

        named = {f"clvr.{attribute}": value for attribute, value in attributes.items()}
        context = propagate.extract(parent) if parent else None
        tracer.start_span(name, context, attributes=named, start_time=started_ns).end()


@contextmanager
def command_span(command: str) -> Iterator[None]:
    """Record the span of a command, below `TRACEPARENT`, and put the trace's id into the JSON log lines."""
    given = os.environ.get("TRACEPARENT")
    try:
        with span(f"clvr {command}", parent={"traceparent": given} if given else None):
            if _tracer() is not None:
                from opentelemetry import trace

                context = trace.get_current_span().get_span_context()
                bind_context(trace=trace.format_trace_id(context.trace_id))
            yield
    finally:
        flush()


def carrier() -> Carrier:
    """Return the position in the trace, for another process; {} without traces."""
    position: dict[str, str] = {}
    if _tracer() is not None:
        from opentelemetry import propagate

        propagate.inject(position)
    return position


def flush() -> None:
    """Send what has ended, before the process may be killed. A collector that does not answer costs 2 s."""
    if (provider := _provider()) is not None:
        provider.force_flush(_FLUSH_MS)


def _tracer() -> Any:
    provider = _provider()
    return None if provider is None else provider.get_tracer("clvr")


@cache
def _provider() -> Any:
    exporter = os.environ.get(_EXPORTER, "otlp" if any(map(os.environ.get, _ENDPOINTS)) else "none").lower()
    if exporter == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if exporter not in EXPORTERS:
        logger.warning(f"no traces: {_EXPORTER} is {exporter!r}, and not one of {', '.join(EXPORTERS)}")
        return None
    needed = "opentelemetry.sdk" if exporter == "console" else "opentelemetry.exporter.otlp.proto.http"
    if not _is_installed(needed):
        logger.warning(f"no traces: pip install 'clvr-archive[tracing]', or set {_EXPORTER}=none")
        return None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "clvr"}
    # Our own provider and not the global one, which libraries set too.
    provider = TracerProvider(resource=Resource.create(name))
    if exporter == "console":
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
