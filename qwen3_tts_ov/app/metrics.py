"""What a server tells Prometheus: queue, batches, frames and times, each application in a registry of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..batching import Batch
from ..speech import Outcome

__all__ = ["CONTENT_TYPE", "Metrics"]

_FIRST_AUDIO = (0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)  # seconds


class Metrics:
    """The metrics of one application; those of a bundle are labelled with its name."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        each: dict[str, Any] = {"labelnames": ["model"], "namespace": "qwen3_tts", "registry": self._registry}
        self._requests = Counter("requests", "Requests spoken to their end", **each)
        self._frames = Counter("frames", "Frames of 80 ms of those requests", **each)
        self._first_audio = Histogram(
            "first_audio_seconds", "From the start of speaking to the first audio", buckets=_FIRST_AUDIO, **each
        )
        self._speaking = Gauge("batch_requests", "Requests in the batch", **each)
        self._blocks = Gauge("free_cache_blocks", "Free blocks of the talker's cache", **each)
        self._passes = Gauge("batch_passes", "Passes over the weights so far", **each)
        self._made = Gauge("batch_frames", "Frames that these passes made", **each)
        whole: dict[str, Any] = {"namespace": "qwen3_tts", "registry": self._registry}
        self._free = Gauge("free_slots", "Requests that could start now", **whole)
        self._waiting = Gauge("waiting_requests", "Requests in the queue", **whole)

    def spoken(self, model: str, outcome: Outcome) -> None:
        """Counts a finished request."""
        self._requests.labels(model).inc()
        self._frames.labels(model).inc(len(outcome.codes))
        self._first_audio.labels(model).observe(outcome.timings.first_audio)

    def observe(self, slots: anyio.Semaphore, batches: Mapping[str, Batch]) -> None:
        """Takes down the present state."""
        self._free.set(slots.value)
        self._waiting.set(slots.statistics().tasks_waiting)
        for model, batch in batches.items():
            self._speaking.labels(model).set(batch.speaking)
            self._blocks.labels(model).set(batch.blocks.free)
            self._passes.labels(model).set(batch.passes)
            self._made.labels(model).set(batch.frames)

    def text(self) -> bytes:
        """All of them, in Prometheus' text form."""
        return generate_latest(self._registry)
