"""The HTTP server over real loopback connections: requests of OpenAI's clients, and the responses."""

import http.client
import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
import soundfile
import uvicorn

from qwen3_tts_ov import Bundle, DeviceError, Synthesizer, VoicePrompt
from qwen3_tts_ov.app.server import application, load_voices
from qwen3_tts_ov.audio import pcm16
from qwen3_tts_ov.engine import Session
from tests.conftest import until

FRAME = 1920
SPEECH, MODEL = "/v1/audio/speech", "tiny-custom-voice-int8"
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
        app = application(synthesizer(variant), **how)
        server = uvicorn.Server(uvicorn.Config(app, port=0, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            until(lambda: server.started)
            port = server.servers[0].sockets[0].getsockname()[1]
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(30)

    return start


def idle(client: httpx2.Client, slots: int = 1) -> bool:
    health = client.get("/health").json()
    return health["free_slots"] == slots and health["waiting"] == 0


@pytest.mark.parametrize("name", ["mp3", "opus", "flac", "wav", "pcm"])
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
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    assert (rate, samples.ndim) == (24_000, 1)
    if name in ("wav", "flac"):
        np.testing.assert_allclose(samples, expected, atol=1e-4)
    else:
        assert 0 <= len(samples) - len(expected) <= 4 * 576, "an MP3 is padded to whole frames"
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
        assert "ryan" in client.get("/v1/audio/voices").json()["voices"]
        assert client.get("/health").json() == {"status": "ok", "model": MODEL, "free_slots": 1, "waiting": 0}


def test_the_key_is_required_everywhere_except_for_health(serving):
    with serving(api_key="a secret") as client:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "a secret"}):
            for answer in (client.post(SPEECH, json={}, headers=headers), client.get("/v1/models", headers=headers)):
                assert answer.status_code == 401
                assert "key is missing or wrong" in answer.json()["error"]["message"]
                assert "secret" not in answer.text
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models", headers={"Authorization": "Bearer a secret"}).status_code == 200


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
    "a huge body": (GOOD | {"input": "a" * 200_000}, 413, "the body is over 102400 bytes"),
    "an instruction to 0.6B": (GOOD | {"instructions": "Calm."}, 400, "leave instructions out"),
    "an unknown voice": (GOOD | {"voice": "alloy"}, 400, "unknown voice 'alloy'; this bundle has: aiden"),
    "a number as voice": (GOOD | {"voice": 7}, 400, "voice: Input should be a valid string"),
    "an unknown model": (GOOD | {"model": "gpt-9"}, 404, f"there is no model 'gpt-9' here, only {MODEL}"),
    "AAC": (GOOD | {"response_format": "aac"}, 400, "response_format: Input should be 'mp3', 'opus', 'flac', 'wav'"),
    "another speed": (GOOD | {"speed": 2.0}, 400, "speed: this model has one speed, 1"),
    "events": (GOOD | {"stream_format": "sse"}, 400, "stream_format: Input should be 'audio'"),
    "an unknown field": (GOOD | {"temprature": 1}, 400, "unknown field temprature; known: input, "),
    "an unknown language": (GOOD | {"language": "elvish"}, 400, "unknown language 'elvish'"),
    "a negative seed": (GOOD | {"seed": -1}, 400, "seed must be a whole number of at least 0"),
    "half a seed": (GOOD | {"seed": 0.5}, 400, "seed: Input should be a valid integer"),
    "no frames": (GOOD | {"max_frames": 0}, 400, "max_frames must be a whole number of at least 1"),
    "no first chunk": (GOOD | {"first_chunk": 0}, 400, "first_chunk must be a whole number of at least 1"),
    "frozen": (GOOD | {"temperature": 0}, 400, "temperature must be above 0"),
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


def test_a_failing_device_is_a_status_before_the_audio_and_a_broken_answer_within_it(serving, monkeypatch, caplog):
    talk, left = Session.talk, [0]

    def failing(session: Session, embeddings: np.ndarray) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise DeviceError("talker failed: the device is gone")
        return talk(session, embeddings)

    monkeypatch.setattr(Session, "talk", failing)
    request = {"input": "Hello.", "voice": "ryan", "response_format": "pcm", "first_chunk": 2, "seed": 1}
    with serving() as client:
        answer = client.post(SPEECH, json=request)
        assert (answer.status_code, answer.json()["error"]["message"]) == (500, "talker failed: the device is gone")
        left[0] = 3
        with pytest.raises(httpx2.RemoteProtocolError):
            client.post(SPEECH, json=request)
        until(lambda: idle(client))
    assert "speech broke off: talker failed: the device is gone" in caplog.text
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
    with serving("tiny-base", voices=load_voices(tmp_path)) as client:
        assert client.get("/v1/audio/voices").json() == {"voices": ["anna"]}
        request = {"input": "Hi.", "voice": "anna", "max_frames": 2, "response_format": "pcm"}
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


def test_what_the_command_cannot_serve_is_one_line(artifact, tmp_path):
    custom, base = (artifact("bundle", variant, "int8") for variant in ("tiny-custom-voice", "tiny-base"))
    run = "import sys; from qwen3_tts_ov.app.cli import app; app(sys.argv[1:])"
    without = "import sys; sys.modules['starlette'] = None; " + run
    for script, arguments, message in (
        (run, [base], "a base bundle needs --voices, a folder of saved voices; no other kind takes it"),
        (run, [custom, "--voices", tmp_path], "no other kind takes it"),
        (run, [base, "--voices", tmp_path], "it has no voice prompt (.safetensors); save one with"),
        (run, [custom, "--slots", 0], "Invalid value for '--slots'"),
        (without, [custom], "starlette is missing; pip install 'qwen3-tts-ov[serve]'"),
    ):
        command = [sys.executable, "-c", script, "serve", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert message in done.stderr
