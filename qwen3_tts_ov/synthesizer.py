"""Text to speech from a bundle: three ways to name a voice, each whole or streamed."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypedDict, Unpack

import numpy as np

from . import audio, prompt, text
from .bundle import Bundle
from .engine import Engine
from .errors import RequestError
from .generation import Request, chunk_sizes, speak
from .prompt import Prompt, PromptError
from .sampling import Sampling
from .speech import Speech, SpeechStream
from .voice import VoicePrompt

PIECE_SECONDS = 30.0  # a slow reader's time for what is spoken in one go; longer texts are cut at sentences
REFERENCE_SILENCE_SECONDS = 0.5  # after a reference, so that its tail does not leak into the speech
FIRST_CHUNK = 4  # frames


class Options(TypedDict, total=False):
    """What every request takes. Sampling names and defaults are those of the checkpoint's generation_config.json."""

    seed: int  # fixes talker and code predictor; drawn, and told in the outcome, when left out
    text_first: bool  # the whole text before the audio (default, but not for clones), or fed beside it
    max_frames: int  # replaces the limit from the text's length; for all pieces of a long text together
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    subtalker_dosample: bool
    subtalker_temperature: float
    subtalker_top_k: int
    subtalker_top_p: float


class Synthesizer:
    """A loaded bundle, ready to speak. Threads may share it; each request then has infer requests of its own.

    `device` is an OpenVINO device (`CPU`, `GPU`, `NPU`, `AUTO`, `HETERO:GPU,CPU`), or a mapping from component to
    device. `properties` maps a component to compile properties, over what the bundle recommends for the device. In both
    the key `default` means every other component. Compiled graphs are kept in `cache_dir`, by default
    in the user's cache so that the second start is fast; False keeps none.

    A batch of texts is a call for each, from as many threads as there are to be at work: they take turns on the device
    unless it was compiled for several at once (`properties={"default": {"NUM_STREAMS": 4}}`), each then on fewer cores.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str | Mapping[str, str] = "CPU",
        properties: Mapping[str, Mapping[str, Any]] | None = None,
        cache_dir: str | os.PathLike[str] | Literal[False] | None = None,
    ) -> None:
        self.bundle = bundle
        self.engine = Engine(bundle, device, properties, cache_dir)
        talker = bundle.config["talker_config"]
        self._code_groups: int = talker["num_code_groups"]
        self._codebook: int = talker["code_predictor_config"]["vocab_size"]
        self._width: int = talker["hidden_size"]
        self._positions: int = talker["max_position_embeddings"]
        self._special = {token.content for token in bundle.tokenizer.get_added_tokens_decoder().values()}

    def custom_voice(
        self, text: str, speaker: str, language: str = "auto", instruct: str | None = None, **options: Unpack[Options]
    ) -> Speech:
        """Speaks with one of the bundle's voices (`bundle.speakers`), optionally as `instruct` says.

        Raises RequestError for what this bundle cannot serve, DeviceError when the device fails.
        """
        return self._whole(self._custom_voice(text, speaker, language, instruct, options))

    def stream_custom_voice(
        self,
        text: str,
        speaker: str,
        language: str = "auto",
        instruct: str | None = None,
        first_chunk: int = FIRST_CHUNK,
        **options: Unpack[Options],
    ) -> SpeechStream:
        """`custom_voice` in chunks: the first after `first_chunk` frames of 80 ms, later ones up to twice as long.

        Joined they equal the whole, sample by sample; with another `first_chunk`, as closely as the speech decoder's
        arithmetic goes (1e-5 in f32, 1e-2 in bf16; full scale is 1).
        """
        return self._stream(self._custom_voice(text, speaker, language, instruct, options), first_chunk)

    def voice_design(self, text: str, instruct: str, language: str = "auto", **options: Unpack[Options]) -> Speech:
        """Speaks with a voice that `instruct` describes in words. Raises as `custom_voice` does."""
        return self._whole(self._voice_design(text, instruct, language, options))

    def stream_voice_design(
        self,
        text: str,
        instruct: str,
        language: str = "auto",
        first_chunk: int = FIRST_CHUNK,
        **options: Unpack[Options],
    ) -> SpeechStream:
        """`voice_design` in chunks, as `stream_custom_voice`."""
        return self._stream(self._voice_design(text, instruct, language, options), first_chunk)

    def clone(self, text: str, voice: VoicePrompt, language: str = "auto", **options: Unpack[Options]) -> Speech:
        """Speaks with the voice of a recording. Nothing of the recording is in the result. Raises as `custom_voice`."""
        return self._whole(self._clone(text, voice, language, options))

    def stream_clone(
        self,
        text: str,
        voice: VoicePrompt,
        language: str = "auto",
        first_chunk: int = FIRST_CHUNK,
        **options: Unpack[Options],
    ) -> SpeechStream:
        """`clone` in chunks, as `stream_custom_voice`."""
        return self._stream(self._clone(text, voice, language, options), first_chunk)

    def voice_prompt(self, recording: audio.Source, reference_text: str | None = None) -> VoicePrompt:
        """The voice of a recording: a path, or `(samples, rate)`; 3 to 15 seconds of clean speech are best.

        With `reference_text`, exactly what is said in it, the voice is cloned in context; without, by its x-vector
        alone. Half a second of silence is put after the recording before it is turned into codes: else its last sound
        tends to open the new speech. (The official package does not; its codes are these without the last 6 or 7.)

        Raises AudioError for a recording that cannot be used, RequestError when the bundle cannot clone.
        """
        self._require("base")
        if reference_text is not None:
            self._check_text(reference_text, "the reference text")
        waveform = audio.load(recording, self.bundle.sample_rate)
        x_vector = self.engine.x_vector(waveform)
        if reference_text is None:
            return VoicePrompt(x_vector)
        if text.seconds(reference_text) * 2 < len(waveform) / self.bundle.sample_rate:
            logging.getLogger(__name__).warning(
                "the reference text is short for its recording; give all that is said, or the speech may not end"
            )
        silence = round(REFERENCE_SILENCE_SECONDS * self.bundle.sample_rate)
        return VoicePrompt(x_vector, self.engine.encode(np.pad(waveform, (0, silence))), reference_text)

    def _custom_voice(self, text: str, speaker: str, language: str, instruct: str | None, options: Options) -> Request:
        self._require("custom_voice")
        if instruct:
            self._check_text(instruct, "the instruction")
        plan = partial(prompt.custom_voice, speaker=speaker, language=language, instruct=instruct)
        return self._request(plan, text, None, options)

    def _voice_design(self, text: str, instruct: str, language: str, options: Options) -> Request:
        self._require("voice_design")
        self._check_text(instruct, "the description of the voice")
        return self._request(partial(prompt.voice_design, instruct=instruct, language=language), text, None, options)

    def _clone(self, text: str, voice: VoicePrompt, language: str, options: Options) -> Request:
        self._require("base")
        if not isinstance(voice, VoicePrompt):
            raise RequestError(f"the voice must be a VoicePrompt, as voice_prompt() makes, not {type(voice).__name__}")
        if voice.x_vector.shape != (self._width,):
            raise RequestError(
                f"the voice prompt has {voice.x_vector.size} numbers where this model takes {self._width}; "
                "it was made with another model size, make it again with this one"
            )
        if voice.codes is None or voice.text is None:
            return self._request(partial(prompt.clone_x_vector, language=language), text, voice, options)
        if (
            voice.codes.shape[1:] != (self._code_groups,)
            or not 0 <= voice.codes.min() <= voice.codes.max() < self._codebook
        ):
            raise RequestError("the voice prompt's codes are not this model's; make it again with this one")
        plan = partial(
            prompt.clone_icl, reference_text=voice.text, reference_frames=len(voice.codes), language=language
        )
        return self._request(plan, text, voice, options)

    def _request(
        self, plan: Callable[..., Prompt], spoken: str, voice: VoicePrompt | None, options: Options
    ) -> Request:
        """Checks everything and plans the prompts of all pieces. Raises RequestError."""
        if unknown := set(options) - set(Options.__annotations__):
            known = ", ".join(Options.__annotations__)
            raise RequestError(f"unknown option {', '.join(sorted(unknown))}; known: {known}")
        self._check_text(spoken, "the text")
        seed = options.get("seed", secrets.randbits(32))
        _require_whole("seed", seed, 0)
        if (max_frames := options.get("max_frames")) is not None:
            _require_whole("max_frames", max_frames, 1)
        if "text_first" in options:
            plan = partial(plan, text_first=options["text_first"])
        generation = {**self.bundle.manifest["generation"], **options}
        try:
            talker, code_predictor = Sampling.talker(generation), Sampling.code_predictor(generation)
            pieces = [self._piece(plan, piece, max_frames) for piece in text.split(spoken, PIECE_SECONDS)]
        except (PromptError, ValueError, TypeError) as error:
            raise RequestError(str(error)) from None
        return Request(pieces, voice, seed, talker, code_predictor, max_frames)

    def _piece(self, plan: Callable[..., Prompt], piece: str, max_frames: int | None) -> tuple[Prompt, int]:
        """A piece's prompt and frame limit: the caller's, else what its length and the checkpoint allow."""
        planned = plan(self.bundle.config, self._tokenize, piece)
        if max_frames is None:
            budget = text.frame_budget(piece, self.bundle.frames_per_second)
            max_frames = min(budget, self.bundle.manifest["generation"].get("max_new_tokens", budget))
        room = self._positions - len(planned)
        if room < 1:
            raise RequestError(
                f"the prompt takes {len(planned)} positions and the model has {self._positions}; shorten it"
            )
        return planned, min(max_frames, room)

    def _tokenize(self, template: str) -> list[int]:
        return self.bundle.tokenizer.encode(template, add_special_tokens=False).ids

    def _check_text(self, value: str, name: str) -> None:
        text.check(value, name)
        if token := next((token for token in self._special if token in value), None):
            raise RequestError(f"{name} holds the control token {token}; take it out")

    def _require(self, kind: str) -> None:
        if self.bundle.kind != kind:
            raise RequestError(f"this bundle is a {self.bundle.kind} one; load a {kind} bundle for this")

    def _whole(self, request: Request) -> Speech:
        # In the chunks of a stream: bf16 rounds otherwise when the decoder is given otherwise many frames.
        stream = self._stream(request, FIRST_CHUNK)
        waveform = np.concatenate([*stream, np.empty(0, np.float32)])
        return Speech(**vars(stream.outcome), waveform=waveform)

    def _stream(self, request: Request, first_chunk: int) -> SpeechStream:
        _require_whole("first_chunk", first_chunk, 1)
        return SpeechStream(speak(self.engine, request, chunk_sizes(first_chunk)), self.bundle.sample_rate)


def _require_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise RequestError(f"{name} must be a whole number of at least {least}, not {value!r}")
