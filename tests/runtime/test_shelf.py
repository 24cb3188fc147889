"""Several bundles behind one port: which one answers, what is loaded, and voices that come with a request."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import httpx2
import numpy as np
import pytest

from qwen3_tts_ov import Bundle, Synthesizer, VoicePrompt
from qwen3_tts_ov.app.server import application
from qwen3_tts_ov.app.shelf import Shelf, bundle_slip
from qwen3_tts_ov.app.voices import Voices
from qwen3_tts_ov.audio import pcm16
from qwen3_tts_ov.engine import Engine
from tests.conftest import until
from tests.serving import SPEECH, idle, served

KINDS = ("tiny-custom-voice", "tiny-base", "tiny-voice-design")
VOICES = "/v1/audio/voices"
RECORDING = Path(__file__).parents[1] / "data" / "speech-24khz.flac"
SHORT = {"input": "Hi.", "seed": 1, "max_frames": 3, "response_format": "pcm"}
# What each kind needs beside that.
NEEDS = {
    "tiny-custom-voice": {"voice": "ryan"},
    "tiny-base": {"voice": "anna"},
    "tiny-voice-design": {"instructions": "An old man."},
}


@pytest.fixture(scope="module")
def bundles(artifact) -> dict[str, Bundle]:
    return {kind: Bundle.load(artifact("bundle", kind, "int8")) for kind in KINDS}


@pytest.fixture(scope="module")
def anna(bundles) -> VoicePrompt:
    return VoicePrompt(np.full(bundles["tiny-base"].config["talker_config"]["hidden_size"], 0.1, np.float32))


@pytest.fixture
def serving(bundles, anna, model_cache) -> Callable:
    """`with serving(2) as client`: a server of the three bundles, with memory for two of them."""

    @contextmanager
    def start(at_once: int = 3, voices: Voices | None = None, **how: object) -> Iterator[httpx2.Client]:
        slips = [
            bundle_slip(bundle, lambda bundle=bundle: Synthesizer(bundle, cache_dir=model_cache), [])
            for bundle in bundles.values()
        ]
        shelf = Shelf(slips, at_once * max(slip.bytes for slip in slips))
        with served(application(shelf, voices=voices or Voices({"anna": anna}), **how)) as client:
            yield client

    return start


def loaded(client: httpx2.Client) -> list[str]:
    return [model["id"] for model in client.get("/v1/models").json()["data"] if model["loaded"]]


def data_url(content: bytes) -> str:
    return f"data:audio/flac;base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.prove)])
def test_memory_for_two_of_three_bundles_answers_every_request_by_the_right_one(
    serving, bundles, anna, model_cache, times
):
    expected = {}
    for kind in KINDS:
        synthesizer = Synthesizer(bundles[kind], cache_dir=model_cache)
        voice = {"tiny-custom-voice": "ryan", "tiny-base": anna}.get(kind)
        for seed in range(2):
            spoken = synthesizer.speak("Hi.", voice, NEEDS[kind].get("instructions"), seed=seed, max_frames=3)
            expected[kind, seed] = pcm16(spoken.waveform)
    order = np.random.default_rng(0).permutation(list(product(KINDS, range(2))) * times)
    answers: list[tuple[str, str, httpx2.Response]] = []
    most = 0
    with serving(2, slots=2) as client:

        def ask(part: np.ndarray) -> None:
            nonlocal most
            for kind, seed in part:
                body = SHORT | NEEDS[kind] | {"model": f"{kind}-int8", "seed": int(seed)}
                answers.append((kind, seed, client.post(SPEECH, json=body)))
                most = max(most, len(loaded(client)))

        threads = [threading.Thread(target=ask, args=[part]) for part in np.array_split(order, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert idle(client, slots=2)
    assert len(answers) == 6 * times
    assert most == 2
    for kind, seed, answer in answers:
        assert answer.content == expected[kind, int(seed)], answer.text[:200]


def test_a_bundle_that_speaks_is_not_dropped_and_the_next_one_waits_for_its_end(serving):
    endless = {"input": "It goes on.", "voice": "ryan", "max_frames": 20_000, "response_format": "pcm"}
    answers: list[httpx2.Response] = []
    with serving(1, slots=2) as client:
        with client.stream("POST", SPEECH, json=endless) as speech:
            next(speech.iter_raw())
            body = SHORT | NEEDS["tiny-base"] | {"model": "tiny-base"}
            waiting = threading.Thread(target=lambda: answers.append(client.post(SPEECH, json=body)))
            waiting.start()
            until(lambda: client.get("/health").json()["free_slots"] == 0)
            assert loaded(client) == ["tiny-custom-voice-int8"]
        waiting.join(60)
        assert answers[0].status_code == 200
        assert loaded(client) == ["tiny-base-int8"]
        until(lambda: idle(client, slots=2))


def test_all_are_listed_and_a_voice_leads_to_the_bundle_that_has_it(serving):
    with serving() as client:
        models = client.get("/v1/models").json()["data"]
        assert [model["id"] for model in models] == [f"{kind}-int8" for kind in KINDS]
        assert [model["kind"] for model in models] == ["custom_voice", "base", "voice_design"]
        voices = {voice["id"]: voice["models"] for voice in client.get(VOICES).json()["voices"]}
        assert (voices["ryan"], voices["anna"]) == (["tiny-custom-voice-int8"], ["tiny-base-int8"])
        named = client.post(SPEECH, json=SHORT | {"model": "tiny-base", "voice": "anna"}).content
        assert len(named) == 3 * 1920 * 2
        for model in ({}, {"model": "tts-1"}):
            assert client.post(SPEECH, json=SHORT | {"voice": "Anna"} | model).content == named
        unknown = client.post(SPEECH, json=SHORT | {"model": "gpt-9"})
        assert (unknown.status_code, unknown.json()["error"]["message"]) == (
            404,
            "there is no model 'gpt-9' here, only tiny-custom-voice-int8, tiny-base-int8, tiny-voice-design-int8",
        )


def test_a_recording_in_the_request_is_cloned_and_encoded_once(serving, bundles, model_cache, monkeypatch):
    sound = RECORDING.read_bytes()
    synthesizer = Synthesizer(bundles["tiny-base"], cache_dir=model_cache)
    expected = pcm16(synthesizer.speak("Hi.", sound, reference_text="Some words.", seed=1, max_frames=3).waveform)
    encoded, x_vector = [], Engine.x_vector
    monkeypatch.setattr(Engine, "x_vector", lambda engine, audio: encoded.append(1) or x_vector(engine, audio))
    with serving() as client:
        request = SHORT | {"ref_audio": data_url(sound), "ref_text": "Some words."}
        for more in ({}, {"voice": "alloy"}, {"model": "tiny-base"}):
            assert client.post(SPEECH, json=request | more).content == expected
        assert len(encoded) == 1
        client.post(SPEECH, json=request | {"ref_text": None})
        assert len(encoded) == 2, "without its text it is another voice"


REFUSED_RECORDINGS = {
    "a path": ("/etc/passwd", "send the recording itself, as a data URL"),
    "a URL": ("https://example.org/me.wav", "send the recording itself, as a data URL"),
    "no base64": ("data:audio/wav;base64,%%", "not base64"),
    "nothing": ("data:audio/wav;base64,", "it holds nothing"),
    "no audio": (data_url(b"Hello?"), "cannot read it as audio"),
    "too much": ("data:audio/wav;base64," + "A" * 16_000_000, "the recording is over 12 MB"),
}


def test_a_recording_that_cannot_be_used_is_refused_in_one_line(serving):
    with serving() as client:
        for case, (url, told) in REFUSED_RECORDINGS.items():
            answer = client.post(SPEECH, json=SHORT | {"ref_audio": url})
            assert (answer.status_code, told in answer.json()["error"]["message"]) == (400, True), (
                f"{case}: {answer.text}"
            )
        custom = client.post(SPEECH, json=SHORT | {"ref_audio": data_url(b"x"), "model": "tiny-custom-voice"})
        assert "only a base bundle clones one" in custom.json()["error"]["message"]
        huge = json.dumps(SHORT | {"ref_audio": "A" * 17_000_000})
        assert client.post(SPEECH, content=huge, headers={"Content-Type": "application/json"}).status_code == 413
        assert idle(client)


def test_voices_are_saved_and_deleted_over_http(serving, tmp_path):
    folder = tmp_path / "voices"
    new = {"name": "Grandma 2", "ref_audio": data_url(RECORDING.read_bytes()), "ref_text": "Some words."}
    with serving(voices=Voices.load(folder, change=True)) as client:
        assert client.post(VOICES, json=new).status_code == 201
        by_name = client.post(SPEECH, json=SHORT | {"voice": "grandma_2"}).content
        assert by_name == client.post(SPEECH, json=SHORT | {k: new[k] for k in ("ref_audio", "ref_text")}).content
        for changed, told in (
            ({}, "there is a voice 'Grandma 2' already"),
            ({"name": "grandma-2"}, "there is a voice 'Grandma 2' already"),
            ({"name": "../x"}, "up to 63 letters"),
            ({"name": ".x"}, "up to 63 letters"),
            ({"name": "x", "model": "tiny-custom-voice"}, "cannot clone a recording; load a base bundle"),
            ({"name": "x", "sound": "x"}, "unknown field sound; known: name, ref_audio, ref_text, model"),
        ):
            answer = client.post(VOICES, json=new | changed)
            assert (answer.status_code, told in answer.json()["error"]["message"]) == (400, True), answer.text
    assert list(Voices.load(folder).saved) == ["Grandma 2"], "it outlives the server"
    with serving(voices=Voices.load(folder, change=True)) as client:
        assert client.delete(f"{VOICES}/Grandma 2").status_code == 204
        assert client.delete(f"{VOICES}/Grandma 2").status_code == 404
        assert list(folder.iterdir()) == []
        assert "choose a voice" in client.post(SPEECH, json=SHORT | {"model": "tiny-base"}).text


def test_voices_cannot_be_changed_unless_it_is_allowed(serving):
    with serving() as client:
        for answer in (client.post(VOICES, json={}), client.delete(f"{VOICES}/anna")):
            assert (answer.status_code, "--change-voices" in answer.text) == (403, True)
        assert [voice["id"] for voice in client.get(VOICES).json()["voices"]].count("anna") == 1
