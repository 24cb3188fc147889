"""A mel spectrogram as a picture, to see at a glance what no gate measures: words, pauses, hum, clicks."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from transformers.audio_utils import hertz_to_mel, mel_filter_bank, spectrogram, window_function

WINDOW, HOP, BANDS = 1024, 240, 96  # at 24 kHz: 43 ms, 10 ms
RANGE_DB = 70.0  # below the loudest; quieter is black
MARGIN, BAND_HEIGHT = 34, 2  # pixels
# From quiet to loud, evenly spaced; as dark to light, it reads the same in grey.
COLOURS = ((0, 0, 4), (60, 15, 110), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))


def mel_spectrogram(waveform: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Level in dB under the loudest, [bands, windows], the lowest band first."""
    filters = mel_filter_bank(WINDOW // 2 + 1, BANDS, 0, rate / 2, rate)
    window = window_function(WINDOW, "hann")
    energy = spectrogram(waveform, window, WINDOW, HOP, power=2.0, pad_mode="constant", mel_filters=filters)
    level = 10 * np.log10(np.maximum(energy, 1e-12))
    return (level - level.max()).astype(np.float32)


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
        y = round(height * (1 - hertz_to_mel(1000.0 * kilohertz) / hertz_to_mel(rate / 2)))
        pen.line((MARGIN - 4, y, MARGIN, y), "black")
        pen.text((2, y - 6), f"{kilohertz} k", "black")
    picture.save(path)
