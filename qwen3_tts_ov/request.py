"""What a model can be asked for: the arguments of a request, checked here and nowhere else.

Nothing needs to be compiled for it, so the command line and the server refuse a bad request before they do any work.
"""

from __future__ import annotations

import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeGuard

import numpy as np

from . import names, prompt, recording, text
from .errors import RequestError
from .model import Model
from .sampling import Sampling
from .voice import ENDING, VoicePrompt

# A speaker's name or, to clone: a recording from any source, a saved voice prompt's path, a VoicePrompt.
Voice = recording.Source | VoicePrompt

MOST_FRAMES = 1_000_000  # 22 hours


class Options(TypedDict, total=False):
    """The options of a request. Sampling names and defaults are those of the checkpoint's generation_config.json."""

    seed: int | None  # fixes talker and code predictor; drawn, and reported in the outcome, when left out
    text_first: bool  # whether the whole text comes before the audio or is fed alongside it; see `text_first` below
    max_frames: int | None  # replaces the limit set by the text's length; for all pieces of a long text together
    pieces_ahead: int  # of a long text, spoken while one is heard; by default what the slots allow, 0 is one by one
    do_sample: bool  # False: always the likeliest code, as with subtalker_dosample for the code predictor
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    subtalker_dosample: bool
    subtalker_temperature: float
    subtalker_top_k: int
    subtalker_top_p: float


@dataclass(frozen=True)
class Fields:
    """The names of a request's arguments in error messages; the command line and the server have their own."""

    voice: str = "voice"
    instruct: str = "instruct"
    reference_text: str = "reference_text"


API = Fields()


def check_request(
    model: Model,
    spoken: str,
    voice: Voice | None,
    instruct: str | None,
    language: str,
    reference_text: str | None,
    fields: Fields = API,
) -> None:
    """Raises RequestError for arguments that this kind of model cannot serve or that do not go together.

    Raises AudioError when the voice names a file that does not exist, or a voice prompt that cannot be read.
    """
    check_text(model, spoken, "the text")
    prompt.language_id(model.config["talker_config"], language)
    if reference_text is not None and model.kind != "base":
        raise RequestError(f"{fields.reference_text} belongs to a recording, and only a base bundle clones one")
    if model.kind == "base":
        _check_clone(model, voice, instruct, reference_text, fields)
    elif model.kind == "voice_design":
        _check_design(voice, instruct, fields)
    else:
        _check_speaker(model, voice, instruct, fields)
    if instruct:
        check_text(
            model, instruct, f"the {'description of the voice' if model.kind == 'voice_design' else 'instruction'}"
        )
    if reference_text is not None:
        check_text(model, reference_text, "the reference text")


def takes_instructions(model: Model) -> bool:
    """Whether a model can be told in words how to speak, or as whom."""
    return model.kind == "voice_design" or (
        model.kind == "custom_voice" and model.config.get("tts_model_size") != "0b6"
    )


def check_recording(model: Model, reference_text: str | None) -> None:
    """Raises RequestError unless the model can clone, and the text of a recording, if it is given, can be spoken."""
    if model.kind != "base":
        raise RequestError(f"a {model.kind} bundle cannot clone a recording; load a base bundle")
    if reference_text is not None:
        check_text(model, reference_text, "the reference text")


def sampling(model: Model, options: Options) -> tuple[Sampling, Sampling]:
    """How talker and code predictor are to sample. Raises RequestError for an unknown option or one out of range."""
    if unknown := set(options) - set(Options.__annotations__):
        known = Options.__annotations__
        near = names.near(min(unknown), known)
        raise RequestError(f"unknown option {', '.join(sorted(unknown))}{near}; known: {', '.join(known)}")
    if (seed := options.get("seed")) is not None:
        check_whole("seed", seed, 0, 2**63 - 1)
    if (max_frames := options.get("max_frames")) is not None:
        check_whole("max_frames", max_frames, 1, MOST_FRAMES)
    check_whole("pieces_ahead", options.get("pieces_ahead", 0), 0, MOST_FRAMES)
    try:
        generation = {**model.generation, **options}
        talker, code_predictor = Sampling.talker(generation), Sampling.code_predictor(generation)
    except (ValueError, TypeError) as error:
        raise RequestError(str(error)) from None
    _check_candidates(model, code_predictor)
    return talker, code_predictor


def text_first(model: Model) -> bool:
    """Whether the whole text comes before the audio, where a request does not say: as generation_config.json does.

    Where that says nothing either, before it, except when cloning. The key is the official package's name of this
    choice. A model whose tokens are single bytes needs it: beside the audio it would read 12.5 letters a second, and
    people speak as many. Raises RequestError for what is neither true nor false.
    """
    chosen = model.generation.get("non_streaming_mode", model.kind != "base")
    if not isinstance(chosen, bool):
        raise RequestError(f"the model's generation_config.json: non_streaming_mode is {chosen!r}, not true or false")
    return chosen


def _check_candidates(model: Model, code_predictor: Sampling) -> None:
    """Raises RequestError where codes are to be drawn from more candidates than the model's graph holds."""
    most, top_k = model.sizes and model.sizes.candidates, code_predictor.top_k
    if most and code_predictor.do_sample and not 0 < top_k <= most:
        raise RequestError(
            f"subtalker_top_k must be 1 to {most} with this bundle, the candidates of its graph; not {top_k}"
        )


def check_text(model: Model, value: str, name: str) -> None:
    """Raises RequestError unless a text, called `name` in the message, can be spoken and holds no control token."""
    text.check(value, name)
    value = text.clean(value)
    special = (token.content for token in model.tokenizer.get_added_tokens_decoder().values())
    if found := next((token for token in special if token in value), None):
        raise RequestError(f"{name} holds the control token {found}; take it out")


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """Raises RequestError unless a value is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise RequestError(f"{name} must be a whole number of at least {least}, not {reprlib.repr(value)}")
    if value > most:
        raise RequestError(f"{name} must be at most {most}, not {reprlib.repr(value)}")


def is_saved(voice: Voice) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a voice is the path of a saved voice prompt."""
    path = recording.path_of(voice)
    return path is not None and path.suffix.lower() == ENDING


def _check_speaker(model: Model, voice: Voice | None, instruct: str | None, fields: Fields) -> None:
    known = ", ".join(model.speakers)
    if voice is not None and not isinstance(voice, str):
        raise RequestError(f"a custom_voice bundle speaks with its own voices: {known}; only a base bundle clones one")
    if voice is not None and names.find(voice, model.speakers) is None:
        clones = "; only a base bundle clones a recording" if Path(voice).suffix else ""
        near = names.near(voice, model.speakers)
        raise RequestError(f"unknown voice {voice!r}{near}; this bundle has: {known}{clones}")
    if instruct and not takes_instructions(model):
        raise RequestError(f"0.6B models do not follow an instruction; leave {fields.instruct} out or use a 1.7B one")


def _check_design(voice: Voice | None, instruct: str | None, fields: Fields) -> None:
    if voice is not None:
        raise RequestError(
            f"a voice_design bundle has no voices; leave {fields.voice} out and describe one with {fields.instruct}"
        )
    if not instruct:
        raise RequestError(f"a voice_design bundle needs a voice in words; describe it with {fields.instruct}")


def _check_clone(
    model: Model, voice: Voice | None, instruct: str | None, reference_text: str | None, fields: Fields
) -> None:
    if voice is None:
        raise RequestError(
            f"a base bundle clones a voice; give a recording or a saved voice prompt with {fields.voice}"
        )
    known = (str, os.PathLike, tuple, bytes, bytearray, memoryview, VoicePrompt)
    if not isinstance(voice, known) and not hasattr(voice, "read"):
        raise RequestError(
            f"{fields.voice} must be a path, a file, bytes, (samples, rate) or a VoicePrompt, "
            f"not {type(voice).__name__}"
        )
    if isinstance(voice, (str, os.PathLike)):
        recording.check_named(voice)
    if instruct:
        raise RequestError(f"a base bundle speaks as its recording does; leave {fields.instruct} out")
    if reference_text is not None and (isinstance(voice, VoicePrompt) or is_saved(voice)):
        raise RequestError(f"a voice prompt already holds its reference text; leave {fields.reference_text} out")
    saved = VoicePrompt.load(voice) if is_saved(voice) else voice
    if isinstance(saved, VoicePrompt):
        _check_prompt(model, saved)


def _check_prompt(model: Model, voice: VoicePrompt) -> None:
    """Raises RequestError for a voice prompt that another model made."""
    talker = model.config["talker_config"]
    width, codebook = talker["hidden_size"], talker["code_predictor_config"]["vocab_size"]
    if voice.x_vector.shape != (width,):
        raise RequestError(
            f"the voice prompt has {voice.x_vector.size} numbers where this model takes {width}; it was made with a "
            "model of another size, make it again with this one"
        )
    if (codes := voice.codes) is not None and (
        codes.shape[1:] != (talker["num_code_groups"],) or not 0 <= codes.min() <= codes.max() < codebook
    ):
        raise RequestError("the voice prompt's codes are not this model's; make it again with this one")
