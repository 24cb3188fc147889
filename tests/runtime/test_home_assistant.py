"""Wyoming, by its own library's client: what Home Assistant asks for, and clients that leave."""

import asyncio
import socket
from collections.abc import Iterator

import httpx2
import pytest
from wyoming import tts
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event, Eventable
from wyoming.info import Describe, Info
from zeroconf import Zeroconf

from qwen3_tts_ov import Bundle, Synthesizer
from qwen3_tts_ov.app.server import application, listen
from tests.conftest import until
from tests.serving import idle, served

RYAN = tts.SynthesizeVoice(name="ryan")


@pytest.fixture(scope="module")
def synthesizer(artifact, model_cache) -> Synthesizer:
    return Synthesizer(Bundle.load(artifact("bundle", "tiny-custom-voice", "int8")), cache_dir=model_cache)


@pytest.fixture
def listener() -> socket.socket:
    return listen("127.0.0.1", 0)


@pytest.fixture
def client(synthesizer, listener) -> Iterator[httpx2.Client]:
    with served(application(synthesizer, wyoming=listener, max_characters=500)) as found:
        yield found


def asked(listener: socket.socket, *events: Eventable, last: type) -> list[Event]:
    """What the server sends until an event of the type `last`."""

    async def ask() -> list[Event]:
        answers: list[Event] = []
        async with AsyncTcpClient(*listener.getsockname()[:2]) as connection:
            for event in events:
                await connection.write_event(event.event())
            while not answers or not last.is_type(answers[-1].type):
                answer = await asyncio.wait_for(connection.read_event(), 60)
                assert answer is not None
                answers.append(answer)
        return answers

    return asyncio.run(ask())


def test_it_is_described_as_a_service_that_streams(client, listener):
    info = Info.from_event(asked(listener, Describe(), last=Info)[0])
    (program,) = info.tts
    assert (program.name, program.supports_synthesize_streaming) == ("qwen3-tts-ov", True)
    voice = next(voice for voice in program.voices if voice.name == "ryan")
    assert {"en", "de", "zh"} <= set(voice.languages)


def test_a_text_is_spoken_and_a_connection_may_ask_again(client, listener):
    request = tts.Synthesize(text="Hi.", voice=RYAN)
    answers = asked(
        listener, request, tts.Synthesize(text="Hi.", voice=tts.SynthesizeVoice(language="en")), Describe(), last=Info
    )
    assert Info.is_type(answers[-1].type)
    start, *chunks, stop = asked(listener, request, last=AudioStop)
    assert AudioStart.from_event(start) == AudioStart(24_000, 2, 1)
    assert AudioStop.is_type(stop.type)
    assert all(AudioChunk.is_type(chunk.type) for chunk in chunks)
    assert sum(len(AudioChunk.from_event(chunk).audio) for chunk in chunks) >= 1920 * 2
    by_language = tts.Synthesize(text="Hi.", voice=tts.SynthesizeVoice(language="en"))
    both = asked(
        listener, by_language, request, tts.SynthesizeStart(), tts.SynthesizeStop(), last=tts.SynthesizeStopped
    )
    twice = [answer.type for answer in both]
    assert (twice.count("audio-start"), twice.count("audio-stop")) == (2, 2), "one after the other"
    until(lambda: idle(client))


def test_a_text_is_spoken_while_it_is_written(client, listener):
    text = "Good morning. How are you?"
    parts = [tts.SynthesizeChunk(text[at : at + 3]) for at in range(0, len(text), 3)]
    whole = tts.Synthesize(text=text, voice=RYAN)  # Home Assistant repeats the text for servers that do not stream
    answers = asked(
        listener, tts.SynthesizeStart(voice=RYAN), *parts, whole, tts.SynthesizeStop(), last=tts.SynthesizeStopped
    )
    kinds = [answer.type for answer in answers]
    assert kinds[0] == "audio-start"
    assert set(kinds[1:-2]) == {"audio-chunk"}
    assert kinds[-2:] == ["audio-stop", "synthesize-stopped"]
    until(lambda: idle(client))


def test_what_cannot_be_spoken_is_told(client, listener):
    for request, told in (
        (tts.Synthesize(text="Hi.", voice=tts.SynthesizeVoice(name="alloy")), "unknown voice 'alloy'"),
        (tts.Synthesize(text="?!"), "there is nothing to speak"),
        (tts.Synthesize(text="word " * 101), "input has more than 500 characters"),
    ):
        (answer,) = asked(listener, request, last=Error)
        assert told in Error.from_event(answer).text


def test_a_client_that_leaves_frees_its_place(client, listener):
    asked(listener, tts.Synthesize(text="It goes on and on. " * 20, voice=RYAN), last=AudioChunk)
    until(lambda: idle(client))


def test_it_is_found_in_the_network(synthesizer):
    everywhere = listen("0.0.0.0", 0)
    port = everywhere.getsockname()[1]
    name = f"qwen3-tts-ov-{socket.gethostname()}._wyoming._tcp.local."
    with served(application(synthesizer, wyoming=everywhere)):
        browser = Zeroconf()
        found = browser.get_service_info("_wyoming._tcp.local.", name, timeout=10_000)
        browser.close()
    if found is None:
        pytest.skip("this network has no multicast")
    assert found.port == port
