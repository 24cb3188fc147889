"""Speech as bytes for a network, at any speed: each chunk is encoded as it arrives, no byte is overwritten later."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..audio import pcm16

if TYPE_CHECKING:
    import av

    from ..speech import SpeechStream


@dataclass(frozen=True)
class _Format:
    media_type: str
    container: str | None = None  # libsndfile's, or ADTS; None is plain 16-bit PCM
    subtype: str = "PCM_16"


FORMATS = {
    "mp3": _Format("audio/mpeg", "MP3", "MPEG_LAYER_III"),
    "opus": _Format("audio/ogg", "OGG", "OPUS"),
    "aac": _Format("audio/aac", "ADTS"),
    "flac": _Format("audio/flac", "FLAC"),
    "wav": _Format("audio/wav"),
    "pcm": _Format("audio/pcm"),
}


def encoded(stream: SpeechStream, form: str, speed: float) -> Iterator[bytes]:
    """Speech in a format, one of FORMATS, at a speed; joined a file. Pieces may be empty."""
    encoder = Encoder(form, stream.sample_rate)
    tempo = None if speed == 1 else Tempo(speed, stream.sample_rate)
    for chunk in stream:
        yield encoder.encode(tempo(chunk) if tempo else chunk)
    yield (encoder.encode(tempo.finish()) if tempo else b"") + encoder.finish()


class Encoder:
    """Encodes the chunks of one utterance in the format `name`, one of FORMATS; the pieces joined are a file.

    Headers leave the length open, as it is not known when they are sent.
    """

    def __init__(self, name: str, sample_rate: int) -> None:
        chosen = FORMATS[name]
        self._sink = _Sink(skip_first=name == "mp3")
        self._file: Any = None
        if name == "wav":
            self._sink.write(_wav_header(sample_rate))
        if chosen.container == "ADTS":
            self._file = _Aac(self._sink, sample_rate)
        if chosen.container in (None, "ADTS"):
            return
        import soundfile

        # Only at a constant bit rate can a decoder tell its position in an MP3 stream.
        rate = {"bitrate_mode": "CONSTANT", "compression_level": 0.5} if name == "mp3" else {}
        self._file = soundfile.SoundFile(
            self._sink, "w", sample_rate, 1, chosen.subtype, format=chosen.container, **rate
        )

    def encode(self, waveform: NDArray[np.float32]) -> bytes:
        """The bytes that are ready after float32 [samples]; those of compressed formats lag behind."""
        if self._file is None:
            self._sink.write(pcm16(waveform))
        elif len(waveform):  # FFmpeg takes no empty frame
            self._file.write(np.clip(waveform, -1, 1))
        return self._sink.take()

    def finish(self) -> bytes:
        """The bytes that were held back. Nothing can be encoded after this."""
        if self._file is not None:
            self._file.close()
        return self._sink.take()


class Tempo:
    """Speech at another `speed` with its pitch kept, chunk by chunk: FFmpeg's atempo, through PyAV."""

    def __init__(self, speed: float, sample_rate: int) -> None:
        import av

        self._rate, self._graph = sample_rate, av.filter.Graph()
        steps = max(1, math.ceil(abs(math.log2(speed))))  # beyond a factor of 2 the filter skips samples
        source = self._graph.add_abuffer(
            sample_rate=sample_rate, format="flt", layout="mono", time_base=Fraction(1, sample_rate)
        )
        filters = [self._graph.add("atempo", str(speed ** (1 / steps))) for _ in range(steps)]
        self._graph.link_nodes(source, *filters, self._graph.add("abuffersink")).configure()

    def __call__(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """The samples that are ready after float32 [samples]; some are held back."""
        self._graph.push(_frame(waveform, "flt", self._rate))
        return self._pull()

    def finish(self) -> NDArray[np.float32]:
        """The samples that were held back."""
        self._graph.push(None)
        return self._pull()

    def _pull(self) -> NDArray[np.float32]:
        import av

        ready = [np.empty(0, np.float32)]
        while True:
            try:
                ready.append(self._graph.pull().to_ndarray()[0])
            except (av.BlockingIOError, av.EOFError):
                return np.concatenate(ready)


class _Aac:
    """AAC in ADTS frames, which need no header."""

    def __init__(self, sink: _Sink, sample_rate: int) -> None:
        import av

        self._rate, self._container = sample_rate, av.open(sink, "w", format="adts")
        self._stream = self._container.add_stream("aac", rate=sample_rate, layout="mono")

    def write(self, waveform: NDArray[np.float32]) -> None:
        self._container.mux(self._stream.encode(_frame(waveform, "fltp", self._rate)))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()


def _frame(waveform: NDArray[np.float32], form: str, sample_rate: int) -> av.AudioFrame:
    import av

    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None]), format=form, layout="mono")
    frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
    return frame


class _Sink:
    """A file for libsndfile that keeps appended bytes for `take` and ignores writes over earlier ones.

    The first frame of an MP3 is an index that is filled in when the file is finished: `skip_first` drops it.
    """

    def __init__(self, skip_first: bool) -> None:
        self._skip, self._ready = skip_first, bytearray()
        self._position = self._end = 0

    def write(self, data: bytes) -> int:
        if self._position == self._end:
            self._end += len(data)
            if not self._skip:
                self._ready += data
            self._skip = False
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._end)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        return b""  # libsndfile requires the method but never reads

    def take(self) -> bytes:
        ready = bytes(self._ready)
        self._ready.clear()
        return ready


def _wav_header(sample_rate: int) -> bytes:
    """The header of 16-bit mono with both lengths at their maximum, which players take for "until the end"."""
    endless = 0xFFFFFFFF
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", endless, b"WAVE", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16,
        b"data", endless,
    )  # fmt: skip
