"""Recordings to clone: from any source, in any format, judged channel by channel."""

from __future__ import annotations

import base64
import binascii
import io
import logging
import os
import stat
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import AudioError, boundary, first_line
from .names import short

# A path (of a file or a pipe) or a data URL; a file object or its bytes; or samples with their rate in Hz:
# `[samples]` or `[samples, channels]`, float in [-1, 1] or integer PCM.
Source: TypeAlias = str | os.PathLike[str] | IO[bytes] | bytes | bytearray | memoryview | tuple[ArrayLike, int]

MINIMUM_SECONDS, MAXIMUM_SECONDS = 0.5, 60.0
_MOST_BYTES = 100_000_000  # of what has no known length: pipes, downloads
_RATES = range(4_000, 768_001)
_MOST_CHANNELS = 8

# Full scale is 1.
_SILENCE = 1e-3  # a peak below this is inaudible
_AUDIBLE_SECONDS = 0.2  # less than this is a click
_OFFSET = 0.01  # a larger mean is a fault of the recorder
_LOUDEST = 4.0  # beyond this, samples are not in [-1, 1] at all; a little over 1 is common in float files
_QUIETEST = 1 / 256  # integers of 32 or 64 bits that use less of their range hold smaller ones
_WEAK, _CANCELLED = 0.05, 0.2  # of the loudest channel: a channel without speech, a mix that cancels out

# What libsndfile does not read and FFmpeg does: it may open nothing else, as playlists name further files.
_MEDIA = {b"ftyp": 4, b"\x1aE\xdf\xa3": 0, b"\xff\xf1": 0, b"\xff\xf9": 0, b"0&\xb2u": 0, b"#!AMR": 0}
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,asf,amr,caf,avi,mp3,ogg,wav,flac,aiff"

_ALLOW = "allow it with --allow-url, or in Python give the result of qwen3_tts_ov.recording.fetch(url)"

_log = logging.getLogger(__name__)


def read(source: Source) -> tuple[str, NDArray[np.float32], int]:
    """The name of a recording in messages, its samples, float32 [samples, channels], and its rate in Hz.

    Raises AudioError for what is no recording or too long to be one.
    """
    if isinstance(source, tuple):
        return "the audio", *_from_array(*source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "the recording", *_decode(bytes(source), "the recording")
    if isinstance(source, (str, os.PathLike)):
        return _read_named(os.fspath(source))
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        name = name if isinstance(name, str) else "the recording"
        return name, *_decode(_drain(source, name), name)
    raise AudioError(f"a recording is a path, a file, bytes or (samples, rate), not {type(source).__name__}")


def path_of(source: object) -> Path | None:
    """The path that a source names; None for a URL and for everything that is not a name."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    name = os.fspath(source)
    return None if is_on_the_web(name) or name.lower().startswith("data:") else Path(name)


def is_on_the_web(name: str) -> bool:
    """Whether a name is a URL to be fetched."""
    return name.lower().startswith(("http://", "https://"))


def check_named(source: str | os.PathLike[str]) -> None:
    """Raises AudioError for a name that leads to no recording: that of no file, or a URL, which must be fetched."""
    name, path = os.fspath(source), path_of(source)
    if is_on_the_web(name):
        raise AudioError(f"{short(name)}: a URL is not fetched unasked; {_ALLOW}")
    if path is not None and not os.path.exists(path):  # noqa: PTH110  Path.exists raises where a name is too long
        raise AudioError(f"{short(name)}: there is no such file; give a recording or a saved voice prompt")


def fetch(url: str) -> bytes:
    """The recording at an https URL, to be cloned. Nothing is fetched unless this is called. Raises AudioError."""
    import httpx2

    if not url.lower().startswith("https://"):
        raise AudioError(f"{url}: only https is fetched")
    data = bytearray()
    try:
        with httpx2.stream("GET", url, follow_redirects=True, timeout=30) as response:
            if any(step.url.scheme != "https" for step in (*response.history, response)):
                raise AudioError(f"{url}: only https is fetched")
            response.raise_for_status()
            for part in response.iter_bytes():
                data += part
                if len(data) > _MOST_BYTES:
                    raise AudioError(f"{url}: it is over {_MOST_BYTES // 1_000_000} MB; give a short recording")
    except httpx2.HTTPStatusError as error:
        raise AudioError(f"{url}: the server answers {error.response.status_code}; check the address") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AudioError(f"{url}: it cannot be fetched ({reason})") from None
    return bytes(data)


def mono(name: str, samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """float32 [samples] of a recording's channels, averaged; those without speech are left out.

    A fault that leaves the speech usable is mended, and logged as a warning in one line: a constant offset, silent
    channels, channels that cancel each other out. Raises AudioError for any other.
    """
    if rate not in _RATES:
        raise AudioError(f"{name}: a sampling rate of {rate} Hz is not plausible; it must be 4000 to 768000 Hz")
    _check_length(name, len(samples) / rate)
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: it holds NaN or infinite samples; repair or record it again")
    if (peak := float(np.abs(samples).max())) > _LOUDEST:
        raise AudioError(f"{name}: its samples reach {peak:.6g}, and full scale is 1; divide them by their full scale")
    offset = samples.mean(axis=0)
    if (worst := float(np.abs(offset).max())) > _OFFSET:
        samples = samples - np.where(np.abs(offset) > _OFFSET, offset, 0)
        _log.warning("%s: a constant offset of %.2g was taken out", name, worst)
    audible = _audible_seconds(samples, rate)
    if audible.max() < _AUDIBLE_SECONDS:
        click = f" but for {audible.max():.2f} s" if audible.any() else ""
        raise AudioError(f"{name}: it is silent{click}; give a recording with speech")
    return _mix(name, samples)


def _mix(name: str, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [samples]: the mean of the channels that carry speech, or the loudest where they cancel out."""
    loudness = np.sqrt(np.square(samples, dtype=np.float64).mean(axis=0))
    loudest = int(loudness.argmax())
    carry = loudness >= _WEAK * loudness[loudest]
    if not carry.all():
        silent = ", ".join(str(channel + 1) for channel in np.flatnonzero(~carry))
        _log.warning("%s: channel %s is silent and left out", name, silent)
        samples = samples[:, carry]
    mixed = samples.mean(axis=1, dtype=np.float32)
    if np.sqrt(np.square(mixed, dtype=np.float64).mean()) >= _CANCELLED * loudness[loudest]:
        return mixed
    _log.warning("%s: its channels cancel each other out; channel %d alone is used", name, loudest + 1)
    alone: NDArray[np.float32] = samples[:, int(carry[:loudest].sum())].astype(np.float32)
    return alone


def _audible_seconds(samples: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    """How long each channel is louder than silence, in steps of 20 ms."""
    step = rate // 50
    windows = np.abs(samples[: len(samples) // step * step]).reshape(-1, step, samples.shape[1])
    seconds: NDArray[np.float64] = (windows.max(axis=1) >= _SILENCE).sum(axis=0) * 0.02
    return seconds


def _read_named(name: str) -> tuple[str, NDArray[np.float32], int]:
    if name.lower().startswith("data:"):
        return "the data URL", *_decode(data_url(name), "the data URL")
    check_named(name)
    mode = Path(name).stat().st_mode
    if stat.S_ISDIR(mode):
        raise AudioError(f"{name}: it is a folder, not a recording")
    if stat.S_ISREG(mode):
        return name, *_decode(Path(name), name)
    try:
        with Path(name).open("rb") as pipe:
            return name, *_decode(_drain(pipe, name), name)
    except OSError as error:
        raise AudioError(f"{name}: it cannot be opened ({error.strerror})") from None


def _drain(file: Any, name: str) -> bytes:
    """All bytes of a file or pipe, which need not be seekable."""
    try:
        data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # closed, or not open for reading
        raise AudioError(f"{name}: it cannot be read ({error})") from None
    if not isinstance(data, bytes):
        raise AudioError(f"{name}: it gives {type(data).__name__}, not bytes; open it in binary mode")
    if len(data) > _MOST_BYTES:
        raise AudioError(f"{name}: it is over {_MOST_BYTES // 1_000_000} MB; give a short recording")
    if not data:
        raise AudioError(f"{name}: it is empty, or has been read to its end")
    return data


def data_url(url: str) -> bytes:
    """The bytes of `data:audio/wav;base64,...`. Raises AudioError."""
    head, comma, content = url.partition(",")
    raw = unquote_to_bytes(content)
    try:
        data = base64.b64decode(raw, validate=True) if head.lower().endswith(";base64") else raw
    except binascii.Error as error:
        raise AudioError(f"the data URL: it is not base64 ({error})") from None
    if not comma or not data:
        raise AudioError(f"the data URL: it holds nothing; write it as data:audio/wav;base64,... ({short(url)})")
    return data


def _decode(file: Path | bytes, name: str) -> tuple[NDArray[np.float32], int]:
    """float32 [samples, channels] and the rate, by libsndfile, or by FFmpeg what that cannot read."""
    import soundfile

    with boundary(AudioError, f"{name}: cannot read it as audio", _reason, "use WAV, FLAC, MP3 or OGG"):
        head = file[:16] if isinstance(file, bytes) else file.open("rb").read(16)
        if any(head[at:].startswith(mark) for mark, at in _MEDIA.items()):
            return _decode_media(file, name)
        with soundfile.SoundFile(file if isinstance(file, Path) else io.BytesIO(file)) as sound:
            _check_length(name, sound.frames / sound.samplerate)
            return sound.read(dtype="float32", always_2d=True), sound.samplerate


def _reason(error: Exception) -> str:
    """What is wrong with a file, without the name that is in the message already."""
    system = error.strerror if isinstance(error, OSError) else None
    return system or first_line(error).rpartition(": ")[2].rstrip(".")


def _decode_media(file: Path | bytes, name: str) -> tuple[NDArray[np.float32], int]:
    """The same for m4a, webm and videos, by PyAV."""
    try:
        import av
    except ModuleNotFoundError:
        raise AudioError(
            f"{name}: m4a, webm and the like need PyAV: pip install 'qwen3-tts-ov[media]'; or use WAV, FLAC, MP3 or OGG"
        ) from None
    chunks: list[NDArray[np.float32]] = []
    try:
        given = str(file) if isinstance(file, Path) else io.BytesIO(file)
        options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
        with av.open(given, options=options) as container:
            if not container.streams.audio:
                raise AudioError(f"{name}: it has no sound")
            stream = container.streams.audio[0]
            rate, samples = stream.rate, 0
            resampler = av.AudioResampler(format="fltp")
            for frame in container.decode(stream):
                chunks += [part.to_ndarray().T for part in resampler.resample(frame)]
                samples += frame.samples
                _check_longest(name, samples / rate)
    except av.FFmpegError as error:
        if not chunks:
            raise AudioError(f"{name}: cannot read it as audio ({error.strerror}); use WAV, FLAC, MP3 or OGG") from None
        _log.warning("%s: it breaks off after %.1f s", name, sum(map(len, chunks)) / rate)
    if not chunks:
        raise AudioError(f"{name}: it has no sound")
    return np.concatenate(chunks), rate


def _from_array(samples: ArrayLike, rate: int) -> tuple[NDArray[np.float32], int]:
    """float32 [samples, channels] from any array of samples."""
    try:
        array = np.asarray(samples)
    except (ValueError, TypeError) as error:
        raise AudioError(f"the audio must be an array of samples ({error})") from None
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
        if array.dtype.itemsize > 2 and array.any() and np.abs(scaled).max() < _QUIETEST:
            raise AudioError(
                f"the audio's {array.dtype} samples reach only {int(np.abs(array).max())}, which is next to "
                "nothing at this size; give them as int16, or as floats in [-1, 1]"
            )
    else:
        scaled = array.astype(np.float32)
    return scaled.reshape(len(array), -1), int(rate)


def _check_length(name: str, duration: float) -> None:
    if duration < MINIMUM_SECONDS:
        raise AudioError(f"{name}: it is too short, {duration:.2f} s; at least {MINIMUM_SECONDS} s are needed")
    _check_longest(name, duration)


def _check_longest(name: str, duration: float) -> None:
    if duration > MAXIMUM_SECONDS:
        raise AudioError(f"{name}: it is too long, {duration:.0f} s; cut it to at most {MAXIMUM_SECONDS:.0f} s")
