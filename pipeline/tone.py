"""A recording to clone where none is at hand."""

import numpy as np
from numpy.typing import NDArray


def reference_tone(rate: int, seconds: float = 2.0) -> NDArray[np.float32]:
    """A voice-like tone [samples] at `rate` Hz: 140 Hz, harmonics and vibrato, swelling at the pace of syllables."""
    clock = np.arange(round(rate * seconds)) / rate
    phase = 2 * np.pi * (140 * clock + 0.8 * np.sin(2 * np.pi * 5 * clock))
    tone = sum(np.sin(number * phase) / number for number in range(1, 12))
    swell = 0.55 - 0.45 * np.cos(2 * np.pi * 4 * clock)
    return (0.25 * swell * tone).astype(np.float32)
