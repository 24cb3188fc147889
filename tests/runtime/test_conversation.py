"""The WebSocket: a text in parts is spoken by sentence, and can be broken off."""

import json
import threading
import time
from collections.abc import Callable, Iterator

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from qwen3_tts_ov import Bundle, SpeechStream, Synthesizer
from qwen3_tts_ov.app.sentences import Sentences
from qwen3_tts_ov.app.server import application
from qwen3_tts_ov.session import Session
from tests.conftest import until
from tests.serving import SPEECH, idle, served

CONFIG = {"type": "session.config", "voice": "ryan", "seed": 1, "max_frames": 3}
TEXT = "Good morning, Dr. Wu. It is 2.5 km away! On the 4. of May? 早上好。今天天气很好。Und „ja“. ... And the rest"
SENTENCES = [
    *("Good morning, Dr. Wu.", "It is 2.5 km away!", "On the 4. of May?"),
    *("早上好。", "今天天气很好。", "Und „ja“. ...", "And the rest"),
]


@pytest.fixture(scope="module")
def synthesizer(artifact, model_cache) -> Synthesizer:
    return Synthesizer(Bundle.load(artifact("bundle", "tiny-custom-voice", "int8")), cache_dir=model_cache)


@pytest.fixture
def client(synthesizer) -> Iterator[httpx2.Client]:
    with served(application(synthesizer, max_characters=500)) as found:
        yield found


def connected(client: httpx2.Client, **how: object) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{client.base_url.port}{SPEECH}/stream", **how)


def tell(socket: ClientConnection, *messages: dict) -> None:
    for message in messages:
        socket.send(json.dumps(message))


def heard(socket: ClientConnection) -> tuple[list[dict], bytes]:
    """The events until the text has been said, and all the audio."""
    events, audio = [], b""
    while not events or events[-1]["type"] not in ("speech.done", "error"):
        message = socket.recv(20)
        if isinstance(message, bytes):
            audio += message
        else:
            events.append(json.loads(message))
    return events, audio


@pytest.mark.parametrize("size", [1, 3, 10, 50, 1000])
def test_a_text_is_cut_at_the_same_places_however_it_arrives(size):
    sentences = Sentences()
    parts = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
    assert [*(each for part in parts for each in sentences.add(part)), *sentences.finish()] == SENTENCES
    assert sentences.finish() == []


def test_a_sentence_is_complete_soon_after_its_end():
    sentences = Sentences()
    needed = next(at for at in range(len(TEXT)) if sentences.add(TEXT[at]))
    assert needed <= len("Good morning, Dr. Wu.") + 32


def test_text_in_ten_parts_gives_the_same_speech_as_in_one(client):
    said = []
    for parts in ([TEXT], [TEXT[at : at + len(TEXT) // 10 + 1] for at in range(0, len(TEXT), len(TEXT) // 10 + 1)]):
        with connected(client) as socket:
            tell(socket, CONFIG, *({"type": "input.text", "text": part} for part in parts), {"type": "input.done"})
            said.append(heard(socket))
    (events, audio), (others, same) = said
    assert len(audio) == 7 * 3 * 1920 * 2
    assert audio == same
    assert [event["text"] for event in events if event["type"] == "audio.start"] == SENTENCES
    assert [(event["sentence"], event["frames"]) for event in others if event["type"] == "audio.done"] == [
        (number, 3) for number in range(7)
    ]
    first = {"input": SENTENCES[0], "voice": "ryan", "seed": 1, "max_frames": 3, "response_format": "pcm"}
    assert audio[: 3 * 1920 * 2] == client.post(SPEECH, json=first).content
    until(lambda: idle(client))


def test_speech_comes_before_the_text_is_complete_and_another_text_may_follow(client):
    with connected(client) as socket:
        tell(socket, CONFIG)
        for _ in range(2):
            tell(socket, {"type": "input.text", "text": "Good morning. How are you on this fine day, and"})
            assert json.loads(socket.recv(20))["text"] == "Good morning."
            tell(socket, {"type": "input.text", "text": " so on?"}, {"type": "input.done"})
            assert heard(socket)[0][-1] == {"type": "speech.done"}


def test_cancelling_stops_before_the_next_frame_and_frees_the_slot(client, monkeypatch):
    talk, close, calls = Session.talk, SpeechStream.close, []
    closing = threading.Event()

    def held(session: Session, embeddings: object) -> object:
        calls.append(1)
        if len(calls) == 10:
            closing.wait(60)
            time.sleep(0.2)  # until `close`, which is called now, has done its work
        return talk(session, embeddings)

    def closed(stream: SpeechStream) -> None:
        closing.set()
        close(stream)

    monkeypatch.setattr(Session, "talk", held)
    monkeypatch.setattr(SpeechStream, "close", closed)
    with connected(client) as socket:
        tell(socket, CONFIG | {"max_frames": 10_000}, {"type": "input.text", "text": "It goes on. " * 10})
        until(lambda: len(calls) == 10)
        tell(socket, {"type": "input.cancel"})
        while (message := socket.recv(20)) != '{"type": "speech.cancelled"}':
            assert isinstance(message, bytes) or json.loads(message)["type"] == "audio.start"
        assert idle(client)
        assert len(calls) == 10
        tell(
            socket,
            {"type": "session.config", "max_frames": 2},
            {"type": "input.text", "text": "Sorry?"},
            {"type": "input.done"},
        )
        events, audio = heard(socket)
        assert ([event["type"] for event in events], len(audio)) == (["audio.start", "audio.done", "speech.done"], 7680)


def test_a_client_that_leaves_frees_its_place(client):
    with connected(client) as socket:
        tell(socket, CONFIG | {"max_frames": 10_000}, {"type": "input.text", "text": "It goes on. " * 10})
        socket.recv(20)
        assert not idle(client)
    until(lambda: idle(client))


MISTAKES: dict[str, tuple[Callable[[ClientConnection], None], str]] = {
    "no JSON": (lambda socket: socket.send("Hello?"), "send JSON objects with a type, as text"),
    "no object": (lambda socket: socket.send("[]"), "send JSON objects with a type, as text"),
    "bytes": (lambda socket: socket.send(b"{}"), "send JSON objects with a type, as text"),
    "no type": (lambda socket: tell(socket, {"text": "Hi."}), "send JSON objects with a type, as text"),
    "another type": (lambda socket: tell(socket, {"type": "input.stop"}), "send session.config, input.text with"),
    "no text": (lambda socket: tell(socket, {"type": "input.text", "text": 1}), "send session.config, input.text with"),
    "an unknown field": (lambda socket: tell(socket, CONFIG | {"colour": 1}), "unknown field colour; known: input, "),
    "an unknown voice": (lambda socket: tell(socket, CONFIG | {"voice": "alloy"}), "unknown voice 'alloy'"),
    "an unknown model": (lambda socket: tell(socket, CONFIG | {"model": "gpt-9"}), "there is no model 'gpt-9' here"),
    "a long sentence": (
        lambda socket: tell(socket, {"type": "input.text", "text": "word " * 101}, {"type": "input.done"}),
        "input has more than 500 characters",
    ),
    "too much text": (
        lambda socket: tell(socket, {"type": "input.text", "text": "It goes on. " * 800}),
        "over 8000 characters wait to be said",
    ),
}  # fmt: skip


def test_a_mistake_is_told_in_one_line_and_ends_the_connection(client):
    for case, (act, told) in MISTAKES.items():
        with connected(client) as socket:
            act(socket)
            error = heard(socket)[0][-1]
            assert (error["type"], told in error["error"]["message"]) == ("error", True), f"{case}: {error}"
            with pytest.raises(ConnectionClosed):
                socket.recv(20)
            assert socket.close_code == 1008, case
    until(lambda: idle(client))


def test_only_pages_of_this_server_and_holders_of_its_key_may_connect(synthesizer):
    with served(application(synthesizer, api_key="key", cors=["https://a.example"])) as client:
        key = {"additional_headers": {"Authorization": "Bearer key"}}
        for how in ({}, key | {"origin": "https://b.example"}):
            with pytest.raises(InvalidStatus) as refused:
                connected(client, **how)
            assert refused.value.response.status_code == 403
        for how in (key, key | {"origin": "https://a.example"}, key | {"origin": str(client.base_url).rstrip("/")}):
            with connected(client, **how) as socket:
                tell(socket, {"type": "input.done"})
                assert heard(socket)[0] == [{"type": "speech.done"}]
