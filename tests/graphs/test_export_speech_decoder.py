"""The speech decoder's state: pieces of any length give the same samples as a single pass."""

import numpy as np
import openvino as ov
import pytest
import torch

from model_src.checkpoint import Checkpoint
from tests.exported import answers, assert_equal, request

FRAMES, FRAME = 400, 1920


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 2048, (1, 16, FRAMES))


@pytest.fixture(scope="module")
def decoder(artifact) -> ov.InferRequest:
    return request(artifact("export") / "speech_decoder.xml")


@pytest.fixture(scope="module")
def whole(decoder, codes) -> np.ndarray:
    return answers(decoder, [{"codes": codes}])[0]["waveform"]


def pieces_of(codes: np.ndarray, size: int) -> list[dict[str, np.ndarray]]:
    """The codes in pieces of `size` frames; the last may be shorter."""
    return [{"codes": codes[..., start : start + size]} for start in range(0, codes.shape[-1], size)]


@torch.inference_mode()
def test_a_single_pass_equals_the_networks(artifact, codes, whole):
    expected, _ = Checkpoint(artifact("download")).load("speech_decoder")(torch.from_numpy(codes))
    assert_equal([{"waveform": whole}], [{"waveform": expected.numpy()}])
    assert whole.shape == (1, 1, FRAMES * FRAME)


@pytest.mark.parametrize("size", [1, 3, 25])
def test_joined_pieces_equal_the_single_pass(decoder, codes, whole, size):
    pieces = pieces_of(codes, size)
    found = [result["waveform"] for result in answers(decoder, pieces)]
    assert [piece.shape[-1] for piece in found] == [FRAME * call["codes"].shape[-1] for call in pieces]
    assert_equal([{"waveform": np.concatenate(found, axis=-1)}], [{"waveform": whole}])


def test_a_reset_request_remembers_nothing(decoder, codes):
    calls = pieces_of(codes[..., :100], 30)
    first = answers(decoder, calls)
    decoder.infer(calls[0])  # continues from the calls above
    for again, before in zip(answers(decoder, calls), first, strict=True):
        np.testing.assert_array_equal(again["waveform"], before["waveform"])


def test_earlier_pieces_affect_the_output_until_the_reset(decoder, codes):
    """Without this, the tests above would pass on a graph without state."""
    _, second = answers(decoder, pieces_of(codes[..., :8], 4))
    (alone,) = answers(decoder, [{"codes": codes[..., 4:8]}])
    assert np.abs(alone["waveform"] - second["waveform"]).max() > 0.1 * np.abs(second["waveform"]).max()
