"""Sampling: the official distribution for the same logits, and draws that follow it."""

import numpy as np
import pytest
import torch

from model_src.sampling import draw
from qwen3_tts_ov.sampling import Sampling, TalkerSampler, exponential
from tests.official import CUSTOM_VOICE, Official, assert_drawn_from, softmax

# One is enough: the golden logits are random, and the same for every checkpoint with this vocabulary.
pytestmark = pytest.mark.parametrize("official", CUSTOM_VOICE[-1:], indirect=True)
DRAWS = 20_000


def sampler(official: Official, point: dict, seed: int = 0) -> TalkerSampler:
    """A sampler that has drawn the codes of a grid point."""
    settings = Sampling(**{key: value for key, value in point.items() if key != "history"})
    sampler = TalkerSampler(official.config, settings, np.random.default_rng(seed))
    ids = np.arange(len(official.golden["sampling_logits"]))
    for code in official.golden["sampling_history"][: point["history"]]:
        sampler(np.where(ids == code, 100, 0).astype(np.float32))
    return sampler


def test_the_talker_draws_from_the_official_distribution(official: Official):
    grid, expected = official.parsed("sampling_grid"), official.golden["sampling_probabilities"]
    for point, probabilities in zip(grid, expected, strict=True):
        found = softmax(sampler(official, point).process(official.golden["sampling_logits"]))
        assert abs(found - probabilities).max() <= 1e-6, point


def test_the_code_predictor_draws_from_the_official_distribution(official: Official):
    grid, expected = official.parsed("code_sampling_grid"), official.golden["code_sampling_probabilities"]
    logits = torch.from_numpy(official.golden["sampling_logits"][: expected.shape[1]])[None].expand(500, -1)
    for seed, (point, probabilities) in enumerate(zip(grid, expected, strict=True)):
        noise = exponential(np.random.default_rng(seed), tuple(logits.shape))
        codes = draw(logits, torch.from_numpy(noise), *settings(point, logits.shape[1]))[:, 0].numpy()
        with np.errstate(divide="ignore"):
            assert (codes == (np.log(probabilities) - np.log(noise)).argmax(axis=-1)).all(), point


def settings(point: dict, codes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Temperature, top-k and top-p as inputs of the network."""
    top_k = point["top_k"] or codes
    return torch.tensor([point["temperature"]]), torch.tensor([top_k]), torch.tensor([point["top_p"]])


@pytest.mark.parametrize("rules", [{"top_k": 50, "top_p": 1.0}, {"top_k": 0, "top_p": 0.8}], ids=["top-k", "top-p"])
def test_draws_follow_the_distribution(official: Official, rules: dict):
    point = {"temperature": 0.9, **rules}
    found = official.parsed("code_sampling_grid").index(point)
    probabilities = official.golden["code_sampling_probabilities"][found]
    logits = torch.from_numpy(official.golden["sampling_logits"][: len(probabilities)])[None].expand(1000, -1)
    rng, codes = np.random.default_rng(0), []
    for _ in range(DRAWS // len(logits)):
        noise = torch.from_numpy(exponential(rng, tuple(logits.shape)))
        codes.append(draw(logits, noise, *settings(point, logits.shape[1]))[:, 0].numpy())
    assert_drawn_from(np.concatenate(codes), probabilities)

    point = {"history": 30, "repetition_penalty": 1.0, **point}
    found = official.parsed("sampling_grid").index(point)
    talker = sampler(official, point)
    first_codes = np.array([talker(official.golden["sampling_logits"]) for _ in range(DRAWS)])
    assert_drawn_from(first_codes, official.golden["sampling_probabilities"][found])


def test_noise_of_ones_chooses_the_likeliest_code(official: Official):
    logits = torch.from_numpy(official.golden["sampling_logits"][:2048])[None]
    for point in official.parsed("code_sampling_grid"):
        assert draw(logits, torch.ones_like(logits), *settings(point, 2048)).item() == logits.argmax()
