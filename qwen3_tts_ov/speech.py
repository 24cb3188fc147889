"""The results of a synthesis: a stream of chunks, and finished speech with its codes and timings."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import audio

StopReason = Literal["eos", "max_frames"]


@dataclass(frozen=True)
class Timings:
    """How long it took, in seconds."""

    first_audio: float  # from the request to the first chunk
    total: float
    seconds: dict[str, float]  # by component; the talker's first call, with the prompt, as `prefill`
    calls: dict[str, int]  # infer calls by component


@dataclass(frozen=True, eq=False)
class Outcome:
    """The facts about finished speech.

    A long text is spoken in pieces with pauses between; `codes` holds the frames of all pieces in order, and
    `stop_reason` is `max_frames` if any piece reached its limit before its end token.
    """

    codes: NDArray[np.int64]  # [frames, code groups]
    samples: int
    sample_rate: int  # Hz
    stop_reason: StopReason
    seed: int  # reproduces the codes
    timings: Timings

    @property
    def duration(self) -> float:
        """The length of the audio, in seconds."""
        return self.samples / self.sample_rate

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio; below 1 is faster than real time."""
        return self.timings.total / self.duration if self.samples else float("inf")


@dataclass(frozen=True, eq=False)
class Speech(Outcome):
    """Finished speech: `waveform` is float32 [samples] in [-1, 1]."""

    waveform: NDArray[np.float32]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes 16-bit WAV, FLAC or raw PCM by the ending of `path`. Raises AudioError."""
        audio.write(path, self.waveform, self.sample_rate)


class SpeechStream(Iterator[NDArray[np.float32]]):
    """Chunks of speech as they are generated, float32 [samples]. They are not kept, so memory stays bounded.

    A stream belongs to one thread, except for `cancel`. Closing it, leaving its `with` block or dropping it stops the
    generation.
    """

    def __init__(
        self, chunks: Generator[NDArray[np.float32], None, Outcome], sample_rate: int, cancelled: threading.Event
    ) -> None:
        self.sample_rate = sample_rate
        self._cancelled = cancelled
        self._chunks = chunks
        self._outcome: Outcome | None = None

    def __next__(self) -> NDArray[np.float32]:
        try:
            return next(self._chunks)
        except StopIteration as stop:
            self._outcome = self._outcome or stop.value
            raise

    def __enter__(self) -> SpeechStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cancel(self) -> None:
        """Stops the generation at its next frame, from any thread; a reader that waits then gets Cancelled."""
        self._cancelled.set()

    def close(self) -> None:
        """Stops the generation; does nothing if it has ended."""
        self._cancelled.set()
        self._chunks.close()

    @property
    def outcome(self) -> Outcome:
        """The facts about the finished speech. Raises RuntimeError until the stream has been read to its end."""
        if self._outcome is None:
            raise RuntimeError("the stream has not been read to its end")
        return self._outcome
