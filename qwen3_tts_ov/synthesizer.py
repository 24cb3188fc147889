"""Text to speech: one door to every kind of model, for speech as a whole or as a stream."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, TypeAlias, Unpack

import numpy as np

from . import audio, prompt, request, text
from .bundle import Bundle
from .engine import Engine, MakeSession
from .errors import RequestError
from .generation import Request, chunk_sizes, speak
from .model import Model
from .prompt import Prompt
from .recording import Source
from .request import Options, Voice
from .speech import Speech, SpeechStream
from .voice import VoicePrompt

DEFAULT_SLOTS = 8  # of `say` with a long text
PIECE_SECONDS = 30.0  # longer texts, as a slow reader would read them, are cut into pieces at sentences
OPENING_SECONDS = 15.0  # at most, of a text whose voice is drawn: what its other pieces go on after
SHORTEST_PIECE_SECONDS = 3.0  # to which they are cut where a model has few positions
REFERENCE_SILENCE_SECONDS = 0.5  # after a reference, so that its tail does not leak into the speech
MOST_SLOTS = 64
FIRST_CHUNK, MOST_FIRST_CHUNK = 4, 128  # frames; the memory that decoding a chunk takes grows with it


_Running: TypeAlias = "deque[tuple[SpeechStream, Future[Speech]]]"


def piece_seconds(model: Model) -> float:
    """How long a text may be, as a slow reader would read it, before it is cut into pieces.

    A checkpoint may say so in generation_config.json, as `longest_text_seconds`: a small one loses words in what is
    longer than all that it was trained on. Without that, PIECE_SECONDS; but a designed voice is drawn anew in every
    generation, so its text is only cut where the checkpoint's own limit of frames does it, as by the official package.
    Raises RequestError for what is no such number.
    """
    if (stated := model.generation.get("longest_text_seconds")) is not None:
        if isinstance(stated, bool) or not isinstance(stated, int | float) or not stated > 0:
            raise RequestError(
                f"the model's generation_config.json: longest_text_seconds is {stated!r}, not a number above 0"
            )
        return float(stated)
    frames = model.generation.get("max_new_tokens")
    if model.kind != "voice_design" or frames is None:
        return PIECE_SECONDS
    return max(PIECE_SECONDS, frames * model.samples_per_frame / model.sample_rate)


class Synthesizer:
    """A compiled model, ready to speak. Threads may share it; each request then has infer requests of its own.

    `model` is a bundle, or graphs that stand alone. `device` is an OpenVINO device (`CPU`, `GPU`, `NPU`, `AUTO`,
    `HETERO:GPU,CPU`), or a mapping from component to device. `properties` maps a component to compile properties, which
    take precedence over those that the bundle recommends for the device. In both mappings the key `default` stands for
    all components not named. Compiled graphs are kept in `cache_dir`, by default in the user's cache, so that the
    second start is fast; False keeps none.

    `slots` is how many requests, or pieces of a long text, speak at a time in one pass over the weights: each then
    takes longer, and all together far less (see `speak_many`). The codes of a request are the same whatever speaks
    beside it; those of one slot, which runs a different attention kernel, may differ from those of several.
    """

    def __init__(
        self,
        model: Bundle | Model,
        device: str | Mapping[str, str] = "CPU",
        properties: Mapping[str, Mapping[str, Any]] | None = None,
        cache_dir: str | os.PathLike[str] | Literal[False] | None = None,
        slots: int = 1,
    ) -> None:
        self.model = model.model if isinstance(model, Bundle) else model
        request.check_whole("slots", slots, 1, MOST_SLOTS)
        self.engine = Engine(self.model, device, properties, cache_dir, slots)

    def using(self, session: MakeSession) -> Synthesizer:
        """The same compiled graphs, run through another class of session, which can record or steer what they do."""
        other = copy.copy(self)
        other.engine = self.engine.using(session)
        return other

    def speak(
        self,
        text: str,
        voice: Voice | None = None,
        instruct: str | None = None,
        language: str = "auto",
        reference_text: str | None = None,
        **options: Unpack[Options],
    ) -> Speech:
        """Speaks a text. What chooses the voice depends on the kind of model:

        - custom_voice: `voice` is one of `model.speakers`, by default `model.default_voice`; `instruct` may say how to
          speak (1.7B only).
        - voice_design: `instruct` describes the voice in words.
        - base: `voice` is a recording to clone (see `voice_prompt`), a saved voice prompt (a path that ends
          in .safetensors) or a VoicePrompt. `reference_text` is what a recording says; see `voice_prompt`.

        `language` is one of the model's, or `auto`. Nothing of a recording is in the result.

        Raises RequestError for a request that this model cannot serve, AudioError for a recording that cannot be used,
        DeviceError when the device fails.
        """
        # In the chunks of a stream: with bf16 the rounding depends on the chunk size.
        return _whole(
            self._stream(self._request(text, voice, instruct, language, reference_text, options), FIRST_CHUNK)
        )

    def stream(
        self,
        text: str,
        voice: Voice | None = None,
        instruct: str | None = None,
        language: str = "auto",
        reference_text: str | None = None,
        first_chunk: int = FIRST_CHUNK,
        **options: Unpack[Options],
    ) -> SpeechStream:
        """`speak` in chunks: the first after `first_chunk` frames of 80 ms, later ones up to twice as long.

        Joined they equal the result of `speak`, sample by sample; with another `first_chunk`, within the precision of
        the speech decoder's arithmetic (1e-5 in f32, 1e-2 in bf16; full scale is 1). The request is checked, and a
        recording encoded, by this call; the text is spoken while the stream is read.
        """
        request.check_whole("first_chunk", first_chunk, 1, MOST_FIRST_CHUNK)
        return self._stream(self._request(text, voice, instruct, language, reference_text, options), first_chunk)

    def speak_many(self, requests: Iterable[str | Mapping[str, Any]], **common: Any) -> Generator[Speech, None, None]:
        """Speaks many texts, as many at a time as there are slots, and yields their speech in order.

        A request is a text, or a mapping of `speak`'s arguments; `common` holds arguments for all. No more requests are
        taken than are spoken at the time. Closing the generator stops those that are being spoken.

        Raises what `speak` raises; the other requests are then stopped.
        """
        return self._many(requests, common, deque())

    async def speak_many_async(
        self, requests: Iterable[str | Mapping[str, Any]], **common: Any
    ) -> AsyncGenerator[Speech, None]:
        """`speak_many` for asyncio; cancelling the task, or closing the generator, stops what is being spoken."""
        running: _Running = deque()
        speeches, following = self._many(requests, common, running), None
        try:
            while True:
                following = asyncio.create_task(asyncio.to_thread(next, speeches, None))
                found = await asyncio.shield(following)
                if found is None:
                    return
                yield found
        finally:
            for stream, _ in list(running):
                stream.cancel()
            if following is not None:
                await asyncio.wait([following])
                following.exception()  # it is no fault that nobody is told of
            speeches.close()

    def _many(
        self, requests: Iterable[str | Mapping[str, Any]], common: dict[str, Any], running: _Running
    ) -> Generator[Speech, None, None]:
        """`speak_many`; `running` holds what is being spoken, for others to cancel."""
        most = self.engine.batch.slots if self.engine.batch else 1
        with ThreadPoolExecutor(most) as pool:
            try:
                for each in requests:
                    if len(running) == most:
                        yield _first_of(running)
                    arguments = {"pieces_ahead": 0} | common | ({"text": each} if isinstance(each, str) else dict(each))
                    stream = self.stream(**arguments)
                    running.append((stream, pool.submit(_whole, stream)))
                while running:
                    yield _first_of(running)
            finally:
                for stream, _ in running:
                    stream.cancel()

    def voice_prompt(self, recording: Source, reference_text: str | None = None) -> VoicePrompt:
        """The voice of a recording, to save or to reuse; best 3 to 15 s of clean speech.

        `recording` is a path, a pipe or a data URL, a file object or its bytes, or `(samples, rate)`. An https URL is
        not fetched unasked: `qwen3_tts_ov.recording.fetch(url)` gives its bytes.

        With `reference_text`, exactly what the recording says, the voice is cloned in context; without it, by its
        x-vector alone. Before it is encoded for that, the silence around its speech goes, but for a tenth of a second,
        and half a second is appended; otherwise its last sound tends to open the new speech. (The official package
        does neither: its codes lack the last 6 or 7 frames.)

        Raises AudioError for a recording that cannot be used, RequestError when the model cannot clone.
        """
        request.check_recording(self.model, reference_text)
        waveform = audio.load(recording, self.model.sample_rate)
        x_vector = self.engine.x_vector(waveform)
        if reference_text is None:
            return VoicePrompt(x_vector)
        heard = audio.trimmed(waveform, self.model.sample_rate)
        if text.seconds(reference_text) * 2 < len(heard) / self.model.sample_rate:
            logging.getLogger(__name__).warning(
                "the reference text is short for its recording; give all that is said, or the speech may not end"
            )
        silence = round(REFERENCE_SILENCE_SECONDS * self.model.sample_rate)
        return VoicePrompt(x_vector, self.engine.encode(np.pad(heard, (0, silence))), reference_text)

    def _request(
        self,
        spoken: str,
        voice: Voice | None,
        instruct: str | None,
        language: str,
        reference_text: str | None,
        options: Options,
    ) -> Request:
        """Checks everything, encodes a recording and plans the prompts of all pieces."""
        model = self.model
        request.check_request(model, spoken, voice, instruct, language, reference_text)
        talker, code_predictor = request.sampling(model, options)
        seed, max_frames = options.get("seed"), options.get("max_frames")
        cloned = self._clone(voice, reference_text) if model.kind == "base" else None
        speaker = voice if isinstance(voice, str) else model.default_voice
        text_first = options.get("text_first", request.text_first(model))
        plan = partial(
            self._plan, speaker=speaker, cloned=cloned, instruct=instruct, language=language, text_first=text_first
        )
        drawn = cloned is None and speaker is None
        cut = self._pieces(text.clean(spoken), plan, drawn)
        continued = drawn and len(cut) > 1
        limits, most = self._limits(cut, continued, max_frames)
        pieces = [(planned, limit, pause) for (_, planned, pause), limit in zip(cut, limits, strict=True)]
        reading = [text.seconds(piece) for piece, _, _ in cut]
        if self.engine.batch is not None:
            self.engine.batch.check(most)
        seed = secrets.randbits(32) if seed is None else seed
        at_once = self.engine.batch.slots if self.engine.batch else 1
        ahead = min(options.get("pieces_ahead", at_once - 1), at_once - 1)
        return Request(
            pieces, cloned, seed, talker, code_predictor, max_frames, model.positions, reading, ahead, continued
        )

    def _pieces(self, spoken: str, plan: Callable[[str], Prompt], drawn: bool) -> list[tuple[str, Prompt, float]]:
        """The pieces of a text with their prompts and the pauses after them.

        They are as long as they may be, or as short as it takes for the model to have a position for every frame of a
        slow reader. Where the voice is `drawn`, the first is an opening, and the prompts of the others hold its text.
        """
        longest = piece_seconds(self.model)
        while True:
            opening, cut = "", text.split(spoken, longest)
            if len(cut) > 1 and drawn:
                first = text.split(spoken, min(OPENING_SECONDS, longest / 2))[0]
                opening = first.text
                rest = max(longest - text.seconds(opening), longest / 2)
                cut = [first, *text.split(spoken[len(opening) :], rest)]
            pieces = [part.strip() if len(cut) > 1 else part for part, _ in cut]
            pauses = [pause for _, pause in cut]
            heard = [pieces[0], *(opening.lstrip() + piece for piece in pieces[1:])]
            prompts = [plan(each) for each in heard]
            needed = max(len(p) + self._slow_frames(each) for p, each in zip(prompts, heard, strict=True))
            longest /= 2
            if needed <= self.model.positions or longest < SHORTEST_PIECE_SECONDS:
                return list(zip(pieces, prompts, pauses, strict=True))

    def _clone(self, voice: Any, reference_text: str | None) -> VoicePrompt:
        """The voice that a base model is to speak with."""
        if isinstance(voice, VoicePrompt):
            return voice
        return VoicePrompt.load(voice) if request.is_saved(voice) else self.voice_prompt(voice, reference_text)

    def _plan(
        self,
        piece: str,
        speaker: str | None,
        cloned: VoicePrompt | None,
        instruct: str | None,
        language: str,
        text_first: bool,
    ) -> Prompt:
        """A piece's prompt, as this kind of model expects it."""
        config, tokenize = self.model.config, self.model.tokenize
        if cloned is not None and cloned.codes is not None and cloned.text is not None:
            frames = len(cloned.codes)
            return prompt.clone_icl(config, tokenize, piece, cloned.text, frames, language, text_first)
        if cloned is not None:
            return prompt.clone_x_vector(config, tokenize, piece, language, text_first)
        if speaker is None:
            return prompt.voice_design(config, tokenize, piece, instruct, language, text_first)
        return prompt.custom_voice(config, tokenize, piece, speaker, language, instruct, text_first)

    def _slow_frames(self, spoken: str) -> int:
        """The frames that a slow reader takes for a text."""
        return round(text.seconds(spoken) * self.model.sample_rate / self.model.samples_per_frame)

    def _limits(
        self, cut: list[tuple[str, Prompt, float]], continued: bool, max_frames: int | None
    ) -> tuple[list[int], int]:
        """The most frames that each piece may take, and the most positions that one may take with its prompt.

        Where pieces go on after an opening, it leaves them the positions that a slow reader needs.
        """
        opening = 0
        if continued:
            room = min(self.model.positions - len(planned) - self._slow_frames(piece) for piece, planned, _ in cut[1:])
            opening = max(1, min(self._limit(cut[0][0], len(cut[0][1]), max_frames), room))
        taken = [len(planned) + (opening if number else 0) for number, (_, planned, _) in enumerate(cut)]
        limits = [self._limit(piece, before, max_frames) for (piece, _, _), before in zip(cut, taken, strict=True)]
        limits[0] = opening or limits[0]
        return limits, max(before + limit for before, limit in zip(taken, limits, strict=True))

    def _limit(self, piece: str, taken: int, max_frames: int | None) -> int:
        """The most frames that a piece may take after `taken` positions: the caller's limit, or what its length allows.

        The checkpoint's own limit counts too. Raises RequestError where no position is left.
        """
        if max_frames is None:
            budget = text.frame_budget(piece, self.model.sample_rate / self.model.samples_per_frame)
            max_frames = min(budget, self.model.generation.get("max_new_tokens", budget))
        positions = self.model.positions
        room = positions - taken
        if room < 1:
            raise RequestError(f"the prompt takes {taken} positions and the model has {positions}; shorten it")
        return min(max_frames, room)

    def _stream(self, checked: Request, first_chunk: int) -> SpeechStream:
        rate, chunks = self.model.sample_rate, speak(self.engine, checked, chunk_sizes(first_chunk))
        per_second = rate / self.model.samples_per_frame
        return SpeechStream(chunks, rate, lambda: checked.expected_frames(per_second) / per_second, checked.cancelled)


def _first_of(running: _Running) -> Speech:
    """The speech that is due, once it is there; until then it can be cancelled like the others."""
    speech = running[0][1].result()
    running.popleft()
    return speech


def _whole(stream: SpeechStream) -> Speech:
    waveform = np.concatenate([*stream, np.empty(0, np.float32)])
    return Speech(**vars(stream.outcome), waveform=waveform)
