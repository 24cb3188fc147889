"""The speaker encoder: the official x-vector, and the mel features behind it."""

import numpy as np
import pytest
import torch

from model_src.speaker_encoder import mel_filters
from qwen3_tts_ov import audio
from tests.official import BASE, SPEECH, Official

pytestmark = pytest.mark.parametrize("official", BASE, indirect=True)


def test_x_vectors(official: Official):
    encoder = official.checkpoint.load("speaker_encoder")
    vectors = official.golden["speaker_vectors"]
    for name, expected in zip(official.parsed("speaker_files"), vectors, strict=True):
        samples = torch.from_numpy(audio.load(SPEECH / name, 24_000))[None]
        with torch.inference_mode():
            found = encoder(samples)[0].numpy().astype(np.float64)
        cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
        assert cosine >= 0.999999
        assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def test_mel_features(official: Official):
    samples = torch.from_numpy(audio.load(SPEECH / "speech-24khz.flac", 24_000))[None, :48_000]
    found = official.checkpoint.load("speaker_encoder").mel(samples)[0].numpy()
    assert found.shape == official.golden["mel_features"].shape
    expected = official.golden["mel_features"]
    # Below e^-9 the logarithm magnifies the rounding of the processor's Fourier transform, so magnitudes decide there.
    assert abs(found - expected)[expected > -9].max() <= 1e-4
    assert abs(np.exp(found) - np.exp(expected)).max() <= 1e-6


def test_mel_filters(official: Official):
    found, expected = mel_filters(24_000, 1024, 128, 0.0, 12_000.0), official.golden["mel_filters"]
    assert ((found > 0) == (expected > 0)).all()
    assert abs(found - expected).max() <= 1e-6 * expected.max()
