"""The speech decoder: the official samples, in one pass, in chunks, and in the official overlapping chunks."""

from itertools import cycle

import numpy as np
import pytest
import torch

from model_src.speech_decoder import SnakeBeta, SpeechDecoder
from tests.official import BASE, Official, snr

pytestmark = pytest.mark.parametrize("official", BASE, indirect=True)
STEP = 7  # of the golden samples
FRAME = 1920
TRAINED = {"mini-base": (89, 92)}  # dB that the polynomial for the sine leaves; random weights are quieter


def least(official: Official, frames: int = 2) -> int:
    """Of one frame, or of more."""
    return TRAINED.get(official.folder.parent.name, (99, 100))[frames > 1]


@pytest.fixture
def decoder(official: Official) -> SpeechDecoder:
    return official.checkpoint.load("speech_decoder")


@pytest.fixture
def codes(official: Official) -> torch.Tensor:
    return torch.from_numpy(official.golden["decoder_codes"].astype(np.int64))[None]


@pytest.mark.parametrize("frames", [1, 25, 73, 300, 350])
@torch.inference_mode()
def test_a_whole_pass(official: Official, decoder: SpeechDecoder, codes: torch.Tensor, frames: int):
    samples, _ = decoder(codes[..., :frames])
    assert samples.shape == (1, 1, frames * FRAME)
    found = samples[0, 0, ::STEP].numpy()
    # The rest is the polynomial that stands for the sine (see the next tests): 99.9 dB of one frame, 102.6 of more.
    assert snr(official.golden["decoder_samples"][: len(found)], found) >= least(official, frames)


def exact_snake(snake: SnakeBeta, x: torch.Tensor) -> torch.Tensor:
    """What SnakeBeta stands for, with the sine that it replaces by a polynomial."""
    alpha, beta = torch.exp(snake.alpha)[:, None], torch.exp(snake.beta)[:, None]
    return x + torch.sin(alpha * x) ** 2 / (beta + 1e-9)


@pytest.mark.parametrize("frames", [1, 73])
@torch.inference_mode()
def test_a_whole_pass_with_the_exact_sine(official, decoder, codes, frames, monkeypatch):
    """Everything else equals the official decoder up to float32's rounding, which is 117 dB here."""
    monkeypatch.setattr(SnakeBeta, "forward", exact_snake)
    found = decoder(codes[..., :frames])[0][0, 0, ::STEP].numpy()
    assert snr(official.golden["decoder_samples"][: len(found)], found) >= 115


@torch.inference_mode()
def test_the_polynomial_is_within_three_millionths_of_the_sine(decoder):
    snake = decoder.last_act.double()
    x = torch.linspace(-20, 20, 20_001, dtype=torch.float64).expand(len(snake.alpha), -1)
    error = (snake(x) - exact_snake(snake, x)).abs() * torch.exp(snake.beta)[:, None]
    assert error.max() <= 2.3e-6


@torch.inference_mode()
def test_consecutive_pieces(official: Official, decoder: SpeechDecoder, codes: torch.Tensor):
    pieces, past, start = [], None, 0
    for length in cycle((1, 3, 25)):
        samples, past = decoder(codes[..., start : start + length], past)
        pieces.append(samples[0, 0])
        start += length
        if start >= codes.shape[-1]:
            break
    assert snr(official.golden["decoder_samples"], torch.cat(pieces)[::STEP].numpy()) >= least(official)


@torch.inference_mode()
def test_the_official_chunks(official: Official, decoder: SpeechDecoder, codes: torch.Tensor):
    """The official package decodes frames from the 300th on with 25 frames of context: fewer than the lookback."""
    start = 300 * FRAME
    whole, chunk = decoder(codes)[0][0, 0], decoder(codes[..., 275:])[0][0, 0, 25 * FRAME :]
    found = torch.cat((whole[:start], chunk))[::STEP][start // STEP :].numpy()
    assert snr(official.golden["decoder_chunked"], found) >= least(official)
    assert snr(whole[start:].numpy(), chunk.numpy()) < 80  # otherwise the two methods would not differ
