"""The speech encoder: all codes of real speech equal the official ones, at any rate, length and channel count."""

import numpy as np
import pytest
import torch

from qwen3_tts_ov import audio
from tests.official import BASE, SPEECH, Official

pytestmark = pytest.mark.parametrize("official", BASE, indirect=True)


def test_all_codes_are_the_official_ones(official: Official):
    encoder = official.checkpoint.load("speech_encoder")
    for case, expected in zip(official.parsed("encoder_cases"), official.parts("encoder_codes"), strict=True):
        samples = audio.load(SPEECH / case["file"], 24_000)[: case.get("samples")]
        with torch.inference_mode():
            found = encoder(torch.from_numpy(samples)[None])[0].numpy()
        assert found.shape == (-(-len(samples) // 1920), 16) == expected.shape, case
        assert (found == expected).all(), (case, np.argwhere(found != expected)[:5].tolist())


def test_the_cases_cover_what_can_differ(official: Official):
    lengths = [len(codes) for codes in official.parts("encoder_codes")]
    assert max(lengths) > 125, "none is longer than the encoder's configured window of 10 s"
    assert min(lengths) == 1
    for codes in official.parts("encoder_codes")[:3]:
        assert len(np.unique(codes)) > 100
