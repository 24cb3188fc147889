"""Long texts: where they are cut, and how many frames a text may take."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_tts_ov import RequestError, text


@pytest.mark.parametrize(
    ("whole", "pieces"),
    [
        ("One is here. Two is here! Three?", ["One is here.", "Two is here!", "Three?"]),
        ('He said "It is done." Then he left.', ['He said "It is done."', "Then he left."]),
        ('She came! "Really?" he asked.', ["She came!", '"Really?" he asked.']),
        ("Meet Dr. Wu at 3.14 p.m. today. Then J. S. Bach.", ["Meet Dr. Wu at 3.14 p.m. today.", "Then J. S. Bach."]),
        ("今天天气很好。我们去公园吧！好不好？", ["今天天气很好。", "我们去公园吧！", "好不好？"]),
        ("彼は「行こう。」と言った。彼女は笑った。", ["彼は「行こう。」", "と言った。", "彼女は笑った。"]),
        ("Привет всем. Как дела? Хорошо.", ["Привет всем.", "Как дела?", "Хорошо."]),
        ("नमस्ते दुनिया। आप कैसे हैं।", ["नमस्ते दुनिया।", "आप कैसे हैं।"]),
        ("مرحبا بالعالم؟ كيف حالك", ["مرحبا بالعالم؟", "كيف حالك"]),
        ("A heading\nA paragraph here", ["A heading", "A paragraph here"]),
        ("Wait for it... ... Now it comes.", ["Wait for it...", "...", "Now it comes."]),
    ],
)
def test_sentences_of_every_script_end_where_readers_pause(whole, pieces):
    assert [sentence.strip() for sentence in text.sentences(whole)] == pieces


def test_a_short_text_is_unchanged():
    assert text.split("  Two lines.\n\nOne piece.  ", 30) == ["  Two lines.\n\nOne piece.  "]


def test_sentences_are_packed_together_while_they_fit():
    pieces = text.split("This is one sentence. " * 40, 10)
    assert {piece.count(".") for piece in pieces[:-1]} == {6}


def test_a_sentence_over_the_limit_is_cut_at_clauses_then_words_then_anywhere():
    assert text.split("first part here, second part here, third part", 1.9) == [
        "first part here,",
        "second part here,",
        "third part",
    ]
    assert text.split("one two three four", 0.9) == ["one two three", "four"]
    assert "".join(text.split("天" * 50, 2)) == "天" * 50


@settings(deadline=None)
@given(st.text(max_size=300), st.floats(1, 20))
def test_no_character_is_lost_and_every_piece_fits(whole, limit):
    pieces = text.split(whole, limit)
    assert "".join("".join(pieces).split()) == "".join(whole.split())
    # Punctuation that cannot be spoken alone stays with its neighbour, whatever the limit.
    assert all(text.seconds("".join(filter(str.isalnum, piece))) <= limit for piece in pieces)


@pytest.mark.parametrize("whole", ["A full stop. " * 20_000, "a" + "." * 200_000, "a" + "! " * 100_000, "天" * 100_000])
def test_a_huge_text_of_any_form_is_cut_without_loss(whole):
    assert sum(len(piece.replace(" ", "")) for piece in text.split(whole, 30)) == len(whole.replace(" ", ""))


@pytest.mark.parametrize(
    ("spoken", "honest"),
    [
        ("Hi.", 0.5),
        ("The quick brown fox jumps over the lazy dog, and then it rests for a while in the sun.", 6),
        ("今天天气很好，我们去公园散步吧。", 4),
        ("Call 0049 30 901820 now.", 9),
        ("123456789", 8),
        ("안녕하세요, 만나서 반갑습니다.", 4),
    ],
)
def test_the_frame_budget_allows_slow_speech_but_is_finite(spoken, honest):
    budget = text.frame_budget(spoken, 12.5) / 12.5
    assert honest * 2 < budget < honest * 8 + 10


@pytest.mark.parametrize("nothing", ["", "   ", "\n", "...", "?!", "\u200b", "—"])
def test_a_text_without_anything_to_speak_is_refused(nothing):
    with pytest.raises(RequestError, match="nothing to speak"):
        text.check(nothing)


def test_half_a_surrogate_pair_is_refused_before_tokenization():
    with pytest.raises(RequestError, match="surrogate"):
        text.check("ok \ud83d")
