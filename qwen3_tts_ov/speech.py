"""What a synthesis gives: chunks while it runs, and the whole with its story at the end."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import audio

StopReason = Literal["eos", "max_frames"]


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds."""

    first_audio: float  # from the request to the first chunk
    total: float
    seconds: dict[str, float]  # by component; the talker's first call, with the prompt, as `prefill`
    calls: dict[str, int]  # infer calls by component


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is known when speech has ended.

    A long text is spoken in pieces with a pause between; `codes` holds the pieces' frames one after another, and
    `stop_reason` is `max_frames` when any piece ran into its limit instead of ending by itself.
    """

    codes: NDArray[np.int64]  # [frames, code groups]
    samples: int
    sample_rate: int  # Hz
    stop_reason: StopReason
    seed: int  # gives the same codes again
    timings: Timings

    @property
    def duration(self) -> float:
        """Of the audio, in seconds."""
        return self.samples / self.sample_rate

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for one second of audio; under 1 is faster than speech."""
        return self.timings.total / self.duration if self.samples else float("inf")


@dataclass(frozen=True, eq=False)
class Speech(Outcome):
    """Finished speech: `waveform` is float32 [samples] in [-1, 1]."""

    waveform: NDArray[np.float32]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes 16-bit WAV, FLAC or raw PCM by the ending of `path`. Raises AudioError."""
        audio.write(path, self.waveform, self.sample_rate)


class SpeechStream(Iterator[NDArray[np.float32]]):
    """Chunks of speech as they are made, float32 [samples]. The waveform is not kept: memory stays bounded.

    A stream belongs to one thread. Closing it, leaving its `with` block or dropping it ends the generation.
    """

    def __init__(self, chunks: Generator[NDArray[np.float32], None, Outcome], sample_rate: int) -> None:
        self.sample_rate = sample_rate
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

    def close(self) -> None:
        """Ends the generation early; does nothing when it has ended."""
        self._chunks.close()

    @property
    def outcome(self) -> Outcome:
        """What is known at the end. Raises RuntimeError before the last chunk was taken."""
        if self._outcome is None:
            raise RuntimeError("the stream has not come to its end")
        return self._outcome
