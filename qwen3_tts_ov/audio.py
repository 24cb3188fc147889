"""Audio in and out: any file or array to 24 kHz mono, speech to WAV, FLAC or raw PCM."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import output, recording
from .errors import AudioError, boundary
from .recording import Source

_QUIET = 10 ** (-40 / 20)  # of a recording's peak; nobody speaks below it
_FORMATS = {".wav": "WAV", ".flac": "FLAC"}
RAW_FORMATS = (".pcm", ".raw")


def load(source: Source, sample_rate: int) -> NDArray[np.float32]:
    """Audio as float32 [samples], mono, at `sample_rate` Hz: channels averaged, resampled by soxr in high quality.

    The official package does the same (librosa with its default resampler), so the codes are the same; what is mended
    is in recording.py.

    Raises AudioError when `source` is not audio, is shorter than 0.5 s or longer than 60 s, is silent, is far beyond
    full scale, or holds NaN or infinity.
    """
    name, samples, rate = recording.read(source)
    return _resample(recording.mono(name, samples, rate), rate, sample_rate)


def trimmed(waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """A recording [samples] without the silence around its speech, but for a tenth of a second."""
    step = sample_rate // 50
    peaks = np.abs(waveform[: len(waveform) // step * step]).reshape(-1, step).max(axis=1)
    loud = np.flatnonzero(peaks >= _QUIET * peaks.max())
    return waveform[max(0, loud[0] - 5) * step : (loud[-1] + 6) * step]


def write(path: str | os.PathLike[str], waveform: NDArray[np.float32], sample_rate: int) -> None:
    """Writes float32 [samples] as 16-bit WAV, FLAC or raw PCM (`.pcm`, `.raw`), by the ending of `path`."""
    with Writer(path, sample_rate) as writer:
        writer.write(waveform)


class Writer:
    """Writes chunks of speech to a file as they arrive, so that long speech is never in memory as a whole.

    The file appears under its name when the `with` block succeeds; if it raises, no file is left. `inputs` are files
    that are read meanwhile. Raises AudioError for a place that output.py refuses, or when the disk is full.
    """

    def __init__(self, path: str | os.PathLike[str], sample_rate: int, inputs: Iterable[Path] = ()) -> None:
        self.path, self._sample_rate = Path(path), sample_rate
        output.check_file(self.path, [*_FORMATS, *RAW_FORMATS], inputs)

    def __enter__(self) -> Writer:
        import soundfile

        form = _FORMATS.get(self.path.suffix.lower(), "RAW")
        self._partial = output.partial_of(self.path)
        with self._explained():
            self._file = soundfile.SoundFile(
                self._partial, "w", self._sample_rate, 1, "PCM_16", format=form,
                endian="LITTLE" if form == "RAW" else None,
            )  # fmt: skip
        return self

    def write(self, waveform: NDArray[np.float32]) -> None:
        """Appends float32 [samples], clipped to [-1, 1]. Raises AudioError when the disk is full."""
        with self._explained():
            self._file.write(np.clip(waveform, -1, 1))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._explained():
                self._file.close()
            if kind is None:
                output.put(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of soundfile's, which also asserts that all was written
            raise output.failure(self.path, error) from None


class Player:
    """Plays chunks of speech as they arrive, with the first player program found on this machine.

    Raises AudioError when there is none, or when it fails, for example without an audio device.
    """

    _COMMANDS = (
        "pw-cat --playback --rate {rate} --channels 1 --format s16 -",
        "paplay --raw --rate={rate} --channels=1 --format=s16le",
        "aplay --quiet --file-type raw --format S16_LE --rate {rate} --channels 1",
        "ffplay -nodisp -autoexit -loglevel error -f s16le -ar {rate} -i -",
        "play --no-show-progress -t raw -e signed -b 16 -c 1 -r {rate} -",
    )

    def __init__(self, sample_rate: int) -> None:
        commands = [command.format(rate=sample_rate).split() for command in self._COMMANDS]
        self._command = next((command for command in commands if shutil.which(command[0])), [])
        if not self._command:
            known = ", ".join(command[0] for command in commands)
            raise AudioError(f"no audio player was found; install one of {known}, or write a file with -o")

    def __enter__(self) -> Player:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        return self

    def write(self, waveform: NDArray[np.float32]) -> None:
        """Passes float32 [samples] to the player; blocks while the player has enough to play."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(pcm16(waveform))
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._error() from None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.kill()
            self._process.wait()
        elif self._process.communicate() and self._process.returncode:
            raise self._error()

    def _error(self) -> AudioError:
        reason = (self._process.communicate()[1] or b"").decode(errors="replace").strip()
        return AudioError(f"{self._command[0]} cannot play: {reason or 'it gave no reason'}")


def pcm16(waveform: NDArray[np.float32]) -> bytes:
    """Raw PCM of float32 [samples]: signed 16-bit little-endian."""
    return (np.clip(waveform, -1, 1) * 32767).round().astype("<i2").tobytes()


def _resample(mono: NDArray[np.float32], rate: int, target: int) -> NDArray[np.float32]:
    """float32 [samples * target / rate], rounded up in floating point like librosa; soxr rounds differently."""
    if rate == target:
        return mono
    import soxr

    length = int(np.ceil(len(mono) * (target / rate)))
    with boundary(AudioError, "the audio cannot be resampled"):
        resampled = soxr.resample(mono, rate, target, quality="HQ")[:length]
    return np.pad(resampled, (0, length - len(resampled)))
