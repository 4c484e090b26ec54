"""Counts HTTP requests by route, method and status."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["HttpMetrics"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


class HttpMetrics:
    """Requests of the HTTP API.

    Args:
        registry: that they are shown by.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("route", "method")
        self._requests = Counter(
            "preread_http_requests", "HTTP requests by route and status", (*labels, "status"), registry=registry
        )
        self._seconds = Histogram(
            "preread_http_request_duration_seconds",
            "From the request to the end of the response, in seconds",
            labels,
            buckets=SECONDS,
            registry=registry,
        )
        self.in_progress = Gauge("preread_http_requests_in_progress", "HTTP requests not answered", registry=registry)

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            route: the path with the names of its parameters, never their values.
            method: as the client sent it; those that HTTP does not know count as one.
            status: of the response.
            seconds: that it took.
        """
        known = method if method in METHODS else "other"
        self._requests.labels(route, known, str(status)).inc()
        self._seconds.labels(route, known).observe(seconds)
