"""Prompts as data: valid requests, and the rows of their prompts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from pipeline.bundle import write_tokenizer
from pipeline.checkpoints import synthetic
from qwen3_tts_ov import RequestError, prompt
from qwen3_tts_ov.prompt import NONE, REFERENCE, SPEAKER

PAD, BOS, EOS = 151671, 151672, 151673
THINK, NO_THINK, THINK_BOS, THINK_EOS, CODEC_PAD, CODEC_BOS = 2154, 2155, 2156, 2157, 2148, 2149


def config(kind: str, size: str = "1.7b") -> dict[str, Any]:
    return synthetic.configurations(size, kind, {}, {})[0]


@pytest.fixture(scope="module")
def tokenize(artifact: Callable[..., Path], tmp_path_factory) -> Callable[[str], list[int]]:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(artifact("download", "tiny-base"), path)
    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: tokenizer.encode(text).ids


def test_text_first(tokenize):
    planned = prompt.custom_voice(config("custom_voice"), tokenize, "Hi there", "Vivian", "English")
    text = tokenize("Hi there")
    role = tokenize("<|im_start|>assistant\n")
    assert planned.text_ids == (*role, *[PAD] * 5, BOS, *text, EOS, PAD)
    control = (THINK, THINK_BOS, 2050, THINK_EOS, 3065, CODEC_PAD)
    assert planned.codec_ids == (*[NONE] * 3, *control, *[CODEC_PAD] * (len(text) + 1), CODEC_BOS)
    assert planned.trailing_text_ids == ()
    assert planned.text_id_after(0) == planned.text_id_after(99) == PAD


def test_text_beside_audio(tokenize):
    planned = prompt.clone_x_vector(config("base"), tokenize, "Hi there")
    first, *rest = tokenize("Hi there")
    assert planned.codec_ids[3:] == (NO_THINK, THINK_BOS, THINK_EOS, SPEAKER, CODEC_PAD, CODEC_BOS)
    assert planned.text_ids[-1] == first
    assert [planned.text_id_after(frame) for frame in range(len(rest) + 3)] == [*rest, EOS, PAD, PAD]


def test_a_reference_is_aligned_with_its_text(tokenize):
    planned = prompt.clone_icl(config("base"), tokenize, "Hi there", "So be it", 2)
    said = [*tokenize("So be it"), *tokenize("Hi there"), EOS]
    assert planned.codec_ids[-3:] == (CODEC_BOS, REFERENCE, REFERENCE)
    assert list(planned.text_ids[-3:] + planned.trailing_text_ids) == said


@pytest.mark.parametrize(("language", "spoken"), [("auto", 2062), ("Chinese", 2062), ("English", 2050)])
def test_a_dialect_speaker_uses_the_dialect_in_chinese_and_auto(tokenize, language: str, spoken: int):
    planned = prompt.custom_voice(config("custom_voice"), tokenize, "好。", "eric", language)
    assert planned.codec_ids[3:7] == (THINK, THINK_BOS, spoken, THINK_EOS)


def test_names_are_case_insensitive(tokenize):
    plans = [prompt.custom_voice(config("custom_voice"), tokenize, "Hi", *names)
             for names in (("vivian", "english"), ("VIVIAN", "English"))]  # fmt: skip
    assert plans[0] == plans[1]


def test_an_instruction_comes_first(tokenize):
    planned = prompt.voice_design(config("voice_design"), tokenize, "Hi", "Calm.")
    instruction = tokenize("<|im_start|>user\nCalm.<|im_end|>\n")
    assert list(planned.text_ids[: len(instruction)]) == instruction
    assert set(planned.codec_ids[: len(instruction)]) == {NONE}
    plain = prompt.voice_design(config("voice_design"), tokenize, "Hi", None)
    assert plain.text_ids == planned.text_ids[len(instruction) :]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            lambda t: prompt.custom_voice(config("custom_voice"), t, "Hi", "vivian", "Klingon"),
            "unknown language.*english",
        ),
        (lambda t: prompt.custom_voice(config("custom_voice"), t, " \n", "vivian"), "no text to speak"),
        (lambda t: prompt.clone_icl(config("base"), t, "Hi", "", 2), "reference text is empty"),
        (lambda t: prompt.clone_icl(config("base"), t, "Hi", "So", 0), "no frames"),
    ],
)
def test_an_unspeakable_text_is_refused_in_one_line(tokenize, plan, message: str):
    with pytest.raises(RequestError, match=message) as raised:
        plan(tokenize)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("language", ["auto", "beijing_dialect"])
def test_every_position_has_a_text_or_a_codec_id(tokenize, language: str):
    for planned in (
        prompt.custom_voice(config("custom_voice"), tokenize, "好。", "vivian", language, instruct="Calm."),
        prompt.custom_voice(config("custom_voice"), tokenize, "好。", "vivian", language, text_first=False),
    ):
        assert len(planned.text_ids) == len(planned.codec_ids) == len(planned)
        assert NONE not in planned.text_ids
