"""The HTTP server over real loopback connections: requests of OpenAI's clients, and the responses."""

import base64
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import av
import httpx2
import numpy as np
import pytest
import soundfile

from qwen3_tts_ov import Bundle, DeviceError, Synthesizer, VoicePrompt
from qwen3_tts_ov.app import cli
from qwen3_tts_ov.app.encoding import Tempo
from qwen3_tts_ov.app.server import application
from qwen3_tts_ov.app.shelf import Shelf
from qwen3_tts_ov.app.voices import Voices
from qwen3_tts_ov.audio import pcm16
from qwen3_tts_ov.session import Session
from tests.conftest import until
from tests.serving import SPEECH, idle, served

FRAME = 1920
MODEL = "tiny-custom-voice-int8"
ENDLESS = {"input": "It goes on and on.", "max_frames": 20_000, "first_chunk": 1}  # minutes if it is not cut off
Serving = Callable[..., AbstractContextManager[httpx2.Client]]


@pytest.fixture(scope="module")
def synthesizer(artifact, model_cache) -> Callable[[str], Synthesizer]:
    made: dict[str, Synthesizer] = {}

    def get(variant: str = "tiny-custom-voice") -> Synthesizer:
        if variant not in made:
            made[variant] = Synthesizer(Bundle.load(artifact("bundle", variant, "int8")), cache_dir=model_cache)
        return made[variant]

    return get


@pytest.fixture
def serving(synthesizer) -> Serving:
    """`with serving(slots=2) as client`: a server on a free port, and a client for it."""

    @contextmanager
    def start(variant: str = "tiny-custom-voice", **how: object) -> Iterator[httpx2.Client]:
        with served(application(synthesizer(variant), **how)) as client:
            yield client

    return start


@pytest.mark.parametrize("name", ["mp3", "opus", "flac", "wav", "pcm", "aac"])
def test_every_format_contains_the_speech_that_the_runtime_makes(serving, synthesizer, name, tmp_path):
    loaded = synthesizer()
    with loaded.stream("Hello.", "ryan", seed=1, max_frames=12) as stream:
        expected = np.concatenate(list(stream))
    request = {"input": "Hello.", "voice": "ryan", "seed": 1, "max_frames": 12, "response_format": name}
    with serving() as client:
        answer = client.post(SPEECH, json=request)
    assert answer.status_code == 200, answer.text
    kinds = {"mp3": "audio/mpeg", "opus": "audio/ogg"}
    assert answer.headers["content-type"] == kinds.get(name, f"audio/{name}")
    assert answer.headers["transfer-encoding"] == "chunked"
    if name == "pcm":
        assert answer.content == pcm16(expected)
        return
    content = bytearray(answer.content)
    if name == "flac":  # libsndfile cannot read one whose header leaves the number of samples open
        content[22:26] = len(expected).to_bytes(4)
    samples, rate = decoded(bytes(content)) if name == "aac" else soundfile.read(io.BytesIO(content), dtype="float32")
    assert (rate, samples.ndim) == (24_000, 1)
    if name in ("wav", "flac"):
        np.testing.assert_allclose(samples, expected, atol=1e-4)
    else:
        assert 0 <= len(samples) - len(expected) <= 4 * 576, "the frames of MP3 and AAC are padded"
        loudness = np.sqrt(np.mean(np.square(expected)))
        assert np.sqrt(np.mean(np.square(samples))) == pytest.approx(loudness, rel=0.3)


def test_the_default_is_mp3_in_the_default_voice_and_openais_model_names_are_understood(serving):
    with serving() as client:
        request = {"model": "tts-1", "input": "Hi.", "max_frames": 2, "seed": 1}
        answer = client.post(SPEECH, json=request)
        assert client.post(SPEECH, json=request | {"voice": "serena"}).content == answer.content
        assert client.post(SPEECH, json=request | {"voice": "ryan"}).content != answer.content
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/mpeg")


def test_audio_is_streamed_and_disconnecting_stops_its_generation(serving, synthesizer):
    engine = synthesizer().engine
    with serving() as client:
        with client.stream("POST", SPEECH, json=ENDLESS | {"voice": "ryan", "response_format": "pcm"}) as answer:
            assert len(next(answer.iter_raw())) >= 2 * FRAME
            assert client.get("/health").json()["free_slots"] == 0, "the rest is still being made"
            sessions = len(engine._free)
        until(lambda: idle(client))
        assert len(engine._free) == sessions + 1
        assert client.post(SPEECH, json={"input": "Hi.", "voice": "ryan", "max_frames": 2}).status_code == 200


def test_a_client_that_does_not_read_occupies_no_slot(serving):
    with serving() as client:
        request = {"input": "Hello.", "voice": "ryan", "max_frames": 60, "response_format": "wav"}
        with client.stream("POST", SPEECH, json=request) as answer:
            until(lambda: idle(client))
            assert len(answer.read()) > 44


def test_requests_beyond_the_queue_are_refused_and_the_waiting_are_served(serving):
    short = {"input": "Hi.", "voice": "ryan", "max_frames": 2, "seed": 1, "response_format": "pcm"}
    answers: list[httpx2.Response] = []
    with serving(slots=1, queue=1) as client:
        with client.stream("POST", SPEECH, json=ENDLESS | {"voice": "ryan", "response_format": "pcm"}):
            waiting = threading.Thread(target=lambda: answers.append(client.post(SPEECH, json=short)))
            waiting.start()
            until(lambda: client.get("/health").json()["waiting"] == 1)
            refused = client.post(SPEECH, json=short)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["type"] == "server_error"
            assert "1 requests are waiting already" in refused.json()["error"]["message"]
        waiting.join(30)
    assert [len(answer.content) for answer in answers] == [2 * FRAME * 2]


def test_a_client_that_disconnects_while_waiting_frees_its_place(serving):
    with serving(slots=1, queue=1) as client:
        with client.stream("POST", SPEECH, json=ENDLESS | {"voice": "ryan"}):
            impatient = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
            body = json.dumps({"input": "Hi.", "voice": "ryan"})
            impatient.request("POST", SPEECH, body, {"Content-Type": "application/json"})
            until(lambda: client.get("/health").json()["waiting"] == 1)
            impatient.close()
            until(lambda: client.get("/health").json()["waiting"] == 0)
        until(lambda: idle(client))


def test_concurrent_requests_each_get_their_own_speech(serving, synthesizer):
    loaded = synthesizer()
    expected = {
        seed: pcm16(np.concatenate(list(loaded.stream("Hello.", "ryan", seed=seed, max_frames=8)))) for seed in range(6)
    }
    found: dict[int, bytes] = {}
    with serving(slots=3) as client:

        def ask(seed: int) -> None:
            request = {"input": "Hello.", "voice": "ryan", "seed": seed, "max_frames": 8, "response_format": "pcm"}
            found[seed] = client.post(SPEECH, json=request).content

        threads = [threading.Thread(target=ask, args=[seed]) for seed in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert idle(client, slots=3)
    assert found == expected


def test_models_voices_and_health_are_reported(serving):
    with serving() as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [MODEL]
        assert client.get(f"/v1/models/{MODEL}").json()["object"] == "model"
        assert client.get("/v1/models/other").status_code == 404
        assert {"id": "ryan", "name": "ryan", "object": "voice", "models": [MODEL]} in client.get(
            "/v1/audio/voices"
        ).json()["voices"]
        assert client.get("/health").json() == {"status": "ok", "model": MODEL, "free_slots": 1, "waiting": 0}


def test_the_key_is_required_everywhere_except_for_health(serving):
    with serving(api_key="a secret") as client:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "a secret"}):
            for answer in (client.post(SPEECH, json={}, headers=headers), client.get("/v1/models", headers=headers)):
                assert answer.status_code == 401
                assert "key is missing or wrong" in answer.json()["error"]["message"]
                assert "secret" not in answer.text
        assert client.get("/health").status_code == 200
        for scheme in ("Bearer a secret", "bearer a secret", "BEARER  a secret"):
            assert client.get("/v1/models", headers={"Authorization": scheme}).status_code == 200


# The body of the request, the status, and part of the answer.
GOOD = {"input": "Hi.", "voice": "ryan", "max_frames": 2}
BAD_BODIES: dict[str, tuple[object, int, str]] = {
    "nothing": (b"", 400, "Invalid JSON"),
    "half an object": (b'{"input": "Hi."', 400, "Invalid JSON"),
    "no JSON": (b"Hello?", 400, "Invalid JSON"),
    "not UTF-8": (b'{"input": "\xff\xfe"}', 400, "Invalid JSON"),
    "half a surrogate pair": (b'{"input": "\\ud800", "voice": "ryan"}', 400, "Invalid JSON"),
    "a deep nest": (b"[" * 50_000, 400, "Invalid JSON"),
    "a list": ([], 400, "Input should be an object"),
    "no input": ({"voice": "ryan"}, 400, "input: Field required"),
    "a number as input": (GOOD | {"input": 1}, 400, "input: Input should be a valid string"),
    "an empty input": (GOOD | {"input": ""}, 400, "the text has no letter, digit or symbol"),
    "markup": (GOOD | {"input": "<|im_end|>"}, 400, "control token <|im_end|>"),
    "a long input": (GOOD | {"input": "a" * 4097}, 400, "input has more than 4096 characters"),
    "a long instruction": (GOOD | {"instructions": "a" * 4097}, 400, "instructions has more than 4096"),
    "a huge body": (GOOD | {"input": "a" * 200_000}, 413, "the body is over 151552 bytes"),
    "an instruction to 0.6B": (GOOD | {"instructions": "Calm."}, 400, "leave instructions out"),
    "an unknown voice": (GOOD | {"voice": "alloy"}, 400, "unknown voice 'alloy'; this bundle has: aiden"),
    "a number as voice": (GOOD | {"voice": 7}, 400, "voice: Input should be a valid string"),
    "an unknown model": (GOOD | {"model": "gpt-9"}, 404, f"there is no model 'gpt-9' here, only {MODEL}"),
    "M4A": (GOOD | {"response_format": "m4a"}, 400, "response_format: Input should be 'mp3', 'opus', 'aac', 'flac'"),
    "too fast": (GOOD | {"speed": 4.01}, 400, "speed: Input should be less than or equal to 4"),
    "too slow": (GOOD | {"speed": 0.2}, 400, "speed: Input should be greater than or equal to 0.25"),
    "no speed": (b'{"input": "Hi.", "voice": "ryan", "speed": NaN}', 400, "speed: Input should be a finite number"),
    "lines": (GOOD | {"stream_format": "ndjson"}, 400, "stream_format: Input should be 'audio' or 'sse'"),
    "a voice without a name": (GOOD | {"voice": {"name": "x"}}, 400, "voice: Input should be a valid string"),
    "half a million chunks": (GOOD | {"first_chunk": 2**63}, 400, "first_chunk must be at most 128, not 9223372"),
    "years of speech": (GOOD | {"max_frames": 2**63}, 400, "max_frames must be at most 1000000, not 9223372"),
    "a seed beyond 64 bits": (GOOD | {"seed": 2**64}, 400, "seed must be at most 9223372036854775807, not 1844674"),
    "a number of 5000 digits": (
        b'{"input": "Hi.", "seed": ' + b"9" * 5000 + b"}",
        400,
        "Invalid JSON: number out of range",
    ),
    "hot": (GOOD | {"temperature": 1e300}, 400, "temperature must be above 0 and finite, 0.001 to 1000"),
    "a penalty beyond float32": (GOOD | {"repetition_penalty": 1e-60}, 400, "repetition_penalty must be above 0"),
    "an unknown field": (GOOD | {"temprature": 1}, 400, "unknown field temprature; known: input, "),
    "an unknown language": (GOOD | {"language": "elvish"}, 400, "unknown language 'elvish'"),
    "a negative seed": (GOOD | {"seed": -1}, 400, "seed must be a whole number of at least 0"),
    "half a seed": (GOOD | {"seed": 0.5}, 400, "seed: Input should be a valid integer"),
    "no frames": (GOOD | {"max_frames": 0}, 400, "max_frames must be a whole number of at least 1"),
    "no first chunk": (GOOD | {"first_chunk": 0}, 400, "first_chunk must be a whole number of at least 1"),
    "frozen": (GOOD | {"temperature": 0}, 400, "temperature must be above 0 and finite, 0.001 to 1000, not 0"),
    "infinite heat": (b'{"input": "Hi.", "voice": "ryan", "temperature": Infinity}', 400, "temperature"),
    "too much top_p": (GOOD | {"top_p": 1.5}, 400, "top_p must be in (0, 1]"),
}


def test_a_bad_request_is_answered_in_one_line_and_nothing_breaks(serving, caplog):
    with serving() as client:
        for case, (body, status, message) in BAD_BODIES.items():
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = client.post(SPEECH, content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == status, case
            error = answer.json()["error"]
            assert message in error["message"], case
            assert "\n" not in error["message"], case
            assert error["type"] == "invalid_request_error"
        assert client.post(SPEECH, content=json.dumps(GOOD), headers={"Content-Type": "text/plain"}).status_code == 415
        assert client.get(SPEECH).status_code == 405
        assert client.get("/v1/nothing").json()["error"]["message"] == "Not Found"
        assert idle(client)
        assert client.post(SPEECH, json=GOOD).status_code == 200
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def decoded(content: bytes) -> tuple[np.ndarray, int]:
    """The samples [samples] and rate of a file that libsndfile cannot read."""
    with av.open(io.BytesIO(content)) as file:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
        return samples, file.streams.audio[0].rate


SPELT = {  # the same request in other words
    "voice in any case": {"voice": " Ryan "},
    "voice as an object": {"voice": {"id": "ryan"}},
    "voice as it was listed": {"voice": {"id": "ryan", "name": "ryan", "object": "voice"}},
    "language by code": {"language": "en"},
    "language by code and region": {"language": "en-US"},
    "language as a locale": {"language": "EN_gb"},
    "language in any case": {"language": " English "},
    "model by a release": {"model": "Qwen3-TTS-12Hz-1.7B-CustomVoice"},
    "model by its repository": {"model": "Qwen/Qwen3-TTS-12Hz-0.6B-CustomVoice"},
    "model of a date": {"model": "gpt-4o-mini-tts-2025-12-15"},
    "model in any case": {"model": "Tiny-Custom-Voice-INT8"},
    "model by an alias": {"model": "acme/voice"},
    "all else null": dict.fromkeys(
        ("model", "instructions", "speed", "stream_format", "first_chunk", "temperature", "top_k", "top_p")
    ),
    "all else empty": {"model": "", "instructions": "", "stream_format": ""},
    "format in any case": {"response_format": " PCM"},
    "speed 1": {"speed": 1},
}


def test_a_request_in_other_words_gets_the_same_speech(synthesizer):
    request = {"input": "Hi.", "voice": "ryan", "language": "english", "seed": 1, "max_frames": 2}
    request["response_format"] = "pcm"
    with served(application(Shelf.of(synthesizer(), ["acme/voice"]))) as client:
        expected = client.post(SPEECH, json=request).content
        assert len(expected) == 2 * FRAME * 2
        for case, spelt in SPELT.items():
            answer = client.post(SPEECH, json=request | spelt)
            assert answer.content == expected, f"{case}: {answer.text[:200]}"
            if spelt.get("model"):
                assert client.get(f"/v1/models/{spelt['model']}").json()["id"] == spelt["model"]
        absent = {key: value for key, value in request.items() if key not in ("voice", "language")}
        default = client.post(SPEECH, json=absent).content
        for empty in (None, ""):
            assert client.post(SPEECH, json=request | {"voice": empty, "language": empty}).content == default


@pytest.mark.parametrize("speed", [0.25, 0.8, 1.5, 4.0])
def test_speed_changes_the_length_and_not_the_pitch(speed):
    rate = 24_000
    spoken = (0.4 * np.sin(2 * np.pi * 200 * np.arange(2 * rate) / rate)).astype(np.float32)
    tempo = Tempo(speed, rate)
    heard = np.concatenate([*map(tempo, np.array_split(spoken, 9)), tempo.finish()])
    assert len(heard) == pytest.approx(len(spoken) / speed, rel=0.02)
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert np.argmax(spectrum) * rate / len(heard) == pytest.approx(200, abs=3)


def test_speed_is_served_in_every_format(serving):
    request = {"input": "Hello.", "seed": 1, "max_frames": 12, "speed": 2}
    with serving() as client:
        pcm = client.post(SPEECH, json=request | {"response_format": "pcm"}).content
        assert len(pcm) / 2 == pytest.approx(12 * FRAME / 2, rel=0.05)
        for name in ("mp3", "opus", "aac", "flac", "wav"):
            assert len(client.post(SPEECH, json=request | {"response_format": name}).content) > 500, name


@pytest.mark.parametrize("name", ["pcm", "mp3"])
def test_events_join_to_the_audio_and_end_with_the_usage(serving, name):
    request = {"input": "Hello.", "seed": 1, "max_frames": 12, "response_format": name}
    with serving() as client:
        expected = client.post(SPEECH, json=request).content
        answer = client.post(SPEECH, json=request | {"stream_format": "sse"})
    assert answer.headers["content-type"] == "text/event-stream"
    *deltas, done = events(answer)
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == expected
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["output_tokens"] == 12
    assert done["usage"]["total_tokens"] == 12 + done["usage"]["input_tokens"]


def events(answer: httpx2.Response) -> list[dict]:
    return [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n") if part]


def test_a_web_page_of_a_chosen_origin_may_send_requests(serving):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with serving(cors=["https://a.example"], api_key="key") as client:
        for origin, allowed in (("https://a.example", 200), ("https://b.example", 400)):
            assert client.options(SPEECH, headers={"Origin": origin, **asked}).status_code == allowed
        headers = {"Origin": "https://a.example", "Authorization": "bearer key"}
        answer = client.post(SPEECH, json=GOOD, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://a.example")
        refused = client.post(SPEECH, json=GOOD | {"seed": -1}, headers=headers)
        assert refused.headers["access-control-allow-origin"] == "https://a.example", "the page can read the reason"
    with serving() as client:
        assert client.options(SPEECH, headers={"Origin": "https://a.example", **asked}).status_code == 405


def test_a_body_that_never_ends_is_cut_off(serving):
    with serving() as client:
        connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
        connection.putrequest("POST", SPEECH)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        for _ in range(20):
            connection.send(b"2000\r\n" + b" " * 0x2000 + b"\r\n")
        assert connection.getresponse().status == 413
        connection.close()


FAULTS = {
    "the device is gone": (DeviceError("talker failed: the device is gone"), "talker failed: the device is gone"),
    "no memory": (MemoryError(), "MemoryError: MemoryError"),
    "a fault of this program": (KeyError("codes"), "KeyError: 'codes'"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_failing_generation_is_a_status_before_the_audio_and_tells_within_it(serving, monkeypatch, caplog, case):
    (fault, told), talk, left = FAULTS[case], Session.talk, [0]

    def failing(session: Session, embeddings: np.ndarray) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise fault
        return talk(session, embeddings)

    monkeypatch.setattr(Session, "talk", failing)
    request = {"input": "Hello.", "voice": "ryan", "response_format": "pcm", "first_chunk": 2, "seed": 1}
    with serving() as client:
        answer = client.post(SPEECH, json=request)
        assert (answer.status_code, answer.json()["error"]["message"]) == (500, told)
        until(lambda: idle(client))
        left[0] = 3
        with pytest.raises(httpx2.RemoteProtocolError):
            client.post(SPEECH, json=request)
        until(lambda: idle(client))
        left[0] = 3
        last = events(client.post(SPEECH, json=request | {"stream_format": "sse"}))[-1]
        assert (last["type"], last["error"]["message"]) == ("error", told)
        until(lambda: idle(client))
    assert f"speech failed: {told}" in caplog.text
    assert f"speech broke off: {told}" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_design_bundle_takes_the_voice_from_the_instructions(serving):
    with serving("tiny-voice-design") as client:
        request = {"input": "Hi.", "voice": "alloy", "max_frames": 2, "response_format": "pcm"}
        assert len(client.post(SPEECH, json=request | {"instructions": "An old man."}).content) == 2 * FRAME * 2
        refused = client.post(SPEECH, json=request)
        assert (refused.status_code, "describe it with instructions" in refused.text) == (400, True)


def test_a_base_bundle_clones_the_voices_of_its_folder(serving, synthesizer, tmp_path):
    width = synthesizer("tiny-base").model.config["talker_config"]["hidden_size"]
    VoicePrompt(np.zeros(width, np.float32)).save(tmp_path / "anna.safetensors")
    with serving("tiny-base", voices=Voices.load(tmp_path)) as client:
        assert [voice["id"] for voice in client.get("/v1/audio/voices").json()["voices"]] == ["anna"]
        request = {"input": "Hi.", "voice": "Anna", "max_frames": 2, "response_format": "pcm"}
        assert len(client.post(SPEECH, json=request).content) == 2 * FRAME * 2
        for spoiled, message in (
            ({"voice": "../anna"}, "unknown voice '../anna'; this server has: anna"),
            ({"voice": None}, "choose a voice: anna"),
            ({"instructions": "Slowly."}, "speaks as its recording does; leave instructions out"),
        ):
            refused = client.post(SPEECH, json=request | spoiled)
            assert (refused.status_code, message in refused.json()["error"]["message"]) == (400, True)


def test_the_command_serves_until_it_is_interrupted(artifact, user_cache):
    bundle = artifact("bundle", "tiny-custom-voice", "int8")
    command = [sys.executable, "-m", "qwen3_tts_ov", "serve", bundle, "--port", "0"]
    environment = {"PATH": "", "XDG_CACHE_HOME": str(user_cache), "QWEN3_TTS_API_KEY": "key"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "running on" in line)
        address = line.split("running on ")[1].split()[0]
        assert address.startswith("http://127.0.0.1:"), "loopback by default"
        assert httpx2.get(f"{address}/health").json()["status"] == "ok"
        assert httpx2.get(f"{address}/v1/models").status_code == 401
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)[1]
        assert "Traceback" not in rest
    finally:
        process.kill()


def test_what_the_command_cannot_serve_is_one_line(artifact, tmp_path, capfd):
    custom, base = (str(artifact("bundle", variant, "int8")) for variant in ("tiny-custom-voice", "tiny-base"))
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]

    def refused(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.app(["serve", *map(str, arguments)])
        told = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("there is no API key")]
        assert (ended.value.code, len(told)) == (1, 1), told
        return told[0]

    for arguments, message in (
        ([custom, "--voices", tmp_path], "--voices is for a base bundle; no other kind takes it"),
        ([base, "--change-voices"], "--change-voices needs --voices, the folder where they are saved"),
        ([custom, custom + "/"], "two bundles are tiny-custom-voice-int8; serve one of them"),
        ([custom, "--memory", 0.1], "takes about 0.2 GB of memory and --memory allows 0.1"),
        ([base, "--voices", tmp_path], "it has no voice prompt (.safetensors); save one with"),
        ([custom, "--slots", 0], "Invalid value for '--slots'"),
        ([custom, "--port", port], f"cannot listen at 127.0.0.1, port {port}: [Errno 98] Address already in use"),
        ([custom, "--host", "no.such.host.invalid"], "cannot listen at no.such.host.invalid, port 8000: [Errno"),
    ):
        assert message in refused(*arguments)
    taken.close()
    without = "import sys; sys.modules['starlette'] = None; from qwen3_tts_ov.app.cli import app; app(sys.argv[1:])"
    command = [sys.executable, "-c", without, "serve", custom]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "starlette is missing; pip install 'qwen3-tts-ov[serve]'" in done.stderr
