"""What the server counts, for Prometheus. Nothing of photos or words is in it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from lexiseg.apps.server.batching import Pass

__all__ = ["CONTENT_TYPE", "Metrics"]

_SECONDS = (0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Metrics:
    """A registry of its own, so that several servers may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "lexiseg_requests", "Requests by address and status", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "lexiseg_request_seconds", "Seconds to an answer", ("path",), buckets=_SECONDS, registry=self.registry
        )
        self.stage_seconds = Histogram(
            "lexiseg_stage_seconds",
            "Seconds a request spent in: read, decode, words, wait_and_segment, answer",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_photos = Histogram(
            "lexiseg_batch_photos", "Photos in one pass", buckets=(1, 2, 4, 8, 16, 32), registry=self.registry
        )
        self.pass_seconds = Histogram(
            "lexiseg_pass_seconds", "Seconds of one pass", buckets=_SECONDS, registry=self.registry
        )
        self.places_taken = Gauge("lexiseg_places_taken", "Requests in the house", registry=self.registry)
        self.waiting = Gauge("lexiseg_waiting", "Photos that no worker has taken yet", registry=self.registry)

    def count_waiting(self, count: Callable[[], int]) -> None:
        """Where the number of waiting photos comes from."""
        self.waiting.set_function(count)

    def passed(self, done: Pass) -> None:
        """A worker has finished a pass."""
        self.batch_photos.observe(done.photos)
        self.pass_seconds.observe(done.seconds)

    def text(self) -> bytes:
        """For /metrics."""
        return generate_latest(self.registry)
