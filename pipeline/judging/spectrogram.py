"""A mel spectrogram as a picture, to see in a glance what a gate does not measure: words, pauses, hum, clicks."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

WINDOW, HOP, BANDS = 1024, 240, 96  # at 24 kHz: 43 ms, 10 ms
RANGE_DB = 70.0  # below the loudest; quieter is black
MARGIN, BAND_HEIGHT = 34, 2  # pixels
# From quiet to loud, evenly spaced; as dark to light, it reads the same in grey.
COLOURS = ((0, 0, 4), (60, 15, 110), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))


def mel_spectrogram(waveform: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Level in dB under the loudest, [bands, windows], the lowest band first."""
    padded = np.pad(waveform, WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    power = np.square(np.abs(np.fft.rfft(windows * np.hanning(WINDOW), axis=1)))
    energy = filterbank(rate) @ power.T
    level = 10 * np.log10(np.maximum(energy, 1e-12))
    return (level - level.max()).astype(np.float32)


def filterbank(rate: int) -> NDArray[np.float64]:
    """Triangles of equal width on the mel scale, [bands, WINDOW / 2 + 1]."""
    edges = hertz(np.linspace(0, mel(rate / 2), BANDS + 2))
    frequencies = np.linspace(0, rate / 2, WINDOW // 2 + 1)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling))


def draw(waveform: NDArray[np.float32], rate: int, path: Path) -> None:
    """Writes the mel spectrogram as PNG: a column for 10 ms, seconds below, kHz at the left."""
    level = mel_spectrogram(waveform, rate)
    shade = np.clip(1 + level / RANGE_DB, 0, 1)
    stops = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(shade, stops, channel) for channel in zip(*COLOURS, strict=True)], axis=-1)
    pixels = np.repeat(colours[::-1].astype(np.uint8), BAND_HEIGHT, axis=0)
    height, width = pixels.shape[:2]
    picture = Image.new("RGB", (MARGIN + width, height + MARGIN // 2), "white")
    picture.paste(Image.fromarray(pixels), (MARGIN, 0))
    pen = ImageDraw.Draw(picture)
    for second in range(len(waveform) // rate + 1):
        x = MARGIN + second * rate // HOP
        pen.line((x, height, x, height + 3), "black")
        pen.text((x + 3, height + 2), f"{second} s", "black")
    for kilohertz in (1, 2, 4, 8):
        y = round(height * (1 - mel(1000.0 * kilohertz) / mel(rate / 2)))
        pen.line((MARGIN - 4, y, MARGIN, y), "black")
        pen.text((2, y - 6), f"{kilohertz} k", "black")
    picture.save(path)


def mel(frequency: float) -> float:
    """Hz to mel."""
    return 2595 * np.log10(1 + frequency / 700)


def hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    """mel to Hz."""
    return 700 * (10 ** (mels / 2595) - 1)
