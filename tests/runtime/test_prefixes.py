"""What prompts have in common is computed once, and nobody hears a difference."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qwen3_tts_ov import Bundle, Synthesizer, VoicePrompt, prefixes, prompt
from qwen3_tts_ov.prefixes import Prefixes
from tests.runtime.test_batching import GREEDY, SLOTS
from tests.runtime.test_speech import recording

# As wide as the narrowest product, so that every activation is quantised and rows are alike (see test_batching.py).
ROWS_ALIKE = {
    "talker": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 64},
    "code_predictor": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 32},
}
REFERENCE = "These are all the many words which somebody says, rather quickly, in this recording of two seconds."
TEXTS = ("Short.", "Something else, which is longer.", "And a third text.", "The fourth of them.")


@pytest.fixture(scope="module")
def synthesizer(artifact: Callable[..., Path], model_cache: Path) -> Synthesizer:
    bundle = Bundle.load(artifact("bundle", "tiny-base", "int8"))
    return Synthesizer(bundle, properties=ROWS_ALIKE, cache_dir=model_cache, slots=SLOTS)


@pytest.fixture(scope="module")
def voices(synthesizer: Synthesizer) -> list[VoicePrompt]:
    """Cloned in context, by x-vector, and in context with another text."""
    return [synthesizer.voice_prompt(recording(), text) for text in (REFERENCE, None, f"No. {REFERENCE}")]


@pytest.fixture(autouse=True)
def forgotten(synthesizer: Synthesizer) -> None:
    """No test finds what another has left."""
    talker = synthesizer.engine.batch._talker
    talker.prefixes = Prefixes(talker._pools)


def shared(synthesizer: Synthesizer) -> int:
    return synthesizer.engine.batch._talker.prefixes.shared


@pytest.mark.parametrize("text_first", [True, False])
def test_from_its_third_text_on_a_voice_computes_only_what_is_new(synthesizer, voices, text_first):
    speech = [synthesizer.speak(text, voices[0], max_frames=3, text_first=text_first, seed=1) for text in TEXTS[:2]]
    assert shared(synthesizer) == 0
    speech.append(synthesizer.speak(TEXTS[2], voices[0], max_frames=3, text_first=text_first, seed=1))
    plan = (synthesizer.model.config, synthesizer.model.tokenize)
    one, other = (
        prompt.clone_icl(*plan, text, REFERENCE, len(voices[0].codes), text_first=text_first) for text in TEXTS[:2]
    )
    same = [a == b for a, b in zip(one.text_ids, other.text_ids, strict=False)]
    assert shared(synthesizer) == same.index(False) > 0


def test_codes_and_samples_are_those_of_nothing_shared_whoever_overlaps(synthesizer, voices, monkeypatch):
    kinds = ({}, GREEDY, {"subtalker_temperature": 0.5, "top_k": 7}, {"text_first": True})
    requests = [
        {"text": TEXTS[at % 4], "voice": voices[at % 3], "seed": at, "max_frames": 2 + at % 5, **kinds[at // 3 % 4]}
        for at in range(24)
    ]
    with monkeypatch.context() as patch:
        patch.setattr(prefixes, "_MOST", 0)
        expected = [synthesizer.speak(**each) for each in requests]
    assert shared(synthesizer) == 0
    order = random.Random(0).sample(range(len(requests)), len(requests))
    with ThreadPoolExecutor(2 * SLOTS) as pool:
        found = pool.map(lambda at: synthesizer.speak(**requests[at]), order)
        for at, speech in zip(order, found, strict=True):
            np.testing.assert_array_equal(speech.codes, expected[at].codes)
            np.testing.assert_array_equal(speech.waveform, expected[at].waveform)
    assert shared(synthesizer) > 0
    blocks = synthesizer.engine.batch.blocks
    assert blocks.free == blocks.unreserved == blocks.count


def test_the_logits_of_a_prefill_are_the_same_bits_wherever_it_is_divided(synthesizer):
    """All but its last position; sharing rests on this, so a release of OpenVINO that changes it must be noticed."""
    from qwen3_tts_ov.batching import Seat

    batch, rng = synthesizer.engine.batch, np.random.default_rng(0)
    prefill = rng.standard_normal((75, synthesizer.model.config["talker_config"]["hidden_size"])).astype(np.float32)
    found = []
    for parts in ([75], [9, 66], [32, 43], [42, 33], [73, 2]):
        seat = Seat(batch, synthesizer.engine._request("speech_decoder"))
        for part in np.split(prefill, np.cumsum(parts)[:-1]):
            (result,) = batch._talker([(seat, part)])
        batch.clear(seat)
        found.append(result["logits"])
    for logits in found[1:]:
        np.testing.assert_array_equal(logits, found[0])


class Cache:
    """Two pools of twelve blocks of four positions, filled at random, with prefixes of them."""

    def __init__(self, dtype: type = np.float32) -> None:
        self.pools = [np.random.default_rng(at).random((12, 2, 4, 3)).astype(dtype) for at in range(2)]
        self.prefixes = Prefixes(self.pools)

    def values(self, blocks: list[int], count: int) -> np.ndarray:
        return np.stack([np.concatenate(pool[blocks], axis=1)[:, :count] for pool in self.pools])

    def learn(self, rows: bytes, blocks: list[int]) -> None:
        self.prefixes.learn(blocks, tuple(rows[at : at + 1] for at in range(len(rows))))

    def fill(self, rows: bytes, blocks: list[int]) -> int:
        return self.prefixes.fill(blocks, tuple(rows[at : at + 1] for at in range(len(rows))))


def test_a_prefix_that_ends_within_a_block_is_copied_and_nothing_beyond_it():
    cache = Cache()
    cache.learn(b"same voice, one text", [0, 1, 2, 3, 4])
    assert cache.fill(b"same voice, a third", [5, 6, 7, 8, 9]) == 0
    cache.learn(b"same voice, another", [0, 1, 2, 3, 4])
    before = cache.values([5, 6, 7, 8, 9], 20)
    assert cache.fill(b"same voice, some more", [5, 6, 7, 8, 9]) == 12
    after = cache.values([5, 6, 7, 8, 9], 20)
    np.testing.assert_array_equal(after[:, :, :12], cache.values([0, 1, 2], 12))
    np.testing.assert_array_equal(after[:, :, 12:], before[:, :, 12:])


def test_equal_prompts_leave_two_positions_to_compute_and_short_ones_all():
    cache = Cache()
    for _ in range(2):
        cache.learn(b"the whole prompt", [0, 1, 2, 3])
    assert cache.fill(b"the whole prompt", [4, 5, 6, 7]) == 14
    assert cache.fill(b"the whole", [4, 5, 6]) == 0


def test_the_prefixes_used_last_are_kept_up_to_the_bound_and_a_longer_one_replaces_its_beginning(monkeypatch):
    monkeypatch.setattr(prefixes, "_MOST", 20)
    cache = Cache()
    for text in (b"0123456789--", b"0123456789++", b"abcdefghij--", b"abcdefghij++"):
        cache.learn(text, [0, 1, 2])
    assert cache.fill(b"0123456789..", [3, 4, 5]) == 10
    for text in (b"ABCDEFGHIJ--", b"ABCDEFGHIJ++"):
        cache.learn(text, [0, 1, 2])
    assert [cache.fill(text, [3, 4, 5]) for text in (b"0123456789..", b"abcdefghij..", b"ABCDEFGHIJ..")] == [10, 0, 10]
    for text in (b"0123456789abcdefghij!!", b"0123456789abcdefghij??"):
        cache.learn(text, [0, 1, 2, 6, 7, 8])
    assert cache.fill(b"0123456789abcdefghij..", [3, 4, 5, 9, 10, 11]) == 20
    assert cache.fill(b"ABCDEFGHIJ..", [3, 4, 5]) == 0


def test_a_cache_of_less_precision_than_the_arithmetic_is_not_shared():
    cache = Cache(np.float16)
    for _ in range(2):
        cache.learn(b"the whole prompt", [0, 1, 2, 3])
    assert cache.fill(b"the whole prompt", [4, 5, 6, 7]) == 0
