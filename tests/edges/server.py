"""The server: requests as programs send them, and those that no program should."""

import io
import json
from collections.abc import Callable
from typing import Any
from unittest import mock

import av
import httpx2
import numpy as np

from qwen3_tts_ov import VoicePrompt
from qwen3_tts_ov.app.server import application
from qwen3_tts_ov.app.voices import Voices
from qwen3_tts_ov.session import Session
from tests.serving import SPEECH, served

from .case import Case, Desk

GOOD = {"input": "Hi.", "voice": "ryan", "max_frames": 4, "seed": 1}


def ask(
    changed: dict[str, Any] | bytes | None = None,
    path: str = SPEECH,
    method: str = "POST",
    headers: dict[str, Any] | None = None,
    kind: str = "custom-voice",
    **how: Any,
) -> Callable[[Desk], str]:
    """One request, a good one but for what is changed, and the answer in one line."""

    def do(desk: Desk) -> str:
        content = changed if isinstance(changed, bytes) else json.dumps(GOOD | (changed or {})).encode()
        chosen = how | ({"voices": saved(desk)} if kind == "base" else {})
        with served(application(desk.synthesizer(kind), **chosen)) as client:
            sent = {"Content-Type": "application/json"} | (headers or {})
            return told(client.request(method, path, content=content if method == "POST" else None, headers=sent))

    return do


def saved(desk: Desk) -> Voices:
    """The voices of a base bundle's server."""
    width = desk.synthesizer("base").model.config["talker_config"]["hidden_size"]
    return Voices({name: VoicePrompt(np.zeros(width, np.float32)) for name in ("Alice", "my_voice")})


def told(answer: httpx2.Response) -> str:
    """An answer in one line: the seconds of audio, the error's message, or the start of anything else."""
    media = answer.headers.get("content-type", "nothing")
    if media == "audio/pcm":
        return f"{answer.status_code}, {media}, {len(answer.content) / 48_000:.1f} s"
    if media.startswith("audio/"):
        with av.open(io.BytesIO(answer.content)) as file:
            samples = sum(frame.samples * 24_000 // frame.sample_rate for frame in file.decode(audio=0))
        return f"{answer.status_code}, {media}, {samples / 24_000:.1f} s"
    if media == "application/json" and "error" in answer.json():
        return f"{answer.status_code}: {answer.json()['error']['message']}"
    kinds = [json.loads(line[6:])["type"] for line in answer.text.splitlines() if line.startswith('data: {"type"')]
    return f"{answer.status_code}, {media}, {', '.join(dict.fromkeys(kinds)) or answer.text[:80]}"


def failing(error: Exception, after: int = 0, **fields: Any) -> Callable[[Desk], str]:
    """A request whose generation fails after some steps, and whether the server goes on."""

    def do(desk: Desk) -> str:
        talk, left = Session.talk, [after]

        def break_off(session: Session, embeddings: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise error
            return talk(session, embeddings)

        with served(application(desk.synthesizer("custom-voice"))) as client:
            with mock.patch.object(Session, "talk", break_off):
                try:
                    first = told(client.post(SPEECH, json=GOOD | {"first_chunk": 1} | fields))
                except httpx2.RemoteProtocolError:
                    first = "the connection is cut"
            return f"{first}; then {told(client.post(SPEECH, json=GOOD))}"

    return do


PREFLIGHT = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
PREFLIGHT |= {"Access-Control-Request-Headers": "authorization,content-type"}
SPOKEN = "200, audio/mpeg"

CASES = [
    Case("a plain request", ask(), SPOKEN),
    Case("voice as an object", ask({"voice": {"id": "ryan"}}), SPOKEN),
    Case("voice in capitals, with spaces", ask({"voice": " RYAN "}), SPOKEN),
    Case("voice without its underscore", ask({"voice": "Uncle Fu"}), SPOKEN),
    Case("voice null", ask({"voice": None}), SPOKEN),
    Case("voice empty", ask({"voice": ""}), SPOKEN),
    Case("voice of OpenAI", ask({"voice": "alloy"}), "400: unknown voice 'alloy'; this bundle has"),
    Case("voice as a list", ask({"voice": ["ryan"]}), "400: voice: Input should be a valid string"),
    Case("voice as an object without id", ask({"voice": {"name": "ryan"}}), "400: voice"),
    Case("a saved voice in another case", ask({"voice": "alice"}, kind="base"), SPOKEN),
    Case("a saved voice without its underscore", ask({"voice": "My Voice"}, kind="base"), SPOKEN),
    Case("a saved voice as a path", ask({"voice": "../Alice"}, kind="base"), "400: unknown voice '../Alice'"),
    Case("no voice where there are several", ask({"voice": None}, kind="base"), "400: choose a voice: Alice, my_voice"),
    Case("language en", ask({"language": "en"}), SPOKEN),
    Case("language en-US", ask({"language": "en-US"}), SPOKEN),
    Case("language zh_Hans_CN", ask({"language": "zh_Hans_CN"}), SPOKEN),
    Case("language GERMAN", ask({"language": "GERMAN"}), SPOKEN),
    Case("language null", ask({"language": None}), SPOKEN),
    Case("language empty", ask({"language": ""}), SPOKEN),
    Case("language that the model lacks", ask({"language": "sv"}), "400: unknown language 'sv'; this checkpoint has"),
    Case("model null", ask({"model": None}), SPOKEN),
    Case("model by the checkpoint's name", ask({"model": "Qwen3-TTS-12Hz-1.7B-CustomVoice"}), SPOKEN),
    Case("model by its repository", ask({"model": "Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice"}), SPOKEN),
    Case("model of OpenAI, dated", ask({"model": "tts-1-1106"}), SPOKEN),
    Case("model of another family", ask({"model": "whisper-1"}), "404: there is no model 'whisper-1' here"),
    Case("format MP3", ask({"response_format": "MP3"}), SPOKEN),
    Case("format aac", ask({"response_format": "aac"}), "200, audio/aac"),
    Case("format Opus", ask({"response_format": "Opus"}), "200, audio/ogg"),
    Case("format null", ask({"response_format": None}), SPOKEN),
    Case("format m4a", ask({"response_format": "m4a"}), "400: response_format"),
    Case("half speed", ask({"speed": 0.5, "max_frames": 12, "response_format": "pcm"}), "200, audio/pcm, 1.9 s"),
    Case("double speed", ask({"speed": 2, "max_frames": 12, "response_format": "pcm"}), "200, audio/pcm, 0.5 s"),
    Case("a quarter of the speed", ask({"speed": 0.25}), SPOKEN),
    Case("four times the speed", ask({"speed": 4.0}), SPOKEN),
    Case("speed 5", ask({"speed": 5}), "400: speed: Input should be less than or equal to 4"),
    Case("speed null", ask({"speed": None}), SPOKEN),
    Case("speed in words", ask({"speed": "fast"}), "400: speed: Input should be a valid number"),
    Case("events", ask({"stream_format": "sse"}), "200, text/event-stream, speech.audio.delta, speech.audio.done"),
    Case("events, in capitals", ask({"stream_format": "SSE"}), "speech.audio.done"),
    Case("first_chunk 2^63", ask({"first_chunk": 2**63}), "400: first_chunk must be at most 128"),
    Case("max_frames 10^30", ask({"max_frames": 10**30}), "400: max_frames must be at most 1000000"),
    Case("seed -1", ask({"seed": -1}), "400: seed must be a whole number of at least 0"),
    Case("seed 2^64", ask({"seed": 2**64}), "400: seed must be at most"),
    Case("top_k 10^18", ask({"top_k": 10**18}), SPOKEN),
    Case("top_k in halves", ask({"top_k": 2.5}), "400: top_k"),
    Case("temperature 0", ask({"temperature": 0}), "400: temperature must be above 0 and finite, 0.001 to 1000, not 0"),
    Case("temperature 1e-300", ask({"temperature": 1e-300}), "400: temperature must be above 0"),
    Case("repetition_penalty 1e300", ask({"repetition_penalty": 1e300}), "400: repetition_penalty must be above 0"),
    Case("a number of 5000 digits", ask(b'{"input": "Hi.", "seed": ' + b"9" * 5000 + b"}"), "400: Invalid JSON"),
    Case("an unknown field", ask({"stream": True}), "400: unknown field stream; known: input"),
    Case("an empty body", ask(b""), "400: Invalid JSON"),
    Case("a form", ask({}, headers={"Content-Type": "application/x-www-form-urlencoded"}), "415: send JSON"),
    Case("JSON with a charset", ask({}, headers={"Content-Type": "application/json; charset=utf-8"}), SPOKEN),
    Case("GET instead of POST", ask(method="GET"), "405: Method Not Allowed"),
    Case("the list of voices", ask(path="/v1/audio/voices", method="GET"), '{"voices":[{"id":"aiden","name":"aiden"'),
    Case("the list of models", ask(path="/v1/models", method="GET"), '"data":[{"id":"tiny-custom-voice-int8"'),
    Case("Open WebUI's list of models", ask(path="/v1/audio/models", method="GET"), "200, application/json"),
    Case(
        "a model of OpenAI, retrieved",
        ask(path="/v1/models/tts-1", method="GET"),
        '200, application/json, {"id":"tts-1"',
    ),
    Case("a model with an owner, retrieved", ask(path="/v1/models/Qwen/Qwen3-TTS-12Hz-0.6B-Base", method="GET"), "200"),
    Case("no key", ask(api_key="k"), "401: the API key is missing or wrong"),
    Case("a bearer in lower case", ask(api_key="k", headers={"Authorization": "bearer k"}), SPOKEN),
    Case("a key without a scheme", ask(api_key="k", headers={"Authorization": "k"}), "401"),
    Case(
        "a key beyond ASCII",
        ask(api_key="clé", headers={"Authorization": "Bearer clé".encode()}),
        SPOKEN,
    ),
    Case("a browser asks first", ask(method="OPTIONS", headers=PREFLIGHT, cors=["*"], api_key="k"), "200"),
    Case("a browser of another origin", ask(method="OPTIONS", headers=PREFLIGHT, cors=["https://b.example"]), "400"),
    Case("a browser, and no --cors", ask(method="OPTIONS", headers=PREFLIGHT), "405"),
    Case("the device fails at once", failing(RuntimeError("gone")), f"500: RuntimeError: gone; then {SPOKEN}"),
    Case("the device fails in the speech", failing(RuntimeError("gone"), 2), f"the connection is cut; then {SPOKEN}"),
    Case(
        "it fails in the speech, as events", failing(KeyError("x"), 2, stream_format="sse"), "speech.audio.delta, error"
    ),
    Case("no memory", failing(MemoryError()), f"500: MemoryError: MemoryError; then {SPOKEN}"),
]
