"""A voice that is drawn stays one through a long text: its pieces go on after the same opening."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.graphs.teacher_forcing import EXACT
from qwen3_tts_ov import Bundle, Synthesizer
from qwen3_tts_ov.generation import Opening, Request, Utterance
from qwen3_tts_ov.prompt import REFERENCE, Prompt
from qwen3_tts_ov.sampling import Sampling
from qwen3_tts_ov.session import Session

LONG = (
    "One sentence here. Another one there! And a third? A fourth comes after it. The fifth one. And the last is this."
)
VOICE = "An old man, slow and hoarse."
FRAMES = 6  # the most of a generation, which random weights do not end before


@pytest.fixture(scope="module")
def synthesizer(artifact: Callable[..., Path], model_cache: Path) -> Callable[[int], Synthesizer]:
    """`synthesizer(4)`: one with so many slots, in exact arithmetic, in which one slot and several agree."""

    @cache
    def get(slots: int) -> Synthesizer:
        bundle = Bundle.load(artifact("bundle", "tiny-voice-design", "int8"))
        return Synthesizer(bundle, properties={"default": EXACT}, cache_dir=model_cache, slots=slots)

    return get


@pytest.fixture
def limited(synthesizer: Callable[[int], Synthesizer], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Synthesizer]:
    """The same, where a generation has at most 4 seconds of text, and few frames."""

    def get(slots: int) -> Synthesizer:
        made = synthesizer(slots)
        monkeypatch.setitem(made.model.generation, "longest_text_seconds", 4.0)
        monkeypatch.setitem(made.model.generation, "max_new_tokens", FRAMES)
        return made

    return get


def recorded(synthesizer: Synthesizer) -> tuple[Synthesizer, list[tuple[Prompt, np.ndarray | None]]]:
    """The synthesizer, and what its sessions will be asked to embed: a prompt, and the frames spoken before it."""
    asked: list[tuple[Prompt, np.ndarray | None]] = []

    class Recorder(Session):
        def embed(self, prompt: Prompt, voice: Any, spoken: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
            asked.append((prompt, spoken))
            return super().embed(prompt, voice, spoken)

    return synthesizer.using(Recorder), asked


@pytest.mark.parametrize("text_first", [True, False])
def test_later_pieces_go_on_after_the_first_in_whatever_order_they_are_spoken(limited, text_first):
    loaded, asked = recorded(limited(4))
    said = {"instruct": VOICE, "seed": 3, "text_first": text_first}
    one_by_one = loaded.speak(LONG, **said, pieces_ahead=0)
    (opening, nothing), *others = asked
    assert (nothing, REFERENCE in opening.codec_ids) == (None, False)
    assert len(others) >= 3, "pieces to be spoken at once"
    for prompt, spoken in others:
        assert prompt.text_ids[: len(opening) - 2] == opening.text_ids[:-2], "all but its end"
        assert prompt.codec_ids[-FRAMES:] == (REFERENCE,) * FRAMES
        np.testing.assert_array_equal(spoken, others[0][1])
    asked.clear()
    ahead = loaded.speak(LONG, **said)
    np.testing.assert_array_equal(ahead.codes, one_by_one.codes)
    assert asked[0][0] == opening, "nothing begins before it"
    assert {prompt for prompt, _ in asked[1:]} == {prompt for prompt, _ in others}
    for _, spoken in asked[1:]:
        np.testing.assert_array_equal(spoken, others[0][1])


def test_one_slot_and_four_whole_and_streamed_and_among_others_speak_the_same_codes(limited):
    say = {"text": LONG, "instruct": VOICE, "seed": 5}
    expected = limited(1).speak(**say)
    np.testing.assert_array_equal(limited(4).speak(**say).codes, expected.codes)
    for speech in limited(4).speak_many([say, say | {"seed": 6}, say]):
        assert np.array_equal(speech.codes, expected.codes) == (speech.seed == 5)
    with limited(4).stream(**say) as stream:
        waveform = np.concatenate(list(stream))
        np.testing.assert_array_equal(stream.outcome.codes, expected.codes)
    assert len(waveform) == expected.samples


def test_a_text_within_the_limit_has_no_opening(limited):
    loaded, asked = recorded(limited(4))
    loaded.speak("One sentence here.", instruct=VOICE, max_frames=2)
    assert [spoken for _, spoken in asked] == [None]


def test_a_prompt_after_some_frames_is_where_the_model_had_got_to(synthesizer):
    """The greedy choice after five frames that are given is that after five of its own."""
    loaded, greedy = synthesizer(1), Sampling(do_sample=False, repetition_penalty=1.0)
    for text_first in (True, False):
        plan = loaded._plan(LONG, None, None, VOICE, "auto", text_first)
        request = Request([], None, 0, greedy, greedy, None, loaded.model.positions, continued=True)
        config = loaded.model.config
        with loaded.engine.session() as session:
            whole = Utterance(session, config, request, plan, 12)
            codes = np.stack(list(whole))
            opening = Opening(codes[:5], np.concatenate(whole.embeddings[:5]))
            rest = np.stack(list(Utterance(session, config, request, plan.after(5), 7, opening)))
        np.testing.assert_array_equal(rest, codes[5:])


def test_an_opening_leaves_the_others_their_positions(limited, monkeypatch):
    loaded, asked = recorded(limited(1))
    monkeypatch.setitem(loaded.model.generation, "max_new_tokens", 1_000)
    monkeypatch.setitem(loaded.model.config["talker_config"], "max_position_embeddings", 120)
    speech = loaded.speak(LONG, instruct=VOICE, seed=1)
    assert len(asked) > 2
    assert max(len(prompt) for prompt, _ in asked) < 120 * 0.9
    assert len(speech.codes) > 10 * len(asked)
