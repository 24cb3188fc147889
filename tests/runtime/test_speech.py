"""The runtime speaks from the tiny bundles: every mode, whole and streamed, alone and from many threads."""

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import openvino as ov
import psutil
import pytest
import soundfile

from qwen3_tts_ov import (
    AudioError,
    Bundle,
    DeviceError,
    RequestError,
    Speech,
    SpeechStream,
    Synthesizer,
    VoicePrompt,
    engine,
)
from qwen3_tts_ov.generation import LARGEST_CHUNK
from qwen3_tts_ov.synthesizer import piece_seconds
from tests.conftest import every_core

TEXT = "The quick brown fox."
FRAME = 1920
MODES = ("custom_voice", "voice_design", "clone_x_vector", "clone_icl")
VARIANTS = {
    "custom_voice": "tiny-custom-voice",
    "voice_design": "tiny-voice-design",
    "clone_x_vector": "tiny-base",
    "clone_icl": "tiny-base",
}


def recording(seconds: float = 2.0, rate: int = 24_000) -> tuple[np.ndarray, int]:
    """A tone that swells like syllables, to clone."""
    clock = np.arange(round(rate * seconds)) / rate
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * clock)
    return (0.3 * swell * np.sin(2 * np.pi * 180 * clock)).astype(np.float32), rate


@pytest.fixture(scope="module")
def synthesizer(artifact: Callable[..., Path], model_cache: Path) -> Callable[[str], Synthesizer]:
    """`synthesizer("custom_voice")`: one per mode, compiled once; `exact` has the speech decoder in f32."""
    made: dict[tuple[str, bool], Synthesizer] = {}

    def get(mode: str, exact: bool = False) -> Synthesizer:
        variant = VARIANTS[mode]
        if (variant, exact) not in made:
            properties = {"speech_decoder": {"INFERENCE_PRECISION_HINT": "f32"}} if exact else None
            bundle = Bundle.load(artifact("bundle", variant, "int8"))
            made[variant, exact] = Synthesizer(bundle, properties=properties, cache_dir=model_cache)
        return made[variant, exact]

    return get


@pytest.fixture(scope="module")
def cloned(synthesizer) -> Callable[[str, bool], VoicePrompt]:
    """`cloned("clone_icl", exact=False)`: encoded once."""

    @cache
    def get(mode: str, exact: bool) -> VoicePrompt:
        text = "This is what the recording says." if mode == "clone_icl" else None
        return synthesizer(mode, exact).voice_prompt(recording(), text)

    return get


@pytest.fixture
def modes(synthesizer, cloned) -> Callable[[str], tuple[Callable[..., Speech], Callable[..., SpeechStream]]]:
    """`modes("clone_icl")`: the functions that speak and stream in that mode, with the voice already chosen."""

    def get(mode: str, exact: bool = False) -> tuple[Callable[..., Speech], Callable[..., SpeechStream]]:
        loaded, voice = synthesizer(mode, exact), {}
        if mode == "voice_design":
            voice = {"instruct": "An old man, slow and hoarse."}
        elif mode != "custom_voice":
            voice = {"voice": cloned(mode, exact)}
        return partial(loaded.speak, **voice), partial(loaded.stream, **voice)

    return get


@pytest.mark.parametrize("mode", MODES)
class TestEveryMode:
    def test_speech_is_audible_and_as_long_as_its_frames(self, modes, mode):
        speech = modes(mode)[0](TEXT, seed=1, max_frames=40)
        assert 2 <= len(speech.codes) <= 40
        assert speech.waveform.dtype == np.float32
        assert len(speech.waveform) == speech.samples == FRAME * len(speech.codes)
        assert np.isfinite(speech.waveform).all()
        assert 1e-4 < np.abs(speech.waveform).max() <= 1
        assert speech.codes.shape[1] == 16
        assert 0 <= speech.codes.min() <= speech.codes.max() < 2048

    def test_the_same_seed_gives_the_same_speech_and_a_different_seed_does_not(self, modes, mode):
        speak = modes(mode)[0]
        first, again, other = (speak(TEXT, seed=seed, max_frames=20) for seed in (7, 7, 8))
        np.testing.assert_array_equal(first.codes, again.codes)
        np.testing.assert_array_equal(first.waveform, again.waveform)
        assert not np.array_equal(first.codes, other.codes)

    def test_a_stream_joined_equals_the_whole_whatever_the_arithmetic(self, modes, mode):
        speak, stream = modes(mode)
        whole = speak(TEXT, seed=2, max_frames=40)
        with stream(TEXT, seed=2, max_frames=40) as chunks:
            np.testing.assert_array_equal(np.concatenate(list(chunks)), whole.waveform)

    @pytest.mark.parametrize("first_chunk", [1, 3, 100])
    def test_chunks_of_any_size_joined_equal_the_whole(self, modes, mode, first_chunk):
        speak, stream = modes(mode, exact=True)
        whole = speak(TEXT, seed=2, max_frames=40)
        with stream(TEXT, seed=2, max_frames=40, first_chunk=first_chunk) as chunks:
            pieces = list(chunks)
            outcome = chunks.outcome
        np.testing.assert_array_equal(outcome.codes, whole.codes)
        assert outcome.stop_reason == whole.stop_reason
        np.testing.assert_allclose(np.concatenate(pieces), whole.waveform, atol=2e-5)
        assert len(pieces[0]) == FRAME * min(first_chunk, len(whole.codes))
        sizes = [len(piece) // FRAME for piece in pieces[:-1]]
        assert sizes == sorted(sizes), "later chunks are larger"
        assert all(size <= max(first_chunk, LARGEST_CHUNK) for size in sizes)

    @pytest.mark.parametrize("text_first", [True, False])
    def test_a_frame_takes_two_infer_calls(self, modes, mode, text_first):
        speech = modes(mode)[0](TEXT, seed=3, max_frames=10, text_first=text_first)
        calls = speech.timings.calls
        frames = len(speech.codes)
        assert calls["code_predictor"] == frames
        assert calls["prefill"] == 1
        assert calls["talker"] == frames - 1 + (speech.stop_reason == "eos"), "one step between frames"
        assert calls["text_embedding"] == 1, "all text rows are looked up at once"

    def test_the_frame_limit_stops_speech_and_is_reported(self, modes, mode):
        speech = modes(mode)[0](TEXT, seed=4, max_frames=3)
        assert (len(speech.codes), speech.stop_reason) in {(3, "max_frames"), (2, "eos")}

    def test_greedy_speech_needs_no_seed(self, modes, mode):
        greedy = {"do_sample": False, "subtalker_dosample": False, "max_frames": 10}
        first, second = (modes(mode)[0](TEXT, seed=seed, **greedy) for seed in (1, 2))
        np.testing.assert_array_equal(first.codes, second.codes)

    def test_a_request_does_not_affect_the_next(self, modes, mode):
        speak, stream = modes(mode)
        expected = speak(TEXT, seed=5, max_frames=12)
        abandoned = stream("Something else entirely, and it is longer.", seed=6, first_chunk=1)
        next(abandoned)
        abandoned.close()
        np.testing.assert_array_equal(speak(TEXT, seed=5, max_frames=12).waveform, expected.waveform)


def test_generation_ends_by_itself_or_at_the_limit_set_by_its_text(synthesizer):
    loaded = synthesizer("custom_voice")
    short, long = (loaded.speak(text, seed=1) for text in ("Hi.", TEXT * 2))
    for speech, bound in ((short, 5 + 4), (long, 5 + 4 * 4)):
        assert speech.stop_reason in ("eos", "max_frames")
        assert speech.duration <= bound


def test_an_unseeded_request_reports_the_seed_that_reproduces_it(synthesizer):
    loaded = synthesizer("custom_voice")
    say = partial(loaded.speak, TEXT, max_frames=10)
    first, second = say(), say()
    assert first.seed != second.seed
    np.testing.assert_array_equal(say(seed=first.seed).codes, first.codes)


def test_sampling_options_reach_both_talker_and_code_predictor(synthesizer):
    loaded = synthesizer("custom_voice")
    say = partial(loaded.speak, TEXT, seed=1, max_frames=6)
    sampled, greedy = say(), say(do_sample=False, subtalker_dosample=False)
    only_talker, only_predictor = say(subtalker_top_k=1), say(top_k=1)
    assert not np.array_equal(sampled.codes, greedy.codes)
    assert sampled.codes[0, 0] == only_talker.codes[0, 0], "the talker still draws as before"
    assert only_predictor.codes[0, 0] == greedy.codes[0, 0]
    np.testing.assert_array_equal(say(top_k=1, subtalker_top_k=1).codes, greedy.codes)


@pytest.mark.parametrize("mode", ["custom_voice", "clone_x_vector"])
def test_the_checkpoint_may_say_whether_the_text_comes_first(synthesizer, monkeypatch, mode):
    speaking = synthesizer(mode)
    voice = recording() if mode == "clone_x_vector" else None

    def codes(**options: bool) -> bytes:
        return speaking.speak(TEXT, voice, seed=3, max_frames=6, **options).codes.tobytes()

    first, beside = codes(text_first=True), codes(text_first=False)
    assert first != beside
    assert codes() == (first if mode == "custom_voice" else beside), "as in the official package"
    for chosen in (True, False):
        monkeypatch.setitem(speaking.model.generation, "non_streaming_mode", chosen)
        assert codes() == (first if chosen else beside)
        assert codes(text_first=not chosen) == (beside if chosen else first), "a request overrules it"
    monkeypatch.setitem(speaking.model.generation, "non_streaming_mode", "yes")
    with pytest.raises(RequestError, match="non_streaming_mode is 'yes', not true or false"):
        codes()


def test_every_speaker_and_language_of_the_bundle_is_accepted_in_any_case(synthesizer):
    loaded = synthesizer("custom_voice")
    for speaker in loaded.model.speakers:
        assert loaded.speak(TEXT, speaker.upper(), max_frames=2).samples == 2 * FRAME
    for language in ["auto", *loaded.model.config["talker_config"]["codec_language_id"]]:
        assert loaded.speak(TEXT, language=language.title(), max_frames=2).samples == 2 * FRAME


def test_the_default_voice_is_the_first_of_the_checkpoint_or_the_one_named_in_the_manifest(artifact, synthesizer):
    loaded = synthesizer("custom_voice")
    say = partial(loaded.speak, TEXT, seed=1, max_frames=8)
    first = next(iter(loaded.model.config["talker_config"]["spk_id"]))
    np.testing.assert_array_equal(say().codes, say(first).codes)
    assert not np.array_equal(say().codes, say("ryan").codes)
    bundle = Bundle.load(artifact("bundle", "tiny-custom-voice", "int8"))
    chosen = replace(bundle, manifest=bundle.manifest | {"default_voice": "ryan"})
    assert (bundle.default_voice, chosen.default_voice, chosen.model.default_voice) == (first, "ryan", "ryan")


def test_a_long_text_is_spoken_in_pieces_with_pauses_and_without_clicks(synthesizer, monkeypatch):
    loaded = synthesizer("custom_voice")
    monkeypatch.setattr("qwen3_tts_ov.synthesizer.PIECE_SECONDS", 2.0)
    monkeypatch.setitem(loaded.model.generation, "max_new_tokens", 5)  # a limit for each piece
    text = "One sentence here. Another one there! And a third?"
    with loaded.stream(text, seed=1, first_chunk=2) as stream:
        assert stream.expected_seconds == pytest.approx(3, abs=1.5), "an estimate"
        waveform = np.concatenate(list(stream))
    frames, pause = len(stream.outcome.codes), round(0.25 * 24_000)
    assert 3 * 2 <= frames <= 3 * 5
    assert len(waveform) == FRAME * frames + 2 * pause
    assert stream.expected_seconds == pytest.approx(frames * 0.08), "by the end it is known"
    whole = loaded.speak(text, seed=1)
    np.testing.assert_allclose(waveform, whole.waveform, atol=2e-5)
    if frames == 15:  # so the positions of the pauses are known
        for start in (5 * FRAME, 10 * FRAME + pause):
            gap = waveform[start - 1 : start + pause]
            assert np.abs(np.diff(gap)).max() <= 0.05 * np.abs(gap[0]) + 1e-6, "it starts where the speech was"
            assert np.abs(gap[-pause // 2 :]).max() < 1e-6, "and is silent after that"


@pytest.mark.parametrize("mode", ["custom_voice", "voice_design"])
def test_a_checkpoint_says_how_long_a_text_it_can_speak(synthesizer, mode, monkeypatch):
    model = synthesizer(mode).model
    monkeypatch.setitem(model.generation, "max_new_tokens", 8192)
    assert piece_seconds(model) == {"custom_voice": 30.0, "voice_design": 655.36}[mode]
    monkeypatch.setitem(model.generation, "longest_text_seconds", 13)
    assert piece_seconds(model) == 13.0
    for wrong in (0, -1, "13", True, float("nan")):
        monkeypatch.setitem(model.generation, "longest_text_seconds", wrong)
        with pytest.raises(RequestError, match=f"longest_text_seconds is {wrong!r}, not a number above 0"):
            synthesizer(mode).speak("A text.", instruct="A voice." if mode == "voice_design" else None)


def test_the_frame_limit_of_a_request_covers_all_its_pieces(synthesizer, monkeypatch):
    loaded = synthesizer("custom_voice")
    monkeypatch.setattr("qwen3_tts_ov.synthesizer.PIECE_SECONDS", 2.0)
    speech = loaded.speak("One sentence here. Another one there! And a third?", max_frames=4)
    assert (len(speech.codes), speech.stop_reason) == (4, "max_frames")


def test_frames_of_the_reference_are_context_and_not_part_of_the_speech(synthesizer):
    """The decoder must process the reference first: the speech is what follows it in one pass over both."""
    loaded = synthesizer("clone_icl")
    voice = loaded.voice_prompt(recording(3), "This is what the recording says.")
    speech = loaded.speak(TEXT, voice, seed=1, max_frames=20)
    with loaded.engine.session() as session:
        session.new_utterance()
        joined = session.decode(np.concatenate([voice.codes, speech.codes]))
        session.new_utterance()
        alone = session.decode(speech.codes)
    np.testing.assert_allclose(speech.waveform, joined[FRAME * len(voice.codes) :], atol=2e-5)
    assert np.abs(speech.waveform[: 2 * FRAME] - alone[: 2 * FRAME]).max() > 1e-4, "the context matters"


def test_a_voice_prompt_has_half_a_second_of_silence_in_its_codes_but_not_in_its_vector(synthesizer):
    loaded = synthesizer("clone_icl")
    samples, rate = recording(2.0)
    voice = loaded.voice_prompt((samples, rate), "What it says.")
    np.testing.assert_array_equal(voice.x_vector, loaded.engine.x_vector(samples))
    np.testing.assert_array_equal(voice.codes, loaded.engine.encode(np.pad(samples, (0, rate // 2))))
    assert len(voice.codes) == int(np.ceil(2.5 * 12.5))


def test_a_recording_a_saved_prompt_and_a_prompt_give_the_same_voice(synthesizer, tmp_path):
    loaded = synthesizer("clone_icl")
    samples, rate = recording()
    soundfile.write(tmp_path / "me.wav", samples, rate, "FLOAT")
    for text in ("What it says, in every script: 你好 é", None):
        voice = loaded.voice_prompt(recording(), text)
        voice.save(tmp_path / "voice.safetensors")
        again = VoicePrompt.load(tmp_path / "voice.safetensors")
        assert again.text == text
        say = partial(loaded.speak, TEXT, seed=1, max_frames=5)
        expected = say(voice).waveform
        for same in (again, tmp_path / "voice.safetensors", str(tmp_path / "voice.safetensors")):
            np.testing.assert_array_equal(say(same).waveform, expected)
        for cloned in ((samples, rate), tmp_path / "me.wav", str(tmp_path / "me.wav")):
            np.testing.assert_array_equal(say(cloned, reference_text=text).waveform, expected)
    assert sorted(os.listdir(tmp_path)) == ["me.wav", "voice.safetensors"]


@pytest.mark.parametrize("requests", [5, pytest.param(20, marks=pytest.mark.prove)])
def test_eight_threads_with_several_requests_each_get_what_one_thread_gets(synthesizer, requests):
    loaded = synthesizer("custom_voice")
    speakers = loaded.model.speakers

    def say(number: int) -> np.ndarray:
        return loaded.speak(f"Number {number}.", speakers[number % len(speakers)], seed=number, max_frames=2).waveform

    def thread(first: int) -> list[np.ndarray]:
        return [say((first + step) % 8) for step in range(requests)]

    expected = [say(number) for number in range(8)]
    memory: list[int] = []
    for _ in range(4):
        with ThreadPoolExecutor(8) as pool:
            for first, waveforms in enumerate(pool.map(thread, range(8))):
                for step, waveform in enumerate(waveforms):
                    np.testing.assert_array_equal(waveform, expected[(first + step) % 8])
        gc.collect()
        memory.append(psutil.Process().memory_info().rss)
        # The allocator occasionally gives new threads new arenas; a leak grows in every round.
        if len(memory) > 1 and memory[-1] - memory[-2] < 16e6:
            return
    pytest.fail(f"memory grows in every round: {memory}")


BATCH = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from qwen3_tts_ov import Bundle, Synthesizer

bundle = Bundle.load(sys.argv[1])
expected = Synthesizer(bundle, cache_dir=False)
loaded = Synthesizer(bundle, properties={"default": {"NUM_STREAMS": 2}}, cache_dir=False)
assert loaded.engine.property("talker", "NUM_STREAMS") == 2
assert loaded.engine.property("talker", "NO_SUCH_PROPERTY") is None
texts = ["One text.", "Another text.", "A third.", "And a fourth."]

def say(by, text):
    return by.speak(text, seed=1, max_frames=4).codes

with ThreadPoolExecutor(2) as pool:
    for text, codes in zip(texts, pool.map(lambda text: say(loaded, text), texts), strict=True):
        np.testing.assert_array_equal(codes, say(expected, text))
"""


def test_a_batch_may_run_at_once_on_a_device_compiled_for_several(artifact):
    """In a process of its own, with every core: OpenVINO has no more streams than cores."""
    bundle = artifact("bundle", "tiny-custom-voice", "int8")
    with every_core():
        done = subprocess.run([sys.executable, "-c", BATCH, bundle], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_dropped_stream_frees_its_session(synthesizer):
    loaded = synthesizer("custom_voice")
    loaded.speak(TEXT, max_frames=2)
    before = len(loaded.engine._free)
    for _ in range(5):
        stream = loaded.stream(TEXT, first_chunk=1)
        list(islice(stream, 2))
        assert len(loaded.engine._free) == before - 1
        del stream
        gc.collect()
        assert len(loaded.engine._free) == before
    with pytest.raises(RuntimeError, match="not been read to its end"):
        _ = loaded.stream(TEXT).outcome


def test_concurrent_streams_do_not_mix(synthesizer):
    loaded = synthesizer("custom_voice")
    say = partial(loaded.stream, TEXT, max_frames=8, first_chunk=1)
    expected = [np.concatenate(list(say(seed=seed))) for seed in range(3)]
    streams = [say(seed=seed) for seed in range(3)]
    turns = zip_longest(*streams, fillvalue=np.empty(0, np.float32))
    pieces = zip(*turns, strict=True)
    for mine, whole in zip(pieces, expected, strict=True):
        np.testing.assert_array_equal(np.concatenate(mine), whole)


def test_a_second_start_loads_the_compiled_graphs_from_the_cache(artifact, tmp_path):
    bundle = Bundle.load(artifact("bundle", "tiny-custom-voice", "int8"))
    say = partial(Synthesizer.speak, text=TEXT, seed=1, max_frames=5)
    first = say(Synthesizer(bundle, cache_dir=tmp_path))
    cached = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert len([path for path in cached if path.suffix == ".blob"]) == 3, "tables are not compiled"
    assert [path.name for path in cached if path.suffix == ".xml"] == ["code_predictor-1.xml"], "for a batch of one"
    second = say(Synthesizer(bundle, cache_dir=tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == cached
    np.testing.assert_array_equal(first.waveform, second.waveform)


def test_a_cache_folder_that_cannot_be_made_is_not_an_error(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert engine._cache_properties(tmp_path / "file", "a key") == {}
    assert "cannot keep a model cache there" in caplog.text


def test_devices_and_properties_by_component_override_the_recommendation(synthesizer, model_cache):
    expected = synthesizer("custom_voice")
    model = expected.model
    devices = {"talker": "AUTO", "codec_embedding": "HETERO:CPU"}
    loaded = Synthesizer(model, devices, {"speech_decoder": {"INFERENCE_NUM_THREADS": 1}}, model_cache)
    spoken = (each.speak(TEXT, seed=1, max_frames=3).samples for each in (loaded, expected))
    assert list(spoken) == [3 * FRAME] * 2
    compiled = loaded.engine._compiled
    assert compiled["talker"].get_property("EXECUTION_DEVICES") in (["CPU"], ["(CPU)"])
    assert compiled["speech_decoder"].get_property("INFERENCE_NUM_THREADS") == 1
    assert all(port.partial_shape.is_static for port in compiled["code_predictor"].inputs)  # batch of one
    for name, recommended in model.placement["CPU"].items():
        if name in ("code_predictor", "speech_decoder") and "INFERENCE_PRECISION_HINT" in recommended:
            chosen = compiled[name].get_property("INFERENCE_PRECISION_HINT")
            assert chosen.to_string() == recommended["INFERENCE_PRECISION_HINT"]


def test_a_processor_with_slow_bf16_decodes_in_f32_unless_told_otherwise(synthesizer, model_cache, monkeypatch):
    model = synthesizer("custom_voice").model
    monkeypatch.setattr(engine, "slow_bf16", lambda: True)
    chosen = []
    for properties in (None, {"speech_decoder": {"INFERENCE_PRECISION_HINT": "bf16"}}):
        loaded = Synthesizer(model, properties=properties, cache_dir=model_cache)
        chosen.append(loaded.engine.property("speech_decoder", "INFERENCE_PRECISION_HINT").to_string())
    assert chosen == ["f32", "bf16" if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"]


def test_speaking_loads_neither_torch_nor_transformers_nor_the_command_line(artifact, model_cache):
    """In a separate process, free of what the tests import. The import itself must be light."""
    script = """
import json, sys
import qwen3_tts_ov
light = sorted({name.partition(".")[0] for name in sys.modules} & {"openvino", "numpy", "huggingface_hub", "soundfile"})
from qwen3_tts_ov import Bundle, Synthesizer
synthesizer = Synthesizer(Bundle.load(sys.argv[1]), cache_dir=sys.argv[2])
speech = synthesizer.speak("Hello.", max_frames=3)
unwanted = {"torch", "transformers", "nncf", "pipeline", "model_src"}
heavy = sorted({name.partition(".")[0] for name in sys.modules} & unwanted)
heavy += [name for name in sys.modules if name.startswith("qwen3_tts_ov.app")]
print(json.dumps({"light": light, "heavy": heavy, "samples": speech.samples}))
"""
    command = [sys.executable, "-c", script, str(artifact("bundle", "tiny-custom-voice", "int8")), str(model_cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"light": [], "heavy": [], "samples": 3 * FRAME}


OWN_VOICE = VoicePrompt(np.zeros(7, np.float32))

# How the request is broken, and the message for the caller.
BAD_REQUESTS = {
    "no text": ("custom_voice", {"text": ""}, "the text has no letter, digit or symbol"),
    "only blanks": ("custom_voice", {"text": " \n\t"}, "nothing to speak"),
    "only marks": ("voice_design", {"text": "?!..."}, "nothing to speak"),
    "bytes": ("custom_voice", {"text": b"hello"}, "the text must be a string, not bytes"),
    "None": ("custom_voice", {"text": None}, "the text must be a string, not NoneType"),
    "a list": ("custom_voice", {"text": ["a", "b"]}, "the text must be a string, not list"),
    "half a surrogate pair": ("custom_voice", {"text": "a\ud800b"}, "half of a surrogate pair"),
    "chat markup": ("custom_voice", {"text": "Hi<|im_end|>"}, r"control token <\|im_end\|>; take it out"),
    "markup in the instruction": ("voice_design", {"instruct": "<|im_start|>x"}, "the description of the voice holds"),
    "unknown voice": ("custom_voice", {"voice": "nobody"}, "unknown voice 'nobody'; this bundle has: aiden, [^;]*$"),
    "a recording": ("custom_voice", {"voice": "me.wav"}, "unknown voice 'me.wav'.*; only a base bundle clones"),
    "an instruction to 0.6B": ("custom_voice", {"instruct": "Calm."}, "0.6B models do not follow .*leave instruct out"),
    "no language": ("custom_voice", {"language": None}, "unknown language None"),
    "unknown language": ("custom_voice", {"language": "klingon"}, "unknown language 'klingon'; .* auto, .*english"),
    "no instruction": ("voice_design", {"instruct": ""}, "needs a voice in words; describe it with instruct"),
    "an instruction of marks": ("voice_design", {"instruct": "..."}, "the description of the voice has no letter"),
    "negative seed": ("custom_voice", {"seed": -1}, "seed must be a whole number of at least 0, not -1"),
    "fractional seed": ("custom_voice", {"seed": 0.5}, "seed must be a whole number"),
    "seed as text": ("custom_voice", {"seed": "1"}, "seed must be a whole number"),
    "true as seed": ("custom_voice", {"seed": True}, "seed must be a whole number"),
    "no frames": ("custom_voice", {"max_frames": 0}, "max_frames must be a whole number of at least 1, not 0"),
    "endless": ("custom_voice", {"max_frames": float("inf")}, "max_frames must be a whole number"),
    "frozen": ("custom_voice", {"temperature": 0}, "temperature must be above 0"),
    "negative heat": ("custom_voice", {"temperature": -1.0}, "temperature must be above 0"),
    "infinite heat": ("custom_voice", {"temperature": float("inf")}, "temperature must be above 0 and finite"),
    "no heat at all": ("custom_voice", {"temperature": float("nan")}, "temperature must be above 0"),
    "heat in words": ("custom_voice", {"temperature": "hot"}, "temperature|not supported"),
    "negative top_k": ("custom_voice", {"top_k": -1}, "top_k must be 0 .* or more"),
    "no top_p": ("custom_voice", {"top_p": 0}, r"top_p must be in \(0, 1\]"),
    "too much top_p": ("custom_voice", {"top_p": 1.5}, r"top_p must be in \(0, 1\]"),
    "no penalty": ("custom_voice", {"repetition_penalty": 0}, "repetition_penalty must be above 0"),
    "frozen predictor": ("custom_voice", {"subtalker_temperature": 0}, "temperature must be above 0"),
    "predictor's top_p": ("custom_voice", {"subtalker_top_p": 2}, r"top_p must be in \(0, 1\]"),
    "misspelt option": (
        "custom_voice",
        {"temprature": 1},
        r"unknown option temprature \(did you mean 'temperature'\?\); known: seed, ",
    ),
    "no voice to clone": ("clone_x_vector", {"voice": None}, "give a recording or a saved voice prompt with voice"),
    "a voice that is a number": ("clone_x_vector", {"voice": 7}, "must be a path, .* or a VoicePrompt, not int"),
    "two reference texts": ("clone_x_vector", {"reference_text": "So."}, "already holds its reference text; leave"),
    "an instruction to clone": ("clone_icl", {"instruct": "Calm."}, "speaks as its recording does; leave instruct out"),
    "a voice of another size": ("clone_x_vector", {"voice": OWN_VOICE}, "has 7 numbers where this model takes"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_is_refused_at_once_in_one_line(modes, case):
    mode, spoiled, message = BAD_REQUESTS[case]
    for speak in modes(mode):
        with pytest.raises(RequestError, match=message) as error:
            speak(**{"text": TEXT, **spoiled})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("first_chunk", [0, -1, 1.5, None])
def test_a_first_chunk_is_at_least_one_frame(modes, first_chunk):
    with pytest.raises(RequestError, match="first_chunk must be a whole number of at least 1"):
        modes("custom_voice")[1](TEXT, first_chunk=first_chunk)


def test_each_kind_of_bundle_names_itself_when_used_as_another(synthesizer):
    custom, design, base = map(synthesizer, ("custom_voice", "voice_design", "clone_icl"))
    for request, message in (
        (lambda: custom.speak(TEXT, OWN_VOICE), "speaks with its own voices: aiden, .*; only a base bundle clones one"),
        (lambda: custom.speak(TEXT, "ryan", reference_text="So."), "reference_text belongs to a recording, and only"),
        (lambda: custom.voice_prompt(recording()), "a custom_voice bundle cannot clone a recording; load a base"),
        (lambda: design.speak(TEXT, "ryan", "Old."), "a voice_design bundle has no voices; leave voice out"),
        (lambda: base.speak(TEXT, instruct="Old."), "a base bundle clones a voice; give a recording"),
    ):
        with pytest.raises(RequestError, match=message):
            request()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((4, 15), np.int64), "codes are not this model's"),
        (np.full((4, 16), 2048), "codes are not this model's"),
        (np.full((4, 16), -1), "codes are not this model's"),
    ],
)
def test_codes_of_a_different_model_are_refused(synthesizer, codes, message):
    loaded = synthesizer("clone_icl")
    x_vector = np.zeros(loaded.model.config["talker_config"]["hidden_size"], np.float32)
    with pytest.raises(RequestError, match=message):
        loaded.speak(TEXT, VoicePrompt(x_vector, codes, "Some text."))


def test_a_bad_reference_is_refused(synthesizer, tmp_path):
    loaded = synthesizer("clone_icl")
    with pytest.raises(RequestError, match="the reference text has no letter"):
        loaded.voice_prompt(recording(), "...")
    with pytest.raises(AudioError, match="too short"):
        loaded.voice_prompt(recording(0.2))
    for use in (loaded.voice_prompt, partial(loaded.speak, TEXT)):
        for folder in (tmp_path, tmp_path.joinpath(*["a folder deep down"] * 20)):
            with pytest.raises(AudioError, match=r"none\.wav( \(\d+ characters\))?: there is no such file"):
                use(folder / "none.wav")
    (tmp_path / "none.safetensors").write_bytes(b"{}")
    with pytest.raises(AudioError, match="not a voice prompt"):
        loaded.stream(TEXT, tmp_path / "none.safetensors")


def test_a_reference_text_too_short_for_its_recording_gives_a_warning(synthesizer, caplog):
    synthesizer("clone_icl").voice_prompt(recording(10), "Hi.")
    assert "reference text is short for its recording" in caplog.text


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 100])
def test_a_file_that_is_not_a_voice_prompt_is_refused(tmp_path, content):
    (tmp_path / "voice.safetensors").write_bytes(content)
    with pytest.raises(AudioError, match="not a voice prompt") as error:
        VoicePrompt.load(tmp_path / "voice.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"x_vector": np.zeros((2, 2), np.float32)},
        {"x_vector": np.full(8, np.nan, np.float32)},
        {"x_vector": np.zeros(8, np.float64)},
        {"x_vector": np.zeros(8, np.float32), "codes": np.zeros((2, 16), np.int64)},
    ],
)
def test_a_voice_prompt_with_wrong_tensors_is_refused(tmp_path, tensors):
    from safetensors.numpy import save_file

    save_file(tensors, tmp_path / "voice.safetensors", {"format": "qwen3-tts-voice-prompt-1"})
    with pytest.raises(AudioError, match="not a voice prompt of this version"):
        VoicePrompt.load(tmp_path / "voice.safetensors")


@pytest.mark.parametrize(
    ("device", "properties", "error", "message"),
    [
        ("TPU", None, DeviceError, "there is no device TPU on this machine; it has: .*CPU"),
        ({"speech_decoder": "TPU"}, None, DeviceError, "speech_decoder: there is no device TPU"),
        (
            {"decoder": "CPU"},
            None,
            RequestError,
            r"unknown component 'decoder' \(did you mean 'speech_decoder'\?\); this model has: ",
        ),
        ("CPU", {"decoder": {}}, RequestError, "unknown component 'decoder' "),
        ("CPU", {"default": {"SPEED": "high"}}, DeviceError, "text_embedding: cannot be compiled for CPU: .*SPEED"),
        ("HETERO:TPU", None, DeviceError, "cannot be compiled for HETERO:TPU"),
    ],
)
def test_a_device_or_property_that_openvino_lacks_is_one_line(synthesizer, device, properties, error, message):
    model = synthesizer("custom_voice").model
    with pytest.raises(error, match=message) as raised:
        Synthesizer(model, device, properties, cache_dir=False)
    assert "\n" not in str(raised.value)


def test_one_session_per_running_request(synthesizer):
    loaded = synthesizer("custom_voice")
    barrier = threading.Barrier(3)

    def hold() -> int:
        with loaded.stream(TEXT, first_chunk=1) as stream:
            next(stream)
            barrier.wait(30)
            return 1

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(lambda _: hold(), range(3))) == 3


def test_a_reference_is_decoded_once_and_its_voice_sounds_the_same_to_the_last_bit(synthesizer, monkeypatch):
    """States are kept for the two voices that were used last."""
    monkeypatch.setattr("qwen3_tts_ov.session._VOICES", 2)
    loaded = synthesizer("clone_icl")
    voices = [loaded.voice_prompt(recording(seconds), "This is what it says.") for seconds in (2.1, 1.6, 1.1)]
    spoken: dict[int, Speech] = {}
    for at, known in ((0, False), (0, True), (1, False), (0, True), (2, False), (1, False), (2, True), (0, False)):
        speech = loaded.speak(TEXT, voices[at], seed=1, max_frames=4)
        calls = 0 if known else -(-len(voices[at].codes) // LARGEST_CHUNK)
        assert speech.timings.calls["speech_decoder"] == calls + 1
        np.testing.assert_array_equal(spoken.setdefault(at, speech).codes, speech.codes)
        np.testing.assert_array_equal(spoken[at].waveform, speech.waveform)
