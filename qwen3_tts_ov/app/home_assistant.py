"""Wyoming, the protocol by which Home Assistant speaks: over TCP, with text that is still being written if need be."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version

import anyio
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.server import AsyncEventHandler
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

from .. import names
from ..audio import pcm16
from ..speech import SpeechStream
from . import messages
from .desk import AHEAD, Desk, Order
from .sentences import Sentences
from .speech_request import SpeechRequest

log = logging.getLogger(__name__)


@asynccontextmanager
async def wyoming(desk: Desk, listener: socket.socket) -> AsyncIterator[None]:
    """Serves Wyoming during the `with` block and, unless it listens on loopback alone, lets Home Assistant find it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await _Handler(desk, reader, writer).run()

    host, port = listener.getsockname()[:2]
    async with await asyncio.start_server(serve, sock=listener):
        log.info("speaking Wyoming at tcp://%s:%d", host, port)
        if not host.startswith("127.") and host != "::1":
            await _announce(host, port)
        yield


async def _announce(host: str, port: int) -> None:
    from wyoming.zeroconf import HomeAssistantZeroconf

    everywhere = host in ("0.0.0.0", "::")
    try:
        name = f"qwen3-tts-ov-{socket.gethostname()}"
        await HomeAssistantZeroconf(port, name, None if everywhere else host).register_server()
    except Exception as error:  # of a network without multicast, or of a name that is taken
        log.warning("Home Assistant cannot find this server by itself (%s); give it the address", error)


class _Handler(AsyncEventHandler):
    """One connection: texts are taken as they come, and spoken one after the other."""

    def __init__(self, desk: Desk, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self._desk = desk
        self._sentences: Sentences | None = None  # of the text that is being written
        self._voice: SynthesizeVoice | None = None
        # What is to be said; the end of a text is the list of what is to be sent after its audio.
        self._orders, self._to_say = anyio.create_memory_object_stream[Order | list[Eventable]](math.inf)
        self._speaking = asyncio.create_task(self._speak())

    async def handle_event(self, event: Event) -> bool:
        try:
            if Describe.is_type(event.type):
                await self.write_event(_info(self._desk).event())
            elif Synthesize.is_type(event.type) and self._sentences is None:  # repeats the text of a stream for others
                whole = Synthesize.from_event(event)
                self._put([whole.text], whole.voice)
                self._orders.send_nowait([])
            elif SynthesizeStart.is_type(event.type):
                self._sentences, self._voice = Sentences(), SynthesizeStart.from_event(event).voice
            elif SynthesizeChunk.is_type(event.type) and self._sentences is not None:
                self._put(self._sentences.add(SynthesizeChunk.from_event(event).text), self._voice)
            elif SynthesizeStop.is_type(event.type) and self._sentences is not None:
                self._put(self._sentences.finish(), self._voice)
                self._orders.send_nowait([SynthesizeStopped()])
                self._sentences = None
        except Exception as error:
            await self._fail(error)
            return False
        return True

    async def disconnect(self) -> None:
        self._speaking.cancel()

    def _put(self, texts: list[str], voice: SynthesizeVoice | None) -> None:
        named = voice or SynthesizeVoice()
        for text in texts:
            asked = {"input": text, "voice": named.speaker or named.name, "language": named.language}
            wanted = SpeechRequest.model_validate(asked)
            self._orders.send_nowait(self._desk.order(wanted))

    async def _speak(self) -> None:
        begun = False
        async for order in self._to_say:
            if isinstance(order, Order):
                rate = order.slip.model.sample_rate
                async for pcm in self._said(order):
                    if not begun:
                        await self.write_event(AudioStart(rate, 2, 1).event())
                    begun = True
                    await self.write_event(AudioChunk(rate, 2, 1, pcm).event())
            else:
                for event in [AudioStop()] * begun + order:
                    await self.write_event(event.event())
                begun = False

    async def _said(self, order: Order) -> AsyncIterator[bytes]:
        ready, made = anyio.create_memory_object_stream[bytes | Exception](AHEAD)
        making = asyncio.create_task(self._desk.make(order, _pieces, ready))
        try:
            async for piece in made:
                if isinstance(piece, Exception):
                    await self._fail(piece)
                    self.writer.close()
                    return
                yield piece
        finally:
            making.cancel()

    async def _fail(self, error: Exception) -> None:
        await self.write_event(Error(messages.failure(error)[1]).event())


def _pieces(stream: SpeechStream) -> Iterator[bytes]:
    return map(pcm16, stream)


def _info(desk: Desk) -> Info:
    """What Home Assistant can choose from: every voice that has a name."""
    author = Attribution("Qwen", "https://github.com/QwenLM/Qwen3-TTS")
    voices: dict[str, TtsVoice] = {}
    for slip in desk.shelf.slips:
        languages = names.codes(slip.model.config["talker_config"]["codec_language_id"])
        for name in desk.voices_of(slip.model):
            voices.setdefault(name, TtsVoice(name, author, True, name, None, languages))
    ours = version("qwen3-tts-ov")
    program = TtsProgram("qwen3-tts-ov", author, True, "Qwen3-TTS on OpenVINO", ours, list(voices.values()), True)
    return Info(tts=[program])
