"""Bundles of the npu layout speak what native ones speak: on the CPU, and through OpenVINO's NPU plugin on the CPU."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from pipeline.graphs.teacher_forcing import EXACT
from qwen3_tts_ov import Bundle, DeviceError, RequestError, Synthesizer, VoicePrompt
from qwen3_tts_ov.app.server import application
from qwen3_tts_ov.app.voices import Voices
from qwen3_tts_ov.audio import pcm16
from tests.conftest import configured
from tests.readers.native import GERMAN, RECORDING, SAID, TEXT
from tests.serving import SPEECH, served

NPUW = dict(configured().device.stand_ins["NPUW on CPU"].properties)
DEVICES: dict[str, tuple[str, dict[str, Any]]] = {"CPU": ("CPU", EXACT), "NPUW on CPU": ("NPU", {**NPUW, **EXACT})}
GREEDY = {"do_sample": False, "subtalker_dosample": False}
# The voices of each variant; a recording is (samples, rate), or with what it says in context.
VOICES: dict[str, list[dict[str, Any]]] = {
    "tiny-base": [
        {"voice": (RECORDING, 24_000), "text_first": False},
        {"voice": (RECORDING, 24_000), "reference_text": SAID},
    ],
    "tiny-custom-voice": [{"voice": "ryan"}, {"voice": "eric", "text_first": False}],
    "tiny-voice-design": [{"instruct": "A calm, low voice."}, {"instruct": "Bright and fast.", "text_first": False}],
}
KINDS = [
    pytest.param(variant, marks=() if variant == "tiny-base" else pytest.mark.prove)  # whose graphs other tests build
    for variant in VOICES
]

Speaker = Callable[[str, str], Synthesizer]


@pytest.fixture(scope="module")
def native(artifact, model_cache) -> Callable[[str], Synthesizer]:
    @cache
    def get(variant: str) -> Synthesizer:
        return Synthesizer(Bundle.load(artifact("bundle", variant)), "CPU", {"default": EXACT}, model_cache)

    return get


@pytest.fixture(scope="module")
def fixed(bundle_of, model_cache) -> Speaker:
    @cache
    def get(variant: str, device: str) -> Synthesizer:
        name, properties = DEVICES[device]
        return Synthesizer(Bundle.load(bundle_of("npu", variant)), name, {"default": properties}, model_cache)

    return get


@pytest.fixture(scope="module")
def base(fixed) -> Synthesizer:
    return fixed("tiny-base", "CPU")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", KINDS)
@pytest.mark.parametrize(
    "options", [GREEDY, {"subtalker_top_k": 64, "subtalker_top_p": 0.8}], ids=["greedy", "sampled"]
)
def test_it_speaks_the_native_bundles_codes_whole_and_streamed(native, fixed, variant, device, options):
    for number, voice in enumerate(VOICES[variant]):
        asked = {"text": (TEXT, GERMAN)[number], "seed": 5, "max_frames": 12, **voice, **options}
        expected, speaker = native(variant).speak(**asked), fixed(variant, device)
        speech = speaker.speak(**asked)
        np.testing.assert_array_equal(speech.codes, expected.codes)
        np.testing.assert_allclose(speech.waveform, expected.waveform, atol=2e-5)
        assert speech.stop_reason == expected.stop_reason
        chunks = list(speaker.stream(**asked, first_chunk=3))  # frames are decoded before they fill a call of the graph
        assert len(chunks[0]) == 3 * 1920
        np.testing.assert_array_equal(np.concatenate(chunks), speech.waveform)


def test_tables_and_encoders_run_on_the_cpu_where_an_npu_is_asked_for(fixed):
    loaded = fixed("tiny-base", "NPUW on CPU").engine
    loaded.x_vector(RECORDING)
    loaded.encode(RECORDING)
    on_npu = {name for name in loaded.model.graphs if loaded.property(name, "EXECUTION_DEVICES") != ["CPU"]}
    assert on_npu == {"talker", "code_predictor", "speech_decoder"}


def test_the_server_speaks_from_it_as_from_a_native_bundle(fixed):
    loaded = fixed("tiny-base", "NPUW on CPU")
    voice = VoicePrompt(loaded.engine.x_vector(RECORDING))
    expected = loaded.speak("Hello.", voice, seed=1, max_frames=6)
    with served(application(loaded, voices=Voices({"me": voice}))) as client:
        asked = {"input": "Hello.", "voice": "me", "seed": 1, "max_frames": 6, "response_format": "pcm"}
        assert client.post(SPEECH, json=asked).content == pcm16(expected.waveform)


def test_properties_for_an_npu_are_not_lost_in_a_cache(bundle_of, tmp_path):
    """The plugin's cache would restore a graph that was compiled with others."""
    bundle, devices = Bundle.load(bundle_of("npu")), {"code_predictor": "CPU", "speech_decoder": "CPU", "talker": "NPU"}
    Synthesizer(bundle, devices, {"talker": NPUW}, tmp_path)
    assert len(list(tmp_path.rglob("*.blob"))) == 2, "of the code predictor and the speech decoder"


def test_without_an_npu_it_says_what_there_is(bundle_of, model_cache):
    with pytest.raises(DeviceError, match=r"^\w+: there is no device NPU on this machine; it has: CPU"):
        Synthesizer(Bundle.load(bundle_of("npu")), "NPU", cache_dir=model_cache)


def test_a_native_bundle_on_an_npu_is_refused_with_advice(artifact, model_cache):
    with pytest.raises(DeviceError, match=r"an NPU takes no graph of a native bundle; load one of the npu layout"):
        Synthesizer(Bundle.load(artifact("bundle", "tiny-base")), "NPU", {"default": NPUW}, model_cache)


# ---- limits ----------------------------------------------------------------------------------------------------------


def nobody(synthesizer: Synthesizer, words: int) -> VoicePrompt:
    """A voice in context whose reference text alone takes so many positions."""
    width = synthesizer.model.config["talker_config"]["hidden_size"]
    return VoicePrompt(np.zeros(width, np.float32), np.zeros((5, 16), np.int64), "a" + " a" * (words - 1))


def test_a_prompt_longer_than_the_cache_is_refused_with_both_sizes(base):
    voice = nobody(base, 1100)
    with pytest.raises(
        RequestError, match=r"^the prompt takes 1[12]\d\d positions and the model has 1024; shorten it$"
    ):
        base.speak(TEXT, voice, text_first=True)


@pytest.mark.parametrize("top_k", [65, 0])
def test_more_candidates_than_the_graph_has_are_refused_unless_nothing_is_drawn(base, top_k):
    voice = VoicePrompt(nobody(base, 1).x_vector)
    message = rf"^subtalker_top_k must be 1 to 64 with this bundle, the candidates of its graph; not {top_k}$"
    with pytest.raises(RequestError, match=message):
        base.speak(TEXT, voice, subtalker_top_k=top_k)
    assert len(base.speak(TEXT, voice, subtalker_top_k=top_k, subtalker_dosample=False, max_frames=2).codes) == 2


@pytest.fixture
def talkative(base, monkeypatch) -> Synthesizer:
    """Its checkpoint has no limit of frames that matters here."""
    monkeypatch.setitem(base.model.generation, "max_new_tokens", 8192)
    return base


def test_speech_that_fills_the_cache_stops_there_and_nothing_is_lost(talkative):
    voice = nobody(talkative, 970)
    speech, limited = (
        talkative.speak("Hello there.", voice, text_first=True, seed=1, max_frames=most) for most in (None, 12)
    )
    assert (speech.stop_reason, limited.stop_reason) == ("cache_full", "max_frames")
    assert 12 < len(speech.codes) == len(speech.waveform) / 1920 < 54
    np.testing.assert_array_equal(speech.codes[:12], limited.codes)
    np.testing.assert_array_equal(speech.waveform[: 11 * 1920], limited.waveform[: 11 * 1920])


def test_a_long_text_is_cut_into_pieces_that_fit(talkative):
    """About 60 seconds: two pieces where there is room, more where a reference takes most of the cache."""
    asked = talkative._request, "This is one of several short sentences to be spoken. " * 16

    def pieces(voice: VoicePrompt) -> list[tuple[Any, int, float]]:
        return list(asked[0](asked[1], voice, None, "auto", None, {"text_first": True}).pieces)

    roomy, narrow = pieces(VoicePrompt(nobody(talkative, 1).x_vector)), pieces(nobody(talkative, 800))
    assert 2 <= len(roomy) < len(narrow)
    assert all(len(prompt) + limit <= 1024 for prompt, limit, _ in roomy + narrow)
    assert min(limit for _, limit, _ in narrow) > 100, "8 seconds and more of speech for each piece"
