"""What a server tells Prometheus: queue, batch, frames and times, each application in a registry of its own."""

from __future__ import annotations

import anyio
from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..batching import Batch
from ..speech import Outcome

__all__ = ["CONTENT_TYPE", "Metrics"]

_FIRST_AUDIO = (0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)  # seconds


class Metrics:
    """The metrics of one application."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("qwen3_tts_requests", "Requests spoken to their end", registry=registry)
        self._frames = Counter("qwen3_tts_frames", "Frames of 80 ms of those requests", registry=registry)
        self._first_audio = Histogram(
            "qwen3_tts_first_audio_seconds",
            "From the start of speaking to the first audio",
            registry=registry,
            buckets=_FIRST_AUDIO,
        )
        self._free = Gauge("qwen3_tts_free_slots", "Requests that could start now", registry=registry)
        self._waiting = Gauge("qwen3_tts_waiting_requests", "Requests in the queue", registry=registry)
        self._speaking = Gauge("qwen3_tts_batch_requests", "Requests in the batch", registry=registry)
        self._blocks = Gauge("qwen3_tts_free_cache_blocks", "Free blocks of the talker's cache", registry=registry)
        self._passes = Gauge("qwen3_tts_batch_passes", "Passes over the weights so far", registry=registry)
        self._made = Gauge("qwen3_tts_batch_frames", "Frames that these passes made", registry=registry)

    def spoken(self, outcome: Outcome) -> None:
        """Counts a finished request."""
        self._requests.inc()
        self._frames.inc(len(outcome.codes))
        self._first_audio.observe(outcome.timings.first_audio)

    def observe(self, slots: anyio.Semaphore, batch: Batch | None) -> None:
        """Takes down the present state."""
        self._free.set(slots.value)
        self._waiting.set(slots.statistics().tasks_waiting)
        if batch is not None:
            self._speaking.set(batch.speaking)
            self._blocks.set(batch.blocks.free)
            self._passes.set(batch.passes)
            self._made.set(batch.frames)

    def text(self) -> bytes:
        """All of them, in Prometheus' text form."""
        return generate_latest(self._registry)
