"""An HTTP server with OpenAI's `/v1/audio/speech`, for programs written for that API.

A request waits in a bounded queue for one of a few slots. Speech is generated at its own pace, up to minutes ahead of
a slow client, which therefore holds no slot; when a client disconnects, its generation stops at the next frame.

| kind of bundle | `voice` | `instructions` |
|---|---|---|
| custom_voice | a voice of the bundle; without it, its default voice | how to speak, optional |
| voice_design | ignored | the voice in words, required |
| base | a voice prompt of the server's folder, by file name | refused |

What programs send is taken as they mean it: a voice or language in another spelling, null or an empty text for a field
that is left out. An unknown field, and a number out of bounds, is an error in one line.
"""

from __future__ import annotations

import base64
import hmac
import json
import logging
import os
import re
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import memory, names
from ..errors import AudioError, Qwen3TTSError, RequestError, boundary, first_line
from ..request import Fields, Options, Voice, check_request
from ..speech import SpeechStream
from ..synthesizer import Synthesizer
from ..voice import VoicePrompt
from .encoding import FORMATS, Encoder, Tempo
from .metrics import CONTENT_TYPE, Metrics
from .speech_request import SpeechRequest

# The one bundle that is served also answers requests for OpenAI's models, and for any released Qwen3-TTS.
_UNDERSTOOD = re.compile(r"tts-1(-hd)?(-\d+)?|gpt-4o-mini-tts(-[\d-]+)?|([\w.-]+/)?qwen3-tts[\w.-]*", re.IGNORECASE)
_AHEAD = 256  # chunks buffered for a client, ten minutes of speech; only a full buffer keeps its slot occupied
_ESCAPED = 12  # the most bytes of JSON for one character, as in "\ud83d\ude00"

_FIELDS = Fields("voice", "instructions")

log = logging.getLogger(__name__)


class _Busy(Exception):
    """Every slot is taken and the queue is full."""


def application(
    synthesizer: Synthesizer,
    *,
    voices: Mapping[str, VoicePrompt] | None = None,
    api_key: str | None = None,
    slots: int = 1,
    queue: int = 16,
    max_characters: int = 4096,
    cors: Collection[str] = (),
    aliases: Collection[str] = (),
) -> Starlette:
    """The ASGI application of one loaded bundle.

    `voices` are the voices that a base bundle can clone, by name. `slots` requests are served at a time and `queue`
    more wait; beyond that the answer is 503. `max_characters` bounds `input` and `instructions` each. With an
    `api_key`, every path except `/health` requires it as a bearer token. Web pages of the origins in `cors`, or of any
    for `*`, may send requests. `aliases` are further names for the model.
    """
    desk = _Desk(
        synthesizer, dict(voices or {}), anyio.Semaphore(slots, fast_acquire=True), queue, max_characters, aliases
    )
    # In this order: a browser's preflight carries no key.
    origins = Middleware(
        CORSMiddleware,
        allow_origins=cors,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        allow_private_network=True,
    )
    key = Middleware(_KeyRequired, api_key=api_key or "")
    return Starlette(
        routes=[
            Route("/v1/audio/speech", desk.speech, methods=["POST"]),
            Route("/v1/audio/voices", desk.list_voices),
            Route("/v1/audio/models", desk.list_models),
            Route("/v1/models", desk.list_models),
            Route("/v1/models/{name:path}", desk.show_model),
            Route("/health", desk.health),
            Route("/metrics", desk.metrics),
        ],
        middleware=[*[origins] * bool(cors), *[key] * bool(api_key)],
        exception_handlers={HTTPException: _http_error},  # type: ignore[dict-item]
    )


def default_slots() -> int:
    """A guess, not measured: two for each core, at most 16, and at most one for each GB of free memory."""
    available = memory.available_bytes()
    return max(1, min(2 * (os.cpu_count() or 1), 16, 16 if available is None else available // 10**9))


def load_voices(folder: Path) -> dict[str, VoicePrompt]:
    """The voice prompts of a folder by file name without ending. Raises AudioError."""
    with boundary(AudioError, f"{folder}: cannot be read"):
        voices = {path.stem: VoicePrompt.load(path) for path in sorted(folder.glob("*.safetensors"))}
    if not voices:
        raise AudioError(f"{folder}: it has no voice prompt (.safetensors); save one with `qwen3-tts-ov voice`")
    return voices


class _Desk:
    """The endpoints, and the slots that they share."""

    def __init__(
        self,
        synthesizer: Synthesizer,
        voices: dict[str, VoicePrompt],
        slots: anyio.Semaphore,
        queue: int,
        max_characters: int,
        aliases: Collection[str],
    ) -> None:
        self._synthesizer, self._voices, self._max_characters = synthesizer, voices, max_characters
        self._slots, self._queue = slots, queue
        self._max_body = _ESCAPED * 2 * max_characters + 4096
        self._model = synthesizer.model.name
        self._names = {name.lower() for name in (self._model, *aliases)}
        self._metrics = Metrics()

    async def speech(self, request: Request) -> ASGIApp:
        try:
            wanted = self._parse(await self._body(request))
            stream = self._start(wanted)  # checks everything; nothing is computed before the first chunk is read
        except RequestError as error:
            return _error(400, str(error))
        except ClientDisconnect:
            return Response(status_code=499)  # never read
        except HTTPException:
            raise
        except Exception as error:
            return _failed(error)
        spent = len(self._synthesizer.model.tokenize(wanted.input)) if wanted.stream_format == "sse" else None
        return _Speaking(stream, wanted.response_format, wanted.speed, spent, self._slots, self._queue, self._metrics)

    async def list_voices(self, _: Request) -> Response:
        voices = self._synthesizer.model.speakers or sorted(self._voices)
        return JSONResponse({"voices": [{"id": name, "name": name, "object": "voice"} for name in voices]})

    async def list_models(self, _: Request) -> Response:
        models = [self._describe(self._model)]
        return JSONResponse({"object": "list", "data": models, "models": models})

    async def show_model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._describe(request.path_params["name"]))

    async def health(self, _: Request) -> Response:
        slots = self._slots.statistics()
        batch = self._synthesizer.engine.batch
        found = {"status": "ok", "model": self._model, "free_slots": self._slots.value, "waiting": slots.tasks_waiting}
        if batch is not None:
            found |= {"speaking": batch.speaking, "free_blocks": batch.blocks.free, "blocks": batch.blocks.count}
        return JSONResponse(found)

    async def metrics(self, _: Request) -> Response:
        self._metrics.observe(self._slots, self._synthesizer.engine.batch)
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    def _describe(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "qwen3-tts-ov"}

    def _check_model(self, name: str) -> None:
        """Raises HTTPException for a model that is not served."""
        if name.strip().lower() not in self._names and not _UNDERSTOOD.fullmatch(name.strip()):
            raise HTTPException(404, f"there is no model {name[:100]!r} here, only {self._model}")

    async def _body(self, request: Request) -> bytes:
        """The body, read up to its maximum length. Raises HTTPException."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which a foreign web page cannot send without a preflight request
            raise HTTPException(415, "send JSON, with the header Content-Type: application/json")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._max_body:
                raise HTTPException(413, f"the body is over {self._max_body} bytes")
        return bytes(body)

    def _parse(self, body: bytes) -> SpeechRequest:
        """Raises RequestError for the first fault, HTTPException for a model that is not served."""
        wanted = SpeechRequest.parse(body)
        if wanted.model is not None:
            self._check_model(wanted.model)
        for name in ("input", "instructions"):
            if len(getattr(wanted, name) or "") > self._max_characters:
                raise RequestError(f"{name} has more than {self._max_characters} characters; send it in parts")
        return wanted

    def _start(self, wanted: SpeechRequest) -> SpeechStream:
        """Raises RequestError for what the bundle cannot serve."""
        model, voice = self._synthesizer.model, self._voice(wanted.voice)
        check_request(model, wanted.input, voice, wanted.instructions, wanted.language, None, _FIELDS)
        return self._synthesizer.stream(
            wanted.input,
            voice,
            wanted.instructions,
            wanted.language,
            first_chunk=wanted.first_chunk,
            **wanted.options() | Options(pieces_ahead=0),  # others' slots are not taken for what is not yet heard
        )

    def _voice(self, name: str | None) -> Voice | None:
        """The voice of a request. A client's string is only ever a name, never a path."""
        kind = self._synthesizer.model.kind
        if kind == "voice_design":  # OpenAI's clients always send one
            return None
        if kind != "base":
            return name
        found = None if name is None else names.find(name, self._voices)
        if found is None:
            known = ", ".join(sorted(self._voices)) or "none; start it with --voices"
            fault = "choose a voice" if name is None else f"unknown voice {name!r}; this server has"
            raise RequestError(f"{fault}: {known}")
        return self._voices[found]


class _Speaking:
    """The response to one request: generates the speech in a slot, and sends it as fast as the client reads.

    `spent` is the number of the text's tokens, which makes this a response of events; None makes it audio.
    """

    def __init__(
        self,
        stream: SpeechStream,
        form: str,
        speed: float,
        spent: int | None,
        slots: anyio.Semaphore,
        queue: int,
        metrics: Metrics,
    ) -> None:
        self._stream, self._format, self._speed, self._spent = stream, form, speed, spent
        self._slots, self._queue, self._metrics = slots, queue, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ready, audio = anyio.create_memory_object_stream[bytes | Exception](_AHEAD)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, receive, self._stream.cancel, tasks.cancel_scope.cancel)
            tasks.start_soon(self._make, ready)
            await self._send(audio, scope, receive, send)
            tasks.cancel_scope.cancel()

    async def _make(self, ready: MemoryObjectSendStream[bytes | Exception]) -> None:
        """Takes a slot and speaks. An error is passed on in place of the next chunk, and ends the speech."""
        with ready, self._stream:
            if self._slots.value == 0 and self._slots.statistics().tasks_waiting >= self._queue:
                await ready.send(_Busy())
                return
            async with self._slots:
                try:
                    pieces = self._pieces()
                    while (piece := await to_thread.run_sync(next, pieces, None)) is not None:
                        await ready.send(piece)
                except Exception as error:  # of the runtime, a codec, or a fault of this program
                    await ready.send(error)
                finally:
                    self._stream.close()  # gives the infer requests back before the slot

    def _pieces(self) -> Iterator[bytes]:
        """The speech as it is sent: encoded, at its speed, in events where those are wanted."""
        encoder = Encoder(self._format, self._stream.sample_rate)
        tempo = None if self._speed == 1 else Tempo(self._speed, self._stream.sample_rate)
        for chunk in self._stream:
            yield self._event(encoder.encode(tempo(chunk) if tempo else chunk))
        yield self._event((encoder.encode(tempo.finish()) if tempo else b"") + encoder.finish())
        self._metrics.spoken(self._stream.outcome)
        if self._spent is not None:
            made = len(self._stream.outcome.codes)
            usage = {"input_tokens": self._spent, "output_tokens": made, "total_tokens": self._spent + made}
            yield _event(type="speech.audio.done", usage=usage)

    def _event(self, audio: bytes) -> bytes:
        """Audio as OpenAI's event, or as it is. An encoder that holds all back gives an empty piece, and no event."""
        if self._spent is None or not audio:
            return audio
        return _event(type="speech.audio.delta", audio=base64.b64encode(audio).decode())

    async def _send(
        self, audio: MemoryObjectReceiveStream[bytes | Exception], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """An error before the first audio becomes a status; a later one an event, or it cuts the connection."""
        first = await audio.receive()
        if isinstance(first, _Busy):
            busy = _error(503, f"{self._queue} requests are waiting already; try again", {"Retry-After": "1"})
            return await busy(scope, receive, send)
        if isinstance(first, Exception):
            return await _failed(first)(scope, receive, send)
        media_type = FORMATS[self._format].media_type if self._spent is None else "text/event-stream"
        headers = [(b"content-type", media_type.encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for piece in audio:
            if isinstance(piece, Exception):
                log.error("speech broke off: %s", _in_one_line(piece))
                if self._spent is None:
                    return None  # clients notice
                piece = _event(type="error", error=_described(500, _in_one_line(piece)))
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
    """Rejects requests without the key, except to /health."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app, self._expected = app, api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").strip().partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._expected):
                refused = _error(401, "the API key is missing or wrong", {"WWW-Authenticate": "Bearer"})
                return await refused(scope, receive, send)
        return await self._app(scope, receive, send)


async def _http_error(_: Request, error: HTTPException) -> Response:
    return _error(error.status_code, error.detail, error.headers)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error in the form that OpenAI's clients expect."""
    return JSONResponse({"error": _described(status, message)}, status, headers)


def _described(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": message, "type": kind, "param": None, "code": None}


def _failed(error: Exception) -> Response:
    """The answer to a request that this server, not its client, is to blame for; noted in the log."""
    log.error("speech failed: %s", _in_one_line(error))
    return _error(500, _in_one_line(error))


def _in_one_line(error: Exception) -> str:
    line = first_line(error)
    return line if isinstance(error, Qwen3TTSError) else f"{type(error).__name__}: {line}"


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
