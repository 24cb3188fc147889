"""Where requests are checked and get their turn, from whichever protocol they come.

| kind of bundle | `voice` | `instructions` |
|---|---|---|
| custom_voice | a voice of the bundle; without it, its default voice | how to speak, optional |
| voice_design | ignored | the voice in words, required |
| base | a saved voice by its name; ignored beside a recording in `ref_audio` | refused |
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import anyio
from anyio import to_thread
from anyio.streams.memory import MemoryObjectSendStream

from .. import names
from ..errors import RequestError
from ..model import Model
from ..request import Fields, Voice, check_request, check_whole, sampling
from ..speech import SpeechStream
from ..synthesizer import MOST_FIRST_CHUNK, Synthesizer
from .metrics import Metrics
from .shelf import Shelf, Slip
from .speech_request import SpeechRequest
from .voices import Voices, recording_of

# The default bundle also answers requests for OpenAI's models, and for any released Qwen3-TTS.
_UNDERSTOOD = re.compile(r"tts-1(-hd)?(-\d+)?|gpt-4o-mini-tts(-[\d-]+)?|([\w.-]+/)?qwen3-tts[\w.-]*", re.IGNORECASE)
_FIELDS = Fields("voice", "instructions", "ref_text")


_Piece = TypeVar("_Piece")

AHEAD = 256  # pieces buffered for a client, ten minutes of speech; only a full buffer keeps its slot occupied


class Busy(Exception):
    """Every slot is taken and the queue is full."""


class UnknownModel(RequestError):
    """A request for a model that is not served."""


@dataclass(frozen=True)
class Order:
    """A request that its model can serve."""

    wanted: SpeechRequest
    slip: Slip
    voice: Voice | None  # bytes are a recording


class Desk:
    """Checks requests, and serves as many at a time as there are slots; `queue` more may wait for one."""

    def __init__(self, shelf: Shelf, voices: Voices, slots: int, queue: int, max_characters: int) -> None:
        self.shelf, self.voices = shelf, voices
        self.slots, self.queue = anyio.Semaphore(slots, fast_acquire=True), queue
        self.max_characters, self.metrics = max_characters, Metrics()

    @property
    def clones(self) -> bool:
        """Whether one of the models clones voices."""
        return any(slip.model.kind == "base" for slip in self.shelf.slips)

    def order(self, wanted: SpeechRequest) -> Order:
        """A request, checked. Raises RequestError, AudioError or UnknownModel."""
        for name in ("input", "instructions", "ref_text"):
            if len(getattr(wanted, name) or "") > self.max_characters:
                raise RequestError(f"{name} has more than {self.max_characters} characters; send it in parts")
        slip = self._choose(wanted)
        model, voice = slip.model, self._voice(slip.model, wanted)
        check_request(model, wanted.input, voice, wanted.instructions, wanted.language, wanted.ref_text, _FIELDS)
        sampling(model, wanted.options())
        check_whole("first_chunk", wanted.first_chunk, 1, MOST_FIRST_CHUNK)
        return Order(wanted, slip, voice)

    def find(self, name: str) -> Slip | None:
        """The model that is meant by a name; None if no particular one is. Raises UnknownModel."""
        slip = self.shelf.find(name)
        if slip is None and not _UNDERSTOOD.fullmatch(name.strip()):
            known = ", ".join(slip.model.name for slip in self.shelf.slips)
            raise UnknownModel(f"there is no model {name[:100]!r} here, only {known}")
        return slip

    def voices_of(self, model: Model) -> list[str]:
        """The voices of a model by name."""
        return self.voices.fitting(model) if model.kind == "base" else model.speakers

    @asynccontextmanager
    async def turn(self, slip: Slip) -> AsyncIterator[Synthesizer]:
        """A model in a slot of its own. Raises Busy, DeviceError."""
        if self.slots.value == 0 and self.slots.statistics().tasks_waiting >= self.queue:
            raise Busy(f"{self.queue} requests are waiting already; try again")
        async with self.slots, self.shelf.lend(slip) as synthesizer:
            yield synthesizer

    @asynccontextmanager
    async def speech(self, order: Order) -> AsyncIterator[SpeechStream]:
        """The speech of a request, in a slot. Raises Busy, DeviceError, AudioError, RequestError."""
        async with self.turn(order.slip) as synthesizer:
            stream = await to_thread.run_sync(self._start, order, synthesizer)
            try:
                yield stream
                with suppress(RuntimeError):  # not read to its end
                    self.metrics.spoken(order.slip.model.name, stream.outcome)
            finally:
                with anyio.CancelScope(shield=True):  # gives the infer requests back before the slot
                    await to_thread.run_sync(stream.close)

    async def make(
        self,
        order: Order,
        pieces: Callable[[SpeechStream], Iterator[_Piece]],
        ready: MemoryObjectSendStream[_Piece | Exception],
    ) -> None:
        """Speaks, and puts the pieces made of the speech into `ready`, however slowly they are taken from there.

        An error is passed on in place of the next piece, and ends it. Cancelled, it stops before the next frame.
        """
        with ready:
            try:
                async with self.speech(order) as stream:
                    made = pieces(stream)
                    while (piece := await to_thread.run_sync(next, made, None, abandon_on_cancel=True)) is not None:
                        await ready.send(piece)
            except Exception as error:  # of the request, the runtime, a codec, or a fault of this program
                await ready.send(error)

    def _start(self, order: Order, synthesizer: Synthesizer) -> SpeechStream:
        wanted, voice = order.wanted, order.voice
        if isinstance(voice, bytes):
            voice = self.voices.of(synthesizer, voice, wanted.ref_text)
        options = wanted.options()
        options["pieces_ahead"] = 0  # which would take the slots of other listeners
        return synthesizer.stream(
            wanted.input,
            voice,
            wanted.instructions,
            wanted.language,
            first_chunk=wanted.first_chunk,
            **options,
        )

    def _choose(self, wanted: SpeechRequest) -> Slip:
        """The model that a request names, or else the first that has its voice, or else the default."""
        if wanted.model is not None and (named := self.find(wanted.model)):
            return named
        return next((slip for slip in self.shelf.slips if self._has(slip.model, wanted)), self.shelf.slips[0])

    def _has(self, model: Model, wanted: SpeechRequest) -> bool:
        if wanted.ref_audio is not None:
            return model.kind == "base"
        return wanted.voice is not None and names.find(wanted.voice, self.voices_of(model)) is not None

    def _voice(self, model: Model, wanted: SpeechRequest) -> Voice | None:
        """The voice of a request. A client's string is only ever a name, never a path."""
        if wanted.ref_audio is not None:
            return recording_of(wanted.ref_audio)
        if model.kind == "voice_design":  # OpenAI's clients always send one
            return None
        if model.kind != "base":
            return wanted.voice
        found = None if wanted.voice is None else names.find(wanted.voice, self.voices.saved)
        if found is None:
            known = ", ".join(sorted(self.voices.saved)) or "none; send a recording as ref_audio"
            fault = "choose a voice" if wanted.voice is None else f"unknown voice {wanted.voice!r}; this server has"
            raise RequestError(f"{fault}: {known}")
        return self.voices.saved[found]
