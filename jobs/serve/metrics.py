"""Metrics of the page in the format of Prometheus, and its access log."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from infra.logging import logger

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class PageMetrics:
    """The metrics of one server; a registry of its own, because a process may have several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "clvr_page_requests_total",
            "Requests by route, method and status",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "clvr_page_request_seconds",
            "Seconds from the complete headers to the end of the response",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.active = Gauge("clvr_page_active_requests", "Requests under way", registry=self.registry)
        self.searches = Counter(
            "clvr_page_searches_total", "Searches by outcome", ("outcome",), registry=self.registry
        )
        self.stage_seconds = Histogram(
            "clvr_page_search_seconds",
            "Seconds of a search: embedding of the probe, and the index",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.generation = Gauge(
            "clvr_page_generation", "The generation that is searched", ("name",), registry=self.registry
        )

    def text(self, generation: str) -> bytes:
        """Return all metrics."""
        self.generation.clear()
        self.generation.labels(generation).set(1)
        return generate_latest(self.registry)


def with_metrics(app: App, metrics: PageMetrics, *, access_log: bool) -> App:
    """Wrap an application: count and time its requests, and log each with its user. No query is logged."""

    async def serve(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        status, sent, started = 0, 0, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            sent += len(message.get("body", b""))
            await send(message)

        metrics.active.inc()
        try:
            await app(scope, receive, noted)
        finally:
            metrics.active.dec()
            seconds = time.perf_counter() - started
            # A path that no route has is not a label: there may be any number of them.
            route = getattr(scope.get("route"), "path", "other")
            metrics.requests.labels(route, scope["method"], status).inc()
            metrics.seconds.labels(route).observe(seconds)
            if access_log:
                user = getattr(scope.get("clvr.user"), "name", "-")
                fields = {
                    "user": user,
                    "address": (scope.get("client") or ("-",))[0],
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "milliseconds": round(1000 * seconds, 1),
                    "bytes": sent,
                }
                text = f"{user} {scope['method']} {scope['path']!r} {status} {1000 * seconds:.0f} ms"
                logger.info(text, extra=fields)

    return serve
