"""The requests of programs that speak through OpenAI's API, as their public code sends them, over HTTP."""

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import av
import httpx2
import openai
import pytest

from qwen3_tts_ov import Bundle, Synthesizer
from qwen3_tts_ov.app.server import application
from tests.serving import SPEECH, idle, served

KEY = "a secret"
SHORT = {"seed": 1, "max_frames": 4}  # for these tests alone; no program below sends them
NO_KEY = {"Authorization": "Bearer"}  # "Bearer " and an empty key, trimmed on its way
PAGES = ("https://lite.koboldai.net", "http://localhost:5001")


@pytest.fixture(scope="module")
def synthesizer(artifact: Callable[..., Path], model_cache: Path) -> Synthesizer:
    return Synthesizer(Bundle.load(artifact("bundle")), cache_dir=model_cache)


@pytest.fixture
def client(synthesizer: Synthesizer, request: pytest.FixtureRequest) -> Iterator[httpx2.Client]:
    """A server without a key that web pages may use."""
    with served(application(synthesizer, cors=PAGES)) as client:
        yield client
        assert idle(client)


@pytest.fixture
def base_url(synthesizer: Synthesizer) -> Iterator[str]:
    """The `base_url` of a server with a key, as programs are configured with it."""
    with served(application(synthesizer, api_key=KEY)) as client:
        yield f"{client.base_url}/v1".replace("//v1", "/v1")
        assert idle(client)


def codec_of(audio: bytes) -> str:
    """The codec of audio that can be decoded to its end."""
    with av.open(io.BytesIO(audio)) as file:
        assert sum(frame.samples for frame in file.decode(audio=0)) >= 4 * 1920
        return file.streams.audio[0].codec.name


class TestOpenAI:
    """The openai package itself."""

    def test_speech_in_every_format_speed_and_spelling_of_a_voice(self, base_url):
        client = openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0)
        for form, codec in (
            ("mp3", "mp3float"),
            ("opus", "opus"),
            ("aac", "aac"),
            ("flac", "flac"),
            ("wav", "pcm_s16le"),
        ):
            speech = client.audio.speech.create(
                model="gpt-4o-mini-tts", voice="ryan", input="Hello.", response_format=form, extra_body=SHORT
            )
            assert codec_of(speech.content) == codec
        for voice in ("Ryan", {"id": "ryan"}):
            client.audio.speech.create(model="tts-1", voice=voice, input="Hi.", speed=1.5, extra_body=SHORT)

    def test_audio_as_it_is_made_and_as_events(self, base_url, tmp_path):
        client = openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0)
        create = client.audio.speech.with_streaming_response.create
        common = {"model": "tts-1-hd", "voice": "ryan", "input": "Hello.", "extra_body": SHORT}
        with create(**common, response_format="pcm") as streamed:
            assert len(b"".join(streamed.iter_bytes(1024))) == 4 * 1920 * 2
        with create(**common) as streamed:
            streamed.stream_to_file(tmp_path / "speech.mp3")
        assert codec_of((tmp_path / "speech.mp3").read_bytes()) == "mp3float"
        with create(**common, stream_format="sse") as streamed:
            events = [json.loads(line.removeprefix("data: ")) for line in streamed.iter_lines() if line]
        assert [event["type"] for event in events[-2:]] == ["speech.audio.delta", "speech.audio.done"]

    def test_models_are_listed_and_retrieved(self, base_url):
        client = openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0)
        listed = [model.id for model in client.models.list()]
        for name in (*listed, "tts-1", "Qwen/Qwen3-TTS-12Hz-0.6B-CustomVoice"):
            assert client.models.retrieve(name).id == name
            client.audio.speech.create(model=name, voice="ryan", input="Hi.", extra_body=SHORT)

    def test_a_refusal_is_the_package_s_own_error_with_the_reason(self, base_url):
        client = openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0)
        with pytest.raises(openai.BadRequestError, match="unknown voice 'alloy'; this bundle has: aiden"):
            client.audio.speech.create(model="tts-1", voice="alloy", input="Hi.")
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9' here"):
            client.audio.speech.create(model="gpt-9", voice="ryan", input="Hi.")
        with pytest.raises(openai.AuthenticationError, match="key is missing or wrong"):
            openai.OpenAI(base_url=base_url, api_key="other", max_retries=0).models.list()

    def test_the_asynchronous_client_speaks_several_texts_at_once(self, base_url):
        async def speak() -> list[bytes]:
            async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY) as client:
                create = client.audio.speech.create
                asked = [create(model="tts-1", voice="ryan", input="Hi.", extra_body=SHORT) for _ in range(3)]
                return [answer.content for answer in await asyncio.gather(*asked)]

        assert len(set(asyncio.run(speak()))) == 1


class TestOpenWebUI:
    """Settings > Audio > Text-to-Speech engine OpenAI. It asks for the lists without the key."""

    def test_its_lists_of_models_and_voices_are_filled(self, client):
        models = client.get("/v1/audio/models").json()["models"]
        assert [model["id"] for model in models] == ["tiny-custom-voice-int8"]
        voices = {voice["id"]: voice["name"] for voice in client.get("/v1/audio/voices").json()["voices"]}
        assert voices["ryan"] == "ryan"

    def test_a_message_is_read_with_the_parameters_of_the_settings(self, client):
        payload = {"input": "Hello there.", "voice": "ryan", "model": "tiny-custom-voice-int8"}
        user = {"X-OpenWebUI-User-Name": "me", "X-OpenWebUI-User-Role": "admin"}
        for parameters in ({}, {"speed": 1.2}, {"response_format": "mp3", "language": "en"}):
            answer = client.post(
                SPEECH, json=payload | parameters | SHORT, headers={"Authorization": "Bearer sk-none"} | user
            )
            assert codec_of(answer.content) == "mp3float"
        assert "unknown voice" in client.post(SPEECH, json=payload | {"voice": "alloy"}).json()["error"]["message"]


class TestSillyTavern:
    """The TTS extension's provider OpenAI Compatible; its own server passes the requests on."""

    @pytest.mark.parametrize("speed", [0.25, 0.95, 1, 4])
    def test_a_message_is_spoken_at_the_slider_s_speed_by_a_voice_of_the_list(self, client, speed):
        voice = " serena"  # its list of voices, "ryan, serena", is cut at the commas alone
        body = {"input": "Hello.", "response_format": "mp3", "voice": voice, "speed": speed, "model": "tts-1"}
        answer = client.post(SPEECH, json=body | SHORT | {"max_frames": 20}, headers=NO_KEY)
        assert (answer.status_code, codec_of(answer.content)) == (200, "mp3float")


class TestHomeAssistant:
    """The custom integration openai_tts: urllib for short texts, chunks for long ones."""

    def test_a_sentence_and_a_stream(self, base_url):
        headers = {"Content-Type": "application/json", "User-Agent": "HomeAssistant-OpenAI-TTS"}
        headers |= {"Authorization": f"Bearer {KEY}"}
        extra = {"language": "de-DE", "seed": 7, "max_frames": 4}  # its option "extra payload"
        for form, codec in (("mp3", "mp3float"), ("opus", "opus")):
            payload = {"model": "tts-1", "input": "Licht an.", "voice": "ryan", "response_format": form, "speed": 1.0}
            body = json.dumps(payload | extra).encode()
            with urlopen(Request(f"{base_url}/audio/speech", body, headers, method="POST"), timeout=30) as answer:
                assert codec_of(b"".join(iter(lambda: answer.read(4096), b""))) == codec

    def test_the_built_in_integration_streams_through_the_openai_package(self, base_url):
        client = openai.OpenAI(base_url=base_url, api_key=KEY)
        with client.audio.speech.with_streaming_response.create(
            model="gpt-4o-mini-tts", voice="ryan", input="Light on.", instructions="", speed=1.0, response_format="wav",
            extra_body=SHORT,
        ) as answer:  # fmt: skip
            assert codec_of(b"".join(answer.iter_bytes())) == "pcm_s16le"


class TestKoboldAI:
    """KoboldAI Lite, alone or as the page of KoboldCpp: a browser sends the request, from another origin."""

    @pytest.mark.parametrize("origin", PAGES)
    def test_the_browser_may_ask_and_reads_the_answer(self, client, origin):
        preflight = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
            "Access-Control-Request-Private-Network": "true",
        }
        allowed = client.options(SPEECH, headers=preflight)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == origin
        assert allowed.headers["access-control-allow-private-network"] == "true"
        body = {"model": "tts-1", "input": "Hello.", "voice": "ryan"}
        answer = client.post(SPEECH, json=body | SHORT, headers={"Origin": origin} | NO_KEY)
        assert answer.headers["access-control-allow-origin"] == origin
        assert codec_of(answer.content) == "mp3float"
