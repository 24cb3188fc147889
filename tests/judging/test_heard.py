"""The packaged voice, heard by a recogniser where speech has seams: pieces of a long text, chunks, seeds, limits."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.judging.scorers import SCORERS, Material, Spoken, at_rate, word_error
from pipeline.stage import configuration
from qwen3_tts_ov import Bundle, Synthesizer, text

pytestmark = [
    pytest.mark.prove,
    pytest.mark.skipif(bool(SCORERS["word_error"].lacks()), reason="no recogniser"),
]
CONF = configuration().score
SENTENCES = list(CONF.texts.english[:20])
STORY = " ".join(SENTENCES)


@pytest.fixture(scope="module")
def synthesizer(artifact) -> Synthesizer:
    bundle: Path = artifact("bundle", "mini-custom-voice", "int8")
    return Synthesizer(Bundle.load(bundle), cache_dir=False)


def heard(synthesizer: Synthesizer, *said: tuple[str, np.ndarray]) -> float:
    """The word error rate of texts and their waveforms."""
    rate = synthesizer.model.sample_rate
    spoken = {str(n): Spoken("english", words, at_rate(wave, rate)) for n, (words, wave) in enumerate(said)}
    found = word_error(Material(spoken))["word_error_english"]
    assert isinstance(found, float)
    return found


@pytest.fixture(scope="module")
def one_by_one(synthesizer) -> float:
    """The word error rate of the sentences spoken each alone, to which all else is compared."""
    return heard(
        synthesizer,
        *((words, synthesizer.speak(words, language="english", seed=0).waveform) for words in SENTENCES),
    )


def test_a_long_text_is_understood_like_its_sentences(synthesizer, one_by_one, record_property):
    whole = synthesizer.speak(STORY, language="english", seed=0)
    assert whole.stop_reason == "eos"
    error = heard(synthesizer, (STORY, whole.waveform))
    record_property("percent of words wrong in a text of 20 sentences", round(100 * error, 1))
    assert error <= one_by_one + 0.05
    streamed = np.concatenate(list(synthesizer.stream(STORY, language="english", seed=0)))
    np.testing.assert_array_equal(streamed, whole.waveform)


@pytest.mark.parametrize("first_chunk", [1, 7, 64])
def test_no_word_is_lost_at_the_borders_of_chunks(synthesizer, one_by_one, first_chunk):
    said = [
        (words, np.concatenate(list(synthesizer.stream(words, language="english", seed=0, first_chunk=first_chunk))))
        for words in SENTENCES
    ]
    assert heard(synthesizer, *said) == pytest.approx(one_by_one, abs=0.02)


def test_every_seed_says_the_words_in_its_own_way(synthesizer, one_by_one):
    said = [synthesizer.speak(SENTENCES[0], language="english", seed=seed) for seed in range(10)]
    assert heard(synthesizer, *((SENTENCES[0], speech.waveform) for speech in said)) <= max(0.2, 2 * one_by_one)
    assert len({speech.codes.tobytes() for speech in said}) > 1


def test_the_runaway_guard_cuts_no_speech_that_ends(synthesizer):
    """It allows four times a slow reader's time: sound speech stays below half of that."""
    rate = synthesizer.model.sample_rate / synthesizer.model.samples_per_frame
    for words in SENTENCES:
        speech = synthesizer.speak(words, language="english", seed=0)
        assert speech.stop_reason == "eos"
        assert len(speech.codes) < text.frame_budget(words, rate) / 2


def test_a_limit_cuts_the_end_and_nothing_before_it(synthesizer):
    whole = synthesizer.speak(SENTENCES[0], language="english", seed=0)
    cut = synthesizer.speak(SENTENCES[0], language="english", seed=0, max_frames=len(whole.codes) // 2)
    assert cut.stop_reason == "max_frames"
    np.testing.assert_array_equal(cut.codes, whole.codes[: len(cut.codes)])
