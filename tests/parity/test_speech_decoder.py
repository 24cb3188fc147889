"""The speech decoder: the official samples, in one pass, in chunks, and in the official overlapping chunks."""

from itertools import cycle

import numpy as np
import pytest
import torch

from model_src.speech_decoder import SpeechDecoder
from tests.official import BASE, Official, snr

pytestmark = pytest.mark.parametrize("official", BASE, indirect=True)
STEP = 7  # of the golden samples
FRAME = 1920


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
    # One frame comes close to float32's own noise, which depends on the processor: 99.9 dB on an Intel Xeon.
    assert snr(official.golden["decoder_samples"][: len(found)], found) >= (100 if frames > 1 else 99)


@torch.inference_mode()
def test_consecutive_pieces(official: Official, decoder: SpeechDecoder, codes: torch.Tensor):
    pieces, past, start = [], None, 0
    for length in cycle((1, 3, 25)):
        samples, past = decoder(codes[..., start : start + length], past)
        pieces.append(samples[0, 0])
        start += length
        if start >= codes.shape[-1]:
            break
    assert snr(official.golden["decoder_samples"], torch.cat(pieces)[::STEP].numpy()) >= 100


@torch.inference_mode()
def test_the_official_chunks(official: Official, decoder: SpeechDecoder, codes: torch.Tensor):
    """The official package decodes frames from the 300th on with 25 frames of context: fewer than the lookback."""
    start = 300 * FRAME
    whole, chunk = decoder(codes)[0][0, 0], decoder(codes[..., 275:])[0][0, 0, 25 * FRAME :]
    found = torch.cat((whole[:start], chunk))[::STEP][start // STEP :].numpy()
    assert snr(official.golden["decoder_chunked"], found) >= 100
    assert snr(whole[start:].numpy(), chunk.numpy()) < 80  # otherwise the two methods would not differ
