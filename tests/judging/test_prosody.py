"""Pitch and pace, of tones whose pitch is known and of recordings."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.judging.prosody import RATE, median_pitch, pace
from qwen3_tts_ov import audio

DATA = Path(__file__).parents[1] / "data"
CLOCK = np.arange(RATE) / RATE


def voice(pitch: float, harmonics: range = range(1, 20)) -> np.ndarray:
    """A second of a buzzing tone."""
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, 99)
    tones = [np.sin(2 * np.pi * pitch * n * CLOCK + phases[n]) / n for n in harmonics if pitch * n < RATE / 2]
    return (0.1 * np.sum(tones, axis=0)).astype(np.float32)


@pytest.mark.parametrize("pitch", [70, 110, 180, 240, 320, 450])
def test_the_pitch_of_a_tone_is_found(pitch):
    assert median_pitch(voice(pitch)) == pytest.approx(pitch, rel=0.02)
    assert median_pitch(voice(pitch, range(2, 20))) == pytest.approx(pitch, rel=0.02), "even without its fundamental"
    assert median_pitch(0.003 * voice(pitch)) == pytest.approx(pitch, rel=0.02), "however quiet"
    hiss = np.random.default_rng(0).normal(0, 0.005, RATE).astype(np.float32)
    assert median_pitch(voice(pitch) + hiss) == pytest.approx(pitch, rel=0.02)


def test_the_median_is_of_the_voiced_frames_alone():
    hiss = np.random.default_rng(0).normal(0, 0.05, 2 * RATE).astype(np.float32)
    assert median_pitch(np.concatenate([hiss, voice(200), 0 * hiss])) == pytest.approx(200, rel=0.02)
    assert median_pitch(hiss) is None
    assert median_pitch(np.zeros(RATE, np.float32)) is None
    assert median_pitch(np.zeros(10, np.float32)) is None


def test_the_pitch_of_a_recording_follows_its_speed():
    clip = audio.load(DATA / "speech-24khz.flac", RATE)
    pitch = median_pitch(clip)
    assert pitch is not None
    assert 80 < pitch < 300
    faster = np.interp(np.arange(0, len(clip), 1.25), np.arange(len(clip)), clip).astype(np.float32)
    assert median_pitch(faster) == pytest.approx(1.25 * pitch, rel=0.02)


def test_pace_counts_letters_between_first_and_last_sound():
    silence = np.zeros(RATE // 2, np.float32)
    said = np.concatenate([silence, voice(150), silence[:1600], voice(150), silence])
    assert pace("Ten letters, no, 21!", said) == pytest.approx(12 / 2.1, rel=0.02)
    assert pace("Hello.", silence) is None
    clip = audio.load(DATA / "speech-24khz.flac", RATE)
    words = "Had he married a more amiable woman, he might have been made still more respectable than he was."
    assert pace(words, clip) == pytest.approx(13, abs=2)
