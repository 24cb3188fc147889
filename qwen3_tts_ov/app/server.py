"""An HTTP server with OpenAI's `/v1/audio/speech`, for programs written for that API.

A request waits in a bounded queue for one of a few slots. Speech is generated at its own pace, up to minutes ahead of
a slow client, which therefore holds no slot; when a client disconnects, its generation stops at the next chunk.

| kind of bundle | `voice` | `instructions` |
|---|---|---|
| custom_voice | a voice of the bundle; without it, its default voice | how to speak, optional |
| voice_design | ignored | the voice in words, required |
| base | a voice prompt of the server's folder, by file name | refused |
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import anyio
from anyio import to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import AudioError, DeviceError, RequestError
from ..request import Fields, Options, Voice, check_request
from ..speech import SpeechStream
from ..synthesizer import FIRST_CHUNK, Synthesizer
from ..voice import VoicePrompt
from .encoding import FORMATS, Encoder

# The one bundle that is served also answers requests for OpenAI's models.
OPENAI_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
_AHEAD = 256  # chunks buffered for a client, ten minutes of speech; only a full buffer keeps its slot occupied
_ESCAPED = 12  # the most bytes of JSON for one character, as in "\ud83d\ude00"

_FIELDS = Fields("voice", "instructions")

log = logging.getLogger(__name__)


class SpeechRequest(BaseModel):
    """The body of a request: OpenAI's fields, then those specific to this model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: str
    model: str | None = None
    voice: str | None = None
    instructions: str | None = None
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = "mp3"
    speed: float = 1.0
    stream_format: Literal["audio"] = "audio"

    language: str = "auto"
    first_chunk: int = FIRST_CHUNK
    seed: int | None = None
    max_frames: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None

    @field_validator("speed")
    @classmethod
    def _one_speed(cls, speed: float) -> float:
        if speed != 1:
            raise PydanticCustomError("speed", "this model has one speed, 1")
        return speed

    def options(self) -> Options:
        """The request's generation options, by the runtime's names."""
        given = self.model_dump(include=set(Options.__annotations__), exclude_none=True)
        return Options(**given)  # type: ignore[typeddict-item]


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
) -> Starlette:
    """The ASGI application of one loaded bundle.

    `voices` are the voices that a base bundle can clone, by name. `slots` requests are served at a time and `queue`
    more wait; beyond that the answer is 503. `max_characters` bounds `input` and `instructions` each. With an
    `api_key`, every path except `/health` requires it as a bearer token.
    """
    desk = _Desk(synthesizer, dict(voices or {}), anyio.Semaphore(slots, fast_acquire=True), queue, max_characters)
    return Starlette(
        routes=[
            Route("/v1/audio/speech", desk.speech, methods=["POST"]),
            Route("/v1/audio/voices", desk.list_voices),
            Route("/v1/models", desk.list_models),
            Route("/v1/models/{name}", desk.show_model),
            Route("/health", desk.health),
        ],
        middleware=[Middleware(_KeyRequired, api_key=api_key)] if api_key else [],
        exception_handlers={HTTPException: _http_error},  # type: ignore[dict-item]
    )


def load_voices(folder: Path) -> dict[str, VoicePrompt]:
    """The voice prompts of a folder by file name without ending. Raises AudioError."""
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
    ) -> None:
        self._synthesizer, self._voices, self._max_characters = synthesizer, voices, max_characters
        self._slots, self._queue = slots, queue
        self._max_body = _ESCAPED * 2 * max_characters + 4096
        self._model = synthesizer.model.name

    async def speech(self, request: Request) -> ASGIApp:
        try:
            wanted = self._parse(await self._body(request))
            stream = self._start(wanted)  # checks everything; nothing is computed before the first chunk is read
        except RequestError as error:
            return _error(400, str(error))
        except ClientDisconnect:
            return Response(status_code=499)  # never read
        return _Speaking(stream, wanted.response_format, self._slots, self._queue)

    async def list_voices(self, _: Request) -> Response:
        return JSONResponse({"voices": self._synthesizer.model.speakers or sorted(self._voices)})

    async def list_models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._describe()]})

    async def show_model(self, request: Request) -> Response:
        if request.path_params["name"] != self._model:
            raise HTTPException(404, f"there is no model {request.path_params['name']!r} here, only {self._model}")
        return JSONResponse(self._describe())

    async def health(self, _: Request) -> Response:
        slots = self._slots.statistics()
        return JSONResponse(
            {"status": "ok", "model": self._model, "free_slots": self._slots.value, "waiting": slots.tasks_waiting}
        )

    def _describe(self) -> dict[str, Any]:
        return {"id": self._model, "object": "model", "created": 0, "owned_by": "qwen3-tts-ov"}

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
        try:
            wanted = SpeechRequest.model_validate_json(body)
        except ValidationError as error:
            raise RequestError(_explain(error)) from None
        if wanted.model not in (None, self._model, *OPENAI_MODELS):
            raise HTTPException(404, f"there is no model {wanted.model!r} here, only {self._model}")
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
            **wanted.options(),
        )

    def _voice(self, name: str | None) -> Voice | None:
        """The voice of a request. A client's string is only ever a name, never a path."""
        kind = self._synthesizer.model.kind
        if kind == "voice_design":  # OpenAI's clients always send one
            return None
        if kind != "base":
            return name
        if name not in self._voices:
            known = ", ".join(sorted(self._voices)) or "none; start it with --voices"
            fault = "choose a voice" if name is None else f"unknown voice {name!r}; this server has"
            raise RequestError(f"{fault}: {known}")
        return self._voices[name]


class _Speaking:
    """The response to one request: generates the speech in a slot, and sends it as fast as the client reads."""

    def __init__(self, stream: SpeechStream, name: str, slots: anyio.Semaphore, queue: int) -> None:
        self._stream, self._format = stream, name
        self._slots, self._queue = slots, queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ready, audio = anyio.create_memory_object_stream[bytes | Exception](_AHEAD)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, receive, tasks.cancel_scope.cancel)
            tasks.start_soon(self._make, ready)
            await self._send(audio, scope, receive, send)
            tasks.cancel_scope.cancel()

    async def _make(self, ready: MemoryObjectSendStream[bytes | Exception]) -> None:
        """Takes a slot and speaks. An error is passed on in place of the next chunk, and ends the speech."""
        encoder = Encoder(self._format, self._stream.sample_rate)

        def next_piece() -> bytes | None:
            chunk = next(self._stream, None)
            return None if chunk is None else encoder.encode(chunk)

        with ready, self._stream:
            if self._slots.value == 0 and self._slots.statistics().tasks_waiting >= self._queue:
                await ready.send(_Busy())
                return
            async with self._slots:
                try:
                    while (piece := await to_thread.run_sync(next_piece)) is not None:
                        await ready.send(piece)
                    await ready.send(encoder.finish())
                except DeviceError as error:
                    await ready.send(error)
                finally:
                    self._stream.close()  # gives the infer requests back before the slot

    async def _send(
        self, audio: MemoryObjectReceiveStream[bytes | Exception], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """An error before the first audio becomes a status; a later one cuts the connection, which clients notice."""
        first = await audio.receive()
        if isinstance(first, _Busy):
            busy = _error(503, f"{self._queue} requests are waiting already; try again", {"Retry-After": "1"})
            return await busy(scope, receive, send)
        if isinstance(first, Exception):
            return await _error(500, str(first))(scope, receive, send)
        media_type = FORMATS[self._format].media_type.encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", media_type)]})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for piece in audio:
            if isinstance(piece, Exception):
                log.error("speech broke off: %s", piece)
                return None
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        return await send({"type": "http.response.body", "body": b""})


async def _watch(receive: Receive, cancel: Callable[[], None]) -> None:
    """Cancels when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    cancel()


class _KeyRequired:
    """Rejects requests without the key, except to /health."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app, self._expected = app, f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                refused = _error(401, "the API key is missing or wrong", {"WWW-Authenticate": "Bearer"})
                return await refused(scope, receive, send)
        return await self._app(scope, receive, send)


async def _http_error(_: Request, error: HTTPException) -> Response:
    return _error(error.status_code, error.detail, error.headers)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error in the form that OpenAI's clients expect."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, status, headers)


def _explain(error: ValidationError) -> str:
    """The first fault of a body, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown field {place}; known: {', '.join(SpeechRequest.model_fields)}"
    return f"{place}: {first['msg']}" if place else first["msg"]


def serve(app: ASGIApp, host: str, port: int) -> None:
    """Serves until the process is asked to stop; responses in progress then have five seconds to finish."""
    import uvicorn

    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=5, server_header=False)
