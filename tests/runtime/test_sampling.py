"""Sampling parameters, and draws at edge cases."""

import numpy as np
import pytest
import torch

from model_src.sampling import draw
from qwen3_tts_ov.sampling import Sampling, TalkerSampler, exponential, suppressed

CONFIG = {"talker_config": {"vocab_size": 3072, "codec_eos_token_id": 2150}}
# A seed that gives a 0 within eight million draws.
UNLUCKY = 2


def test_exponential_draws_are_never_zero():
    draws = (4_000_000,)
    rng = np.random.default_rng(UNLUCKY)
    raw = [rng.standard_exponential(draws, dtype=np.float32).min() for _ in range(2)]
    assert min(raw) == 0, "this seed never draws a zero; choose another"
    rng = np.random.default_rng(UNLUCKY)
    assert min(exponential(rng, draws).min() for _ in range(2)) > 0


def test_a_zero_draw_does_not_bring_back_a_dropped_code():
    logits = torch.tensor([[5.0, 4.0, 0.0, -1.0]])
    noise = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    one = torch.ones(1)
    assert draw(logits, noise, one, torch.tensor([4]), torch.tensor([0.5])).item() == 0
    assert draw(logits, noise, one, torch.tensor([2]), one).item() == 0
    assert draw(logits, noise, one, torch.tensor([4]), one).item() == 2  # if it is not dropped, it wins


def test_a_batch_is_drawn_row_by_row():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.standard_normal((8, 2048), dtype=np.float32))
    noise = torch.from_numpy(exponential(rng, (8, 2048)))
    settings = (torch.tensor([0.9]), torch.tensor([50]), torch.tensor([0.9]))
    rows = [draw(logits[i : i + 1], noise[i : i + 1], *settings) for i in range(8)]
    assert torch.equal(draw(logits, noise, *settings), torch.cat(rows))


def test_a_seed_fixes_the_talkers_draws():
    logits = np.random.default_rng(0).standard_normal((40, 3072)).astype(np.float32)

    def codes(seed: int) -> list[int]:
        sampler = TalkerSampler(CONFIG, Sampling(), np.random.default_rng(seed))
        return [sampler(row) for row in logits]

    assert codes(1) == codes(1) != codes(2)


@pytest.mark.parametrize("do_sample", [True, False])
def test_only_codes_are_drawn_and_no_end_before_its_time(do_sample: bool):
    logits = np.linspace(0, 30, 3072, dtype=np.float32)  # control ids are the likeliest
    logits[2150] = 60
    sampler = TalkerSampler(CONFIG, Sampling(do_sample=do_sample), np.random.default_rng(0))
    first = [sampler(logits) for _ in range(3)]
    assert max(first[:2]) < 2048
    assert first[2] == 2150
    assert suppressed(CONFIG).sum() == 1023


def test_logits_are_not_modified():
    logits = np.random.default_rng(0).standard_normal(3072).astype(np.float32)
    before = logits.copy()
    TalkerSampler(CONFIG, Sampling(top_p=0.5, repetition_penalty=1.3), np.random.default_rng(0))(logits)
    assert np.array_equal(logits, before)


def test_defaults_are_the_checkpoints_else_the_official_ones():
    assert Sampling.talker({}) == Sampling(True, 0.9, 50, 1.0, 1.05)
    assert Sampling.code_predictor({}) == Sampling(True, 0.9, 50, 1.0, 1.0)
    generation = {
        "do_sample": False, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1,
        "subtalker_dosample": True, "subtalker_temperature": 0.5, "subtalker_top_k": 10, "subtalker_top_p": 0.8,
        "max_new_tokens": 8192,
    }  # fmt: skip
    assert Sampling.talker(generation) == Sampling(False, 0.7, 20, 0.9, 1.1)
    assert Sampling.code_predictor(generation) == Sampling(True, 0.5, 10, 0.8, 1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: float):
    with pytest.raises(ValueError, match=f"^{name} must be .*, not {value}"):
        Sampling(**{name: value})
