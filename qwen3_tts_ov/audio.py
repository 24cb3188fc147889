"""Audio in and out: any file or array to 24 kHz mono, speech to WAV, FLAC or raw PCM."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import AudioError, boundary

if TYPE_CHECKING:
    import soundfile

# A path, or samples with their rate in Hz: `[samples]` or `[samples, channels]`, float in [-1, 1] or integer PCM.
Source = str | os.PathLike[str] | tuple[ArrayLike, int]

MINIMUM_SECONDS, MAXIMUM_SECONDS = 0.5, 60.0
_RATES = range(4_000, 768_001)
_MOST_CHANNELS = 8
_SILENCE = 1e-3  # a peak below this (full scale is 1) is inaudible
_FORMATS = {".wav": "WAV", ".flac": "FLAC"}
RAW_FORMATS = (".pcm", ".raw")


def load(source: Source, sample_rate: int) -> NDArray[np.float32]:
    """Audio as float32 [samples], mono, at `sample_rate` Hz: channels averaged, resampled by soxr in high quality.

    The official package does the same (librosa with its default resampler), so the codes are the same.

    Raises AudioError when `source` is not audio, is shorter than 0.5 s or longer than 60 s, is silent, or holds NaN
    or infinity.
    """
    name = "the audio" if isinstance(source, tuple) else os.fspath(source)
    samples, rate = _from_array(*source) if isinstance(source, tuple) else _from_file(Path(name))
    if rate not in _RATES:
        raise AudioError(f"{name}: a sampling rate of {rate} Hz is not plausible; it must be 4000 to 768000 Hz")
    _check_length(name, len(samples) / rate)
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: it holds NaN or infinite samples; repair or record it again")
    mono = samples.mean(axis=1, dtype=np.float32)
    if np.abs(mono).max() < _SILENCE:
        raise AudioError(f"{name}: it is silent; give a recording with speech")
    return _resample(mono, rate, sample_rate)


def write(path: str | os.PathLike[str], waveform: NDArray[np.float32], sample_rate: int) -> None:
    """Writes float32 [samples] as 16-bit WAV, FLAC or raw PCM (`.pcm`, `.raw`), by the ending of `path`."""
    with Writer(path, sample_rate) as writer:
        writer.write(waveform)


class Writer:
    """Writes chunks of speech to a file as they arrive, so that long speech is never in memory as a whole.

    The file appears under its name when the `with` block succeeds; if it raises, no file is left.
    Raises AudioError for an ending that is not .wav, .flac, .pcm or .raw, or a folder that does not exist.
    """

    def __init__(self, path: str | os.PathLike[str], sample_rate: int) -> None:
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in _FORMATS and suffix not in RAW_FORMATS:
            known = ", ".join([*_FORMATS, *RAW_FORMATS])
            raise AudioError(f"{path}: cannot write {suffix or 'a file without ending'}; the endings are {known}")
        if not self.path.parent.is_dir():
            raise AudioError(f"{path}: there is no folder {self.path.parent}")
        if self.path.is_dir():
            raise AudioError(f"{path}: it is a folder; give a file name")
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._format = _FORMATS.get(suffix, "RAW")
        self._sample_rate = sample_rate
        self._file: soundfile.SoundFile | None = None

    def __enter__(self) -> Writer:
        import soundfile

        try:
            self._file = soundfile.SoundFile(
                self._partial, "w", self._sample_rate, 1, "PCM_16", format=self._format,
                endian="LITTLE" if self._format == "RAW" else None,
            )  # fmt: skip
        except (OSError, soundfile.LibsndfileError) as error:
            raise AudioError(f"{self.path}: cannot write it: {error}") from None
        return self

    def write(self, waveform: NDArray[np.float32]) -> None:
        """Appends float32 [samples], clipped to [-1, 1]."""
        assert self._file is not None, "write() outside of the with block"
        self._file.write(np.clip(waveform, -1, 1))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._file is not None
        self._file.close()
        if kind is None:
            self._partial.replace(self.path)
        else:
            self._partial.unlink(missing_ok=True)


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


def _from_array(samples: ArrayLike, rate: int) -> tuple[NDArray[np.float32], int]:
    """float32 [samples, channels] from any array of samples."""
    array = np.asarray(samples)
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)):
        raise AudioError(f"the audio's sampling rate must be a whole number of Hz, not {rate!r}")
    if array.dtype.kind not in "fiu" or array.dtype == np.uint64:
        raise AudioError(f"the audio must be an array of float or integer samples, not {array.dtype}")
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= array.shape[1] <= _MOST_CHANNELS):
        raise AudioError(f"the audio's shape {array.shape} is neither [samples] nor [samples, channels]")
    if array.dtype.kind == "u":
        scaled = array.astype(np.float32) / (np.iinfo(array.dtype).max / 2) - 1
    elif array.dtype.kind == "i":
        scaled = array.astype(np.float32) / -float(np.iinfo(array.dtype).min)
    else:
        scaled = array.astype(np.float32)
    return scaled.reshape(len(array), -1), int(rate)


def _from_file(path: Path) -> tuple[NDArray[np.float32], int]:
    """float32 [samples, channels] and the rate of a file, its length checked before it is read."""
    import soundfile

    if not path.exists():
        raise AudioError(f"{path}: there is no such file")
    if path.is_dir():
        raise AudioError(f"{path}: it is a folder, not a recording")
    try:
        with soundfile.SoundFile(path) as file:
            _check_length(str(path), file.frames / file.samplerate)
            return file.read(dtype="float32", always_2d=True), file.samplerate
    except (OSError, RuntimeError) as error:  # libsndfile's error is a RuntimeError, while opening or while reading
        detail = str(error).rpartition(": ")[2].rstrip(".") if isinstance(error, RuntimeError) else error.strerror
        raise AudioError(f"{path}: cannot read it as audio ({detail}); use WAV, FLAC, MP3 or OGG") from None


def _check_length(name: str, duration: float) -> None:
    if duration < MINIMUM_SECONDS:
        raise AudioError(f"{name}: it is too short, {duration:.2f} s; at least {MINIMUM_SECONDS} s are needed")
    if duration > MAXIMUM_SECONDS:
        raise AudioError(f"{name}: it is too long, {duration:.0f} s; cut it to at most {MAXIMUM_SECONDS:.0f} s")


def _resample(mono: NDArray[np.float32], rate: int, target: int) -> NDArray[np.float32]:
    """float32 [samples * target / rate], rounded up in floating point like librosa; soxr rounds differently."""
    if rate == target:
        return mono
    import soxr

    length = int(np.ceil(len(mono) * (target / rate)))
    with boundary(AudioError, "the audio cannot be resampled"):
        resampled = soxr.resample(mono, rate, target, quality="HQ")[:length]
    return np.pad(resampled, (0, length - len(resampled)))
