"""An HTTP server with OpenAI's `/v1/audio/speech`, for programs written for that API, and with a page for people.

A request waits in a bounded queue for one of a few slots. Speech is generated at its own pace, up to minutes ahead of
a slow client, which therefore holds no slot; when a client disconnects, its generation stops before the next frame.

What programs send is taken as they mean it: a voice or language in another spelling, null or an empty text for a field
that is left out. An unknown field, and a number out of bounds, is an error in one line.
"""

from __future__ import annotations

import base64
import hmac
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import anyio
from anyio import to_thread
from anyio.streams.memory import MemoryObjectReceiveStream
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import memory
from ..errors import Qwen3TTSError, RequestError, boundary
from ..request import check_recording, takes_instructions
from ..speech import SpeechStream
from ..synthesizer import Synthesizer
from . import messages, web
from .conversation import converse
from .desk import AHEAD, Busy, Desk, Order
from .encoding import FORMATS, encoded
from .metrics import CONTENT_TYPE
from .shelf import Shelf, Slip
from .speech_request import SpeechRequest, VoiceRequest, parse
from .voices import MOST_URL, Voices, recording_of

_ESCAPED = 12  # the most bytes of JSON for one character, as in "\ud83d\ude00"

_Body = TypeVar("_Body", SpeechRequest, VoiceRequest)

log = logging.getLogger(__name__)


def application(
    models: Shelf | Synthesizer,
    *,
    voices: Voices | None = None,
    api_key: str | None = None,
    slots: int = 1,
    queue: int = 16,
    max_characters: int = 4096,
    cors: Collection[str] = (),
    page: bool = True,
    wyoming: socket.socket | None = None,
) -> Starlette:
    """The ASGI application of a shelf of bundles, or of one loaded bundle.

    `voices` are those that base bundles can clone. `slots` requests are served at a time and `queue` more wait; beyond
    that the answer is 503. `max_characters` bounds `input`, `instructions` and `ref_text` each. With an `api_key`,
    every path except `/health` and those of the page requires it as a bearer token. Web pages of the origins in `cors`,
    or of any for `*`, may send requests. `page` serves a page at `/` on which people try the voices. At
    `wyoming`, a socket that listens, the server also speaks Home Assistant's protocol, which knows no key.
    """
    shelf = models if isinstance(models, Shelf) else Shelf.of(models)
    desk = Desk(shelf, voices or Voices({}), slots, queue, max_characters)
    api = _Api(desk)
    # In this order: a browser's preflight carries no key.
    origins = Middleware(
        CORSMiddleware,
        allow_origins=cors,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        allow_private_network=True,
    )
    shown = web.routes() if page else []
    key = Middleware(_KeyRequired, api_key=api_key or "", open_paths={"/health", *(route.path for route in shown)})
    return Starlette(
        routes=[
            Route("/v1/audio/speech", api.speech, methods=["POST"]),
            WebSocketRoute("/v1/audio/speech/stream", partial(converse, desk, cors)),
            Route("/v1/audio/voices", api.list_voices),
            Route("/v1/audio/voices", api.add_voice, methods=["POST"]),
            Route("/v1/audio/voices/{name}", api.delete_voice, methods=["DELETE"]),
            Route("/v1/audio/models", api.list_models),
            Route("/v1/models", api.list_models),
            Route("/v1/models/{name:path}", api.show_model),
            Route("/health", api.health),
            Route("/metrics", api.metrics),
            *shown,
        ],
        lifespan=partial(_lifespan, desk, wyoming),
        middleware=[*[origins] * bool(cors), *[key] * bool(api_key)],
        exception_handlers=dict.fromkeys((HTTPException, Qwen3TTSError, Busy, ClientDisconnect), _answer),
    )


@asynccontextmanager
async def _lifespan(desk: Desk, listener: socket.socket | None, _: Starlette) -> AsyncIterator[None]:
    if listener is None:
        yield
    else:
        from .home_assistant import wyoming

        async with wyoming(desk, listener):
            yield


def default_slots() -> int:
    """A guess, not measured: two for each core, at most 16, and at most one for each GB of free memory."""
    available = memory.available_bytes()
    return max(1, min(2 * (os.cpu_count() or 1), 16, 16 if available is None else available // 10**9))


class _Api:
    """The endpoints of OpenAI's API."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._most_body = _ESCAPED * 3 * desk.max_characters + 4096 + MOST_URL * desk.clones

    async def speech(self, request: Request) -> ASGIApp:
        wanted = await self._read(request, SpeechRequest)
        return _Speaking(self._desk, self._desk.order(wanted))  # checks everything; computes nothing before its turn

    async def list_voices(self, _: Request) -> Response:
        models: dict[str, list[str]] = {}
        for slip in self._desk.shelf.slips:
            for name in self._desk.voices_of(slip.model):
                models.setdefault(name, []).append(slip.model.name)
        voices = [{"id": name, "name": name, "object": "voice", "models": which} for name, which in models.items()]
        return JSONResponse({"voices": voices, "can_change": self._desk.voices.change})

    async def add_voice(self, request: Request) -> Response:
        """Saves the voice of a recording under a name."""
        voices = self._changeable()
        wanted = await self._read(request, VoiceRequest)
        slip = self._base(wanted.model)
        voices.check_new(wanted.name)
        check_recording(slip.model, wanted.ref_text)
        sound = recording_of(wanted.ref_audio)
        async with self._desk.turn(slip) as synthesizer:
            voice = await to_thread.run_sync(voices.of, synthesizer, sound, wanted.ref_text)
        voices.add(wanted.name, voice)
        return JSONResponse({"id": wanted.name, "name": wanted.name, "object": "voice"}, 201)

    async def delete_voice(self, request: Request) -> Response:
        name = request.path_params["name"]
        if not self._changeable().delete(name):
            raise HTTPException(404, f"there is no saved voice {name[:100]!r}")
        return Response(status_code=204)

    async def list_models(self, _: Request) -> Response:
        models = [_describe(slip.model.name, slip) for slip in self._desk.shelf.slips]
        return JSONResponse({"object": "list", "data": models, "models": models})

    async def show_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse(_describe(name, self._desk.find(name) or self._desk.shelf.slips[0]))

    async def health(self, _: Request) -> Response:
        slots = self._desk.slots
        return JSONResponse(
            {
                "status": "ok",
                "model": self._desk.shelf.slips[0].model.name,
                "free_slots": slots.value,
                "waiting": slots.statistics().tasks_waiting,
            }
        )

    async def metrics(self, _: Request) -> Response:
        """As Prometheus scrapes them."""
        slips, metrics = self._desk.shelf.slips, self._desk.metrics
        loaded = {slip.model.name: slip.synthesizer.engine.batch for slip in slips if slip.synthesizer}
        metrics.observe(self._desk.slots, {name: batch for name, batch in loaded.items() if batch})
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    def _changeable(self) -> Voices:
        if not self._desk.voices.change:
            raise HTTPException(
                403, "voices cannot be changed here; start the server with --voices and --change-voices"
            )
        return self._desk.voices

    def _base(self, name: str | None) -> Slip:
        """The base bundle that a name means, or the first. Raises UnknownModel, RequestError."""
        if name and (named := self._desk.find(name)):
            return named
        if not self._desk.clones:
            raise RequestError("no bundle here clones a recording; serve a base bundle")
        return next(slip for slip in self._desk.shelf.slips if slip.model.kind == "base")

    async def _read(self, request: Request, kind: type[_Body]) -> _Body:
        """The body. Raises RequestError for its first fault, HTTPException for what is no JSON or too long."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":  # which a foreign web page cannot send without a preflight request
            raise HTTPException(415, "send JSON, with the header Content-Type: application/json")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._most_body:
                raise HTTPException(413, f"the body is over {self._most_body} bytes")
        return parse(kind, bytes(body))


class _Speaking:
    """The response to one request: generates the speech in a slot, and sends it as fast as the client reads."""

    def __init__(self, desk: Desk, order: Order) -> None:
        self._desk, self._order, self._wanted = desk, order, order.wanted
        self._events = self._wanted.stream_format == "sse"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ready, audio = anyio.create_memory_object_stream[bytes | Exception](AHEAD)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, receive, tasks.cancel_scope.cancel)
            tasks.start_soon(self._desk.make, self._order, self._pieces, ready)
            await self._send(audio, scope, receive, send)
            tasks.cancel_scope.cancel()

    def _pieces(self, stream: SpeechStream) -> Iterator[bytes]:
        """The speech as it is sent: encoded, at its speed, in events where those are wanted."""
        for audio in encoded(stream, self._wanted.response_format, self._wanted.speed):
            yield self._event(audio)
        if self._events:
            made, spent = len(stream.outcome.codes), len(self._order.slip.model.tokenize(self._wanted.input))
            usage = {"input_tokens": spent, "output_tokens": made, "total_tokens": spent + made}
            yield _event(type="speech.audio.done", usage=usage, **messages.facts(stream.outcome))

    def _event(self, audio: bytes) -> bytes:
        """Audio as OpenAI's event, or as it is. An encoder that holds all back gives an empty piece, and no event."""
        if not self._events or not audio:
            return audio
        return _event(type="speech.audio.delta", audio=base64.b64encode(audio).decode())

    async def _send(
        self, audio: MemoryObjectReceiveStream[bytes | Exception], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """An error before the first audio becomes a status; a later one an event, or it cuts the connection."""
        first = await audio.receive()
        if isinstance(first, Exception):
            return await _response(first)(scope, receive, send)
        media_type = "text/event-stream" if self._events else FORMATS[self._wanted.response_format].media_type
        headers = [(b"content-type", media_type.encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for piece in audio:
            if isinstance(piece, Exception):
                fault = messages.error(*messages.failure(piece, "speech broke off"))
                if not self._events:
                    return None  # clients notice
                piece = _event(type="error", error=fault)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        return await send({"type": "http.response.body", "body": b""})


def _event(**data: Any) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


async def _watch(receive: Receive, *leave: Callable[[], None]) -> None:
    """Calls these when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    for each in leave:
        each()


class _KeyRequired:
    """Rejects requests without the key, except to the paths that are open."""

    def __init__(self, app: ASGIApp, api_key: str, open_paths: Collection[str]) -> None:
        self._app, self._expected, self._open = app, api_key.encode(), open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and scope["path"] not in self._open:
            scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").strip().partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._expected):
                if scope["type"] == "websocket":
                    return await send({"type": "websocket.close", "code": 1008})
                refused = _error(401, "the API key is missing or wrong", {"WWW-Authenticate": "Bearer"})
                return await refused(scope, receive, send)
        return await self._app(scope, receive, send)


async def _answer(_: Request, error: Exception) -> Response:
    return _response(error)


def _response(error: Exception) -> Response:
    """The answer to a request that failed."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # never read
    if isinstance(error, HTTPException):
        return _error(error.status_code, error.detail, error.headers)
    status, told = messages.failure(error)
    return _error(status, told, {"Retry-After": "1"} if isinstance(error, Busy) else None)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error in the form that OpenAI's clients expect."""
    return JSONResponse({"error": messages.error(status, message)}, status, headers)


def _describe(name: str, slip: Slip) -> dict[str, Any]:
    """A model as OpenAI describes one, and what it can do."""
    model = slip.model
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "qwen3-tts-ov",
        "kind": model.kind,
        "languages": ["auto", *sorted(model.config["talker_config"]["codec_language_id"])],
        "instructions": takes_instructions(model),
        "default_voice": model.default_voice,
        "loaded": slip.synthesizer is not None,
    }


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 takes a free one. Raises RequestError."""
    with boundary(RequestError, f"cannot listen at {host}, port {port}", advice="choose another --port or --host"):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return socket.create_server(address, family=family, backlog=2048)


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serves until the process is asked to stop; responses in progress then have five seconds to finish."""
    import uvicorn

    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(app, host=host, port=port, timeout_graceful_shutdown=5, server_header=False)
    address = f"[{host}]" if ":" in host else host
    # uvicorn tells this only of sockets of its own
    logging.getLogger("uvicorn.error").info("running on http://%s:%d (press CTRL+C to quit)", address, port)
    uvicorn.Server(config).run(sockets=[listener])
