"""The WebSocket for programs that speak a text while it is being written, as by a language model.

A client sends JSON: `session.config` (the fields of a request without `input`), any number of `input.text`, and then
`input.done` or `input.cancel`. Each sentence is spoken as soon as it is complete: `audio.start`, its audio in binary
messages, `audio.done`. `speech.done` follows the last one, `speech.cancelled` a cancellation; then the next text may
begin. An `error` is the last message.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..errors import RequestError
from ..speech import SpeechStream
from . import messages
from .desk import AHEAD, Desk, Order
from .encoding import encoded
from .sentences import Sentences
from .speech_request import SpeechRequest, parse

_MOST_WAITING = 16  # times the characters that one request may have


async def converse(desk: Desk, origins: Collection[str], socket: WebSocket) -> None:
    """Serves one connection. Web pages must be of this server or of `origins`: browsers ask nobody else for leave."""
    origin = socket.headers.get("origin")
    if origin and urlsplit(origin).netloc != socket.headers.get("host") and not {origin, "*"} & set(origins):
        await socket.close(1008)
        return
    await socket.accept()
    conversation = _Conversation(desk, socket)
    async with anyio.create_task_group() as tasks:

        async def until_it_ends(act: Callable[[], Awaitable[None]]) -> None:
            await act()
            tasks.cancel_scope.cancel()

        tasks.start_soon(until_it_ends, conversation.speak)
        await until_it_ends(conversation.listen)


class _Conversation:
    """What one client says and hears."""

    def __init__(self, desk: Desk, socket: WebSocket) -> None:
        self._desk, self._socket = desk, socket
        self._config: dict[str, Any] = {"response_format": "pcm"}
        self._sentences = Sentences()
        # What is to be said; None is the end of a text.
        self._orders, self._to_say = anyio.create_memory_object_stream[Order | None](math.inf)
        self._waiting = 0  # characters that have not been said
        self._number = 0  # of the sentence in its text
        self._saying, self._quiet = anyio.CancelScope(), anyio.Event()

    async def listen(self) -> None:
        """Does what the client asks until it leaves, or has made a mistake."""
        while (message := await self._socket.receive())["type"] == "websocket.receive":
            try:
                await self._take(message.get("text"))
            except Exception as error:
                return await self._fail(error)
        return None

    async def speak(self) -> None:
        """Says what there is to say, one sentence after the other."""
        while True:
            with self._saying:
                async for order in self._to_say:
                    if order is None:
                        self._number = 0
                        await self._tell("speech.done")
                    elif error := await self._say(order):
                        return await self._fail(error)
            self._saying = anyio.CancelScope()
            self._quiet.set()

    async def _take(self, text: str | None) -> None:
        """Raises RequestError."""
        try:
            message = json.loads(text or "")
            kind, rest = message["type"], {key: value for key, value in message.items() if key != "type"}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RequestError("send JSON objects with a type, as text") from None
        match kind, rest:
            case "session.config", _:
                self._config |= rest
                self._order("a")  # tells at once what is wrong
            case "input.text", {"text": str(part), **more} if not more:
                self._put(self._sentences.add(part))
            case "input.done", {**more} if not more:
                self._put(self._sentences.finish())
                self._orders.send_nowait(None)
            case "input.cancel", {**more} if not more:
                await self._cancel()
            case _:
                raise RequestError("send session.config, input.text with a text, input.done or input.cancel")

    def _put(self, sentences: list[str]) -> None:
        for sentence in sentences:
            self._waiting += len(sentence)
            if self._waiting > (most := _MOST_WAITING * self._desk.max_characters):
                raise RequestError(f"over {most} characters wait to be said; send them more slowly")
            self._orders.send_nowait(self._order(sentence))

    def _order(self, sentence: str) -> Order:
        return self._desk.order(parse(SpeechRequest, json.dumps(self._config | {"input": sentence}).encode()))

    async def _cancel(self) -> None:
        """Drops all that is not said; the slot is free when this returns."""
        self._sentences, self._waiting, self._number = Sentences(), 0, 0
        while self._to_say.statistics().current_buffer_used:
            self._to_say.receive_nowait()
        self._quiet = anyio.Event()
        self._saying.cancel()
        await self._quiet.wait()
        await self._tell("speech.cancelled")

    async def _say(self, order: Order) -> Exception | None:
        """Says one sentence; returns what went wrong."""
        ready, made = anyio.create_memory_object_stream[bytes | dict[str, Any] | Exception](AHEAD)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._desk.make, order, partial(_pieces, order, self._number), ready)
            async for piece in made:
                if isinstance(piece, Exception):
                    return piece
                if isinstance(piece, bytes):
                    await self._send({"type": "websocket.send", "bytes": piece})
                else:
                    await self._tell(**piece)
        self._number += 1
        self._waiting -= len(order.wanted.input)
        return None

    async def _tell(self, type: str, **more: Any) -> None:
        await self._send({"type": "websocket.send", "text": json.dumps({"type": type, **more})})

    async def _fail(self, error: Exception) -> None:
        status, told = messages.failure(error)
        await self._tell("error", error=messages.error(status, told))
        await self._send({"type": "websocket.close", "code": 1008 if status < 500 else 1011})

    async def _send(self, message: dict[str, Any]) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):  # it has left; `listen` sees that too
            await self._socket.send(message)


def _pieces(order: Order, number: int, stream: SpeechStream) -> Iterator[bytes | dict[str, Any]]:
    """A sentence as it is sent."""
    form = order.wanted.response_format
    about = {"text": order.wanted.input, "format": form, "sample_rate": stream.sample_rate}
    yield {"type": "audio.start", "sentence": number, **about}
    yield from filter(None, encoded(stream, form, order.wanted.speed))
    yield {
        "type": "audio.done",
        "sentence": number,
        "frames": len(stream.outcome.codes),
        **messages.facts(stream.outcome),
    }
