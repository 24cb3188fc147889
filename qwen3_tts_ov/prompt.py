"""What the talker is asked to speak, as data: two aligned rows of ids.

Every prefill position of Qwen3-TTS is the sum of a text-side and a codec-side embedding. So a prompt needs no
tensors: it is one row of text ids and one row of codec ids, with placeholders for a speaker vector and for reference
frames. The holder of the embedding tables (the PyTorch networks, the OpenVINO runtime) looks the rows up and adds
them. The rules are those of the official package: `Qwen3TTSForConditionalGeneration.generate` and
`generate_icl_prompt` in qwen_tts/core/models/modeling_qwen3_tts.py. Whether a checkpoint can serve a request is
checked before, in request.py.

There are two text modes. *Text first*: the whole text is in the prefill (the official `non_streaming_mode=True`).
*Text beside audio*: the prefill holds the first text token, and each generated frame is fed one more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import names
from .errors import RequestError

NONE = -1  # nothing on this side
SPEAKER = -2  # codec side: the speaker vector (x-vector)
REFERENCE = -3  # codec side: the next reference frame, the sum of its code embeddings

Tokenize = Callable[[str], list[int]]
Config = Mapping[str, Any]  # a checkpoint's parsed config.json

# Lengths, in tokens, of what the chat template puts around a text: "<|im_start|>assistant\n" before it,
# "<|im_end|>\n<|im_start|>assistant\n" (or only "<|im_end|>\n" for a reference) after it.
_ROLE, _TEXT_END, _REFERENCE_END = 3, 5, 2


@dataclass(frozen=True)
class Prompt:
    """One utterance's prefill and the text that is fed while it is spoken.

    Position i of the prefill is `text_embedding(text_ids[i]) + codec_embedding(codec_ids[i])`; `NONE` adds nothing,
    `SPEAKER` stands for the x-vector, and the k-th `REFERENCE` for reference frame k. The talker input that follows
    generated frame n adds `text_embedding(trailing_text_ids[n])` or, past the end, that of `pad_text_id`.
    """

    text_ids: tuple[int, ...]
    codec_ids: tuple[int, ...]
    trailing_text_ids: tuple[int, ...]
    pad_text_id: int

    def __len__(self) -> int:
        return len(self.text_ids)

    def text_id_after(self, frame: int) -> int:
        """The text id that the talker hears beside generated frame `frame` (counted from 0)."""
        trailing = self.trailing_text_ids
        return trailing[frame] if frame < len(trailing) else self.pad_text_id

    def after(self, frames: int) -> Prompt:
        """The prompt from which the model speaks on when it has spoken so many frames: they are `REFERENCE` frames."""
        return Prompt(
            (*self.text_ids, *map(self.text_id_after, range(frames))),
            (*self.codec_ids, *[REFERENCE] * frames),
            self.trailing_text_ids[frames:],
            self.pad_text_id,
        )


def custom_voice(
    config: Config,
    tokenize: Tokenize,
    text: str,
    speaker: str,
    language: str = "auto",
    instruct: str | None = None,
    text_first: bool = True,
) -> Prompt:
    """A voice of the checkpoint's `spk_id` table, optionally steered by an instruction.

    Raises RequestError for an unknown voice or language or an empty text.
    """
    talker = config["talker_config"]
    name = names.find(speaker, talker["spk_id"])
    if name is None:
        known = sorted(talker["spk_id"])
        near = names.near(speaker, known)
        raise RequestError(f"unknown voice {speaker!r}{near}; this checkpoint has: {', '.join(known)}")
    dialect = talker.get("spk_is_dialect", {}).get(name) or None
    control = _codec_control(talker, language_id(talker, language, dialect), talker["spk_id"][name])
    return _assemble(config, tokenize, text, control, instruct, text_first)


def voice_design(
    config: Config,
    tokenize: Tokenize,
    text: str,
    instruct: str | None = None,
    language: str = "auto",
    text_first: bool = True,
) -> Prompt:
    """A voice described in words by `instruct`. Raises RequestError as `custom_voice` does."""
    talker = config["talker_config"]
    control = _codec_control(talker, language_id(talker, language), None)
    return _assemble(config, tokenize, text, control, instruct, text_first)


def clone_x_vector(
    config: Config, tokenize: Tokenize, text: str, language: str = "auto", text_first: bool = False
) -> Prompt:
    """A voice given by a speaker vector alone. Raises RequestError as `custom_voice` does."""
    talker = config["talker_config"]
    control = _codec_control(talker, language_id(talker, language), SPEAKER)
    return _assemble(config, tokenize, text, control, None, text_first)


def clone_icl(
    config: Config,
    tokenize: Tokenize,
    text: str,
    reference_text: str,
    reference_frames: int,
    language: str = "auto",
    text_first: bool = False,
) -> Prompt:
    """A voice given by a speaker vector, a reference recording's frames and its transcript (in-context learning).

    The model goes on as if it had been asked for both texts and had spoken the recording. `reference_frames` is the
    number of its 80 ms frames. Raises RequestError as `custom_voice` does, and for an empty reference.
    """
    if reference_frames < 1:
        raise RequestError("the reference recording has no frames")
    talker = config["talker_config"]
    reference = tokenize(f"<|im_start|>assistant\n{reference_text}<|im_end|>\n")[_ROLE:-_REFERENCE_END]
    if not reference:
        raise RequestError("the reference text is empty; give what the recording says, or clone by x-vector alone")
    control = _codec_control(talker, language_id(talker, language), SPEAKER)
    return _assemble(config, tokenize, text, control, None, text_first, reference).after(reference_frames)


def _assemble(
    config: Config,
    tokenize: Tokenize,
    text: str,
    control: list[int],
    instruct: str | None,
    text_first: bool,
    before: Sequence[int] = (),
) -> Prompt:
    """Instruction, role, codec control tokens and text, to which the text ids `before` belong too."""
    talker = config["talker_config"]
    eos, pad = config["tts_eos_token_id"], config["tts_pad_token_id"]
    role, spoken = _split_text(tokenize, text)
    spoken = [*before, *spoken]
    rows = _Rows(config).instruct(instruct, tokenize).control(role, control)
    if text_first:
        text_row = [*spoken, eos]
        rows.add(text_row, [talker["codec_pad_id"]] * len(text_row))
        rows.add([pad], [talker["codec_bos_id"]])
        return rows.prompt(trailing=[])
    rows.add(spoken[:1], [talker["codec_bos_id"]])
    return rows.prompt(trailing=[*spoken[1:], eos])


class _Rows:
    """The two rows under construction."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.text: list[int] = []
        self.codec: list[int] = []

    def add(self, text: list[int], codec: list[int]) -> None:
        assert len(text) == len(codec)
        self.text += text
        self.codec += codec

    def instruct(self, instruct: str | None, tokenize: Tokenize) -> _Rows:
        if instruct:
            ids = tokenize(f"<|im_start|>user\n{instruct}<|im_end|>\n")
            self.add(ids, [NONE] * len(ids))
        return self

    def control(self, role: list[int], control: list[int]) -> _Rows:
        """The role tokens, then all control tokens except the last (codec_bos), which opens the text or the audio."""
        pad, bos = self.config["tts_pad_token_id"], self.config["tts_bos_token_id"]
        self.add(role, [NONE] * len(role))
        self.add([pad] * (len(control) - 2) + [bos], control[:-1])
        return self

    def prompt(self, trailing: list[int]) -> Prompt:
        return Prompt(tuple(self.text), tuple(self.codec), tuple(trailing), self.config["tts_pad_token_id"])


def _split_text(tokenize: Tokenize, text: str) -> tuple[list[int], list[int]]:
    """Role ids and text ids. The template is tokenised whole, as officially, since a text may merge with its edges."""
    ids = tokenize(f"<|im_start|>assistant\n{text}<|im_end|>\n<|im_start|>assistant\n")
    spoken = ids[_ROLE:-_TEXT_END]
    if not text.strip() or not spoken:
        raise RequestError("there is no text to speak")
    return ids[:_ROLE], spoken


def language_id(talker: Config, language: str, dialect: str | None = None) -> int | None:
    """A language's codec id, None for `auto`. A dialect speaker speaks the dialect in `chinese` and in `auto`.

    `language` is a name or a code, see `names.find_language`. Raises RequestError for an unknown one.
    """
    known = talker["codec_language_id"]
    name = names.find_language(str(language), ["auto", *known])
    if name is None:
        near = names.near(str(language), known)
        raise RequestError(
            f"unknown language {language!r}{near}; this checkpoint has: auto, {', '.join(sorted(known))}"
        )
    if dialect is not None and name in ("auto", "chinese"):
        return known[dialect]
    return None if name == "auto" else known[name]


def _codec_control(talker: Config, language: int | None, speaker: int | None) -> list[int]:
    """The codec-side control tokens: language tag, speaker (a codec id or SPEAKER), pad, bos."""
    if language is None:
        tag = [talker["codec_nothink_id"], talker["codec_think_bos_id"], talker["codec_think_eos_id"]]
    else:
        tag = [talker["codec_think_id"], talker["codec_think_bos_id"], language, talker["codec_think_eos_id"]]
    voice = [] if speaker is None else [speaker]
    return [*tag, *voice, talker["codec_pad_id"], talker["codec_bos_id"]]
