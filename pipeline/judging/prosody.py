"""How high and how fast a voice speaks: median pitch by YIN, and letters a second. Audio is float32 [samples], 16 kHz.

YIN (10.1121/1.1458024) in its plain form: no tracking over time and no interpolation between samples. The median over
a sentence needs neither; it is within 2 % at the highest pitch, and an octave wrong here and there does not move it.
"""

import numpy as np
from numpy.typing import NDArray

RATE = 16_000  # Hz
HOP = RATE // 100  # samples between frames
LOWEST, HIGHEST = 60, 500  # Hz
WINDOW = RATE // 40  # samples that are compared with later ones
PERIODIC = 0.15  # the most of its power by which a period may differ from the next
QUIET = 10 ** (-35 / 20)  # of the loudest frame's level; below it nobody speaks
Floats = NDArray[np.float32]


def median_pitch(waveform: Floats) -> float | None:
    """The median over the voiced frames, in Hz; None where no frame is voiced."""
    longest, shortest = RATE // LOWEST, RATE // HIGHEST
    if len(waveform) < WINDOW + longest:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), WINDOW + longest)[::HOP]
    difference = normalised_difference(frames[sounding(waveform)[: len(frames)]])[:, shortest - 1 :]
    middle = difference[:, 1:-1]
    dips = (middle < PERIODIC) & (middle <= difference[:, :-2]) & (middle <= difference[:, 2:])
    periods = shortest + 1 + dips.argmax(axis=1)[dips.any(axis=1)]
    return float(RATE / np.median(periods)) if len(periods) else None


def normalised_difference(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """How frames [frames, samples] differ from themselves later, by lag from 1 on: [frames, lags].

    d(lag) = sum((x[i] - x[i + lag]) ** 2), over the mean of d up to that lag; its dips are at the periods.
    """
    lags = frames.shape[1] - WINDOW
    size = 2 * frames.shape[1]
    spectrum = np.fft.rfft(frames, size) * np.fft.rfft(frames[:, :WINDOW], size).conj()
    correlation = np.fft.irfft(spectrum, size)[:, 1 : lags + 1]
    power = np.cumsum(np.pad(frames**2, ((0, 0), (1, 0))), axis=1)
    energy = power[:, WINDOW:] - power[:, :-WINDOW]
    difference = energy[:, :1] + energy[:, 1:] - 2 * correlation
    mean = np.cumsum(difference, axis=1) / np.arange(1, lags + 1)
    return difference / np.maximum(mean, 1e-12)


def pace(text: str, waveform: Floats) -> float | None:
    """The letters of a text over the seconds between first and last sound; None for silence."""
    heard = np.flatnonzero(sounding(waveform))
    if not len(heard):
        return None
    return sum(map(str.isalpha, text)) / (float(heard[-1] - heard[0] + 1) * HOP / RATE)


def sounding(waveform: Floats) -> NDArray[np.bool_]:
    """Which frames of 10 ms are not silent, by their level against the loudest: [frames]."""
    whole = waveform[: len(waveform) // HOP * HOP].reshape(-1, HOP).astype(np.float64)
    level = np.sqrt(np.mean(whole**2, axis=1))
    return level > max(QUIET * level.max(initial=0), 1e-5)
