"""The smoke stage: a bundle speaks on every device; incorrect speech fails, missed quality bounds are listed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from pipeline import smoke
from pipeline.judging import scorers, smoke_device
from pipeline.judging.gates import GateError
from pipeline.judging.runtime_agreement import agreement, record
from pipeline.judging.scorers import SCORERS
from pipeline.stage import PipelineError, configuration, read_metrics
from qwen3_tts_ov import Bundle, Speech, audio
from qwen3_tts_ov.engine import devices
from qwen3_tts_ov.speech import Timings
from tests.conftest import configured, run_stage

RATE, SAMPLES_PER_FRAME = 24000, 1920


@pytest.mark.parametrize(
    ("variant", "precision"),
    [
        ("tiny-custom-voice", "fp16"),
        ("tiny-custom-voice", "int8"),
        ("tiny-base", "int8"),
        pytest.param("tiny-voice-design", "int8", marks=pytest.mark.prove),
        pytest.param("tiny-base", "fp16", marks=pytest.mark.prove),
        pytest.param("tiny-voice-design", "fp16", marks=pytest.mark.prove),
    ],
)
def test_every_cell_speaks(artifact, variant, precision):
    folder = artifact("smoke", variant, precision)
    report = json.loads((folder / "report.json").read_text())
    assert report["bundle_id"] == Bundle.load(artifact("bundle", variant, precision)).manifest["bundle_id"]
    cpu = report["devices"]["CPU"]
    assert cpu["status"] == "passed"
    assert cpu["full_name"] == devices()["CPU"]
    assert cpu["distinct_codes"] > 16, "the codes hardly vary"

    samples, rate = soundfile.read(folder / cpu["wav"])
    assert rate == RATE
    assert samples.shape == (cpu["frames"] * SAMPLES_PER_FRAME,)
    assert 0.001 < np.sqrt(np.mean(samples**2)) < 0.5
    with Image.open(folder / cpu["spectrogram"]) as picture:
        assert picture.format == "PNG"
        assert picture.width > samples.size / RATE * 100, "a column for 10 ms"
    assert sorted(path.name for path in folder.iterdir()) == ["cpu.png", "cpu.wav", "report.json"], "no model cache"


@pytest.mark.parametrize(("variant", "precision"), [("tiny-custom-voice", "fp16"), ("tiny-base", "int8")])
def test_each_device_is_described_and_measured(artifact, variant, precision):
    folder = artifact("smoke", variant, precision)
    cpu = read_metrics(folder)["devices"]["CPU"]
    assert cpu["driver"] is None, "a CPU has none"
    assert cpu["plugin"].startswith("2")
    measured, components = cpu["measured"], Bundle.load(artifact("bundle", variant, precision)).components
    for start in ("compile_cold_seconds", "compile_cached_seconds"):
        assert sorted(measured[start]) == sorted(components)
    assert {"talker", "code_predictor", "speech_decoder"} <= set(measured["seconds_by_component"])
    assert measured["peak_memory_bytes"] > 50e6
    assert measured["first_audio_seconds"] > 0
    assert measured["chunks"][-1]["audio_seconds"] == pytest.approx(cpu["frames"] * 0.08)
    plot = json.loads((folder.parent / "plots" / "smoke.json").read_text())
    assert plot == [{"device": "CPU", **chunk} for chunk in measured["chunks"]]
    assert "measured" not in (folder / "report.json").read_text(), "the same bytes on every run"
    assert len(cpu["codes_sha256"]) == 64
    assert 0 <= cpu["code_agreement"] <= 1
    assert 0 <= cpu["talker_agreement"] <= 1


def test_a_device_that_this_machine_lacks_is_not_run_with_a_reason(artifact):
    report = json.loads((artifact("smoke") / "report.json").read_text())
    present = {name.partition(".")[0] for name in devices()}
    for name in {"GPU", "NPU"} - present:
        assert report["devices"][name]["status"] == "not_run"
        assert "OpenVINO lists no" in report["devices"][name]["reason"]


def test_a_native_bundle_is_not_heard_on_an_npu(bundle, tmp_path):
    cfg, present = configured(), {"CPU": "a processor", "NPU": "a neural one"}
    found = smoke.try_device("NPU", present, cfg, bundle, None, tmp_path)
    assert found == {"status": "not_run", "reason": "an NPU takes the npu layout; name it in params.yaml"}


def test_only_layouts_that_the_runtime_reads_are_heard_and_npu_also_through_its_plugin():
    heard = {
        layout: smoke.candidates(configured(f"layout={layout}"), devices()) for layout in ("native", "npu", "genai")
    }
    assert heard["genai"] == []
    assert "NPUW on CPU" not in heard["native"]
    assert heard["npu"][:4] == ["CPU", "GPU", "NPU", "NPUW on CPU"]


@pytest.mark.prove
def test_the_npu_layout_is_heard_through_the_plugin_and_never_recorded_as_an_npu(bundle_of):
    folder = bundle_of("npu")
    done = run_stage("smoke", "variant=tiny-base", "layout=npu", f"artifacts={folder.parents[3]}")
    assert done.returncode == 0, done.stderr
    found = json.loads((folder.parent / "smoke" / "report.json").read_text())["devices"]
    assert {name: found[name]["status"] for name in ("CPU", "NPU", "NPUW on CPU")} == {
        "CPU": "passed",
        "NPU": "passed" if any(name.startswith("NPU") for name in devices()) else "not_run",
        "NPUW on CPU": "passed",
    }
    through = found["NPUW on CPU"]
    assert (through["full_name"], through["driver"], through["wav"]) == ("NPUW on CPU", None, "npuw-on-cpu.wav")
    assert through["plugin"].startswith("2")
    assert through["talker_agreement"] > 0.9


def test_a_required_device_that_is_missing_fails_the_stage(artifact):
    if any(name.startswith("NPU") for name in devices()):
        pytest.skip("this machine has an NPU")
    folder = artifact("smoke")
    before = (folder / "report.json").read_bytes()
    cell = ("variant=tiny-custom-voice", "precision=int8", f"artifacts={folder.parents[2]}")
    with pytest.raises(PipelineError, match=r"^NPU is required by conf/device and missing"):
        smoke.run(configuration((*cell, "device.required=[NPU]")))
    assert (folder / "report.json").read_bytes() == before


def test_an_incorrect_optional_device_is_recorded_and_a_required_one_fails_the_stage(artifact, tmp_path):
    for stage in ("ir", "int8/bundle"):
        (tmp_path / "tiny-custom-voice" / stage).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "tiny-custom-voice" / stage).symlink_to(artifact("smoke").parents[1] / stage)
    cell = ("variant=tiny-custom-voice", "precision=int8", f"artifacts={tmp_path}", "smoke.max_frames=8")
    spoiled = (*cell, "smoke.bounds.correctness.rms_dbfs=0", "device.optional=[CPU]")
    smoke.run(configuration((*spoiled, "device.required=[]")))
    found = json.loads((tmp_path / "tiny-custom-voice/int8/smoke/report.json").read_text())["devices"]["CPU"]
    assert (found["status"], found["full_name"]) == ("failed", devices()["CPU"])
    assert re.fullmatch(r"cpu\.wav: rms_dbfs is -\d+\.\d+, bound: at least 0", found["reason"])
    with pytest.raises(PipelineError, match=r"^cpu\.wav: "):
        smoke.run(configuration((*spoiled, "device.required=[CPU]")))


@pytest.fixture
def bundle(artifact):
    return Bundle.load(artifact("bundle"), verify=False)


def tone(frames: int, level: float = 0.1) -> np.ndarray:
    return (level * np.sin(np.arange(frames * SAMPLES_PER_FRAME) / 20)).astype(np.float32)


@pytest.mark.parametrize(
    ("samples", "rate", "frames", "message"),
    [
        (tone(8, 0.0), RATE, 8, "rms_dbfs is -180, bound: at least -60"),
        (tone(8, 0.0002), RATE, 8, "rms_dbfs is -7"),
        (np.clip(tone(8, 1.5), -1, 1), RATE, 8, "clipped_fraction is .*, bound: at most 0.001"),
        (tone(8), RATE, 9, "samples at"),
        (tone(8), 22050, 8, "22050 Hz"),
        (np.stack([tone(8), tone(8)], axis=1), RATE, 8, "samples at"),
        (tone(2), RATE, 2, "frames is 2, bound: at least 3"),
    ],
    ids=["zeros", "too quiet", "clipped", "another length", "another rate", "stereo", "too short"],
)
def test_a_wav_without_speech_fails(bundle, tmp_path: Path, samples, rate, frames, message):
    wav = tmp_path / "cpu.wav"
    soundfile.write(wav, samples, rate, "PCM_16")
    with pytest.raises(PipelineError, match=message):
        smoke_device.judge_wav(wav, frames, bundle, configuration())


def test_an_audible_wav_passes(bundle, tmp_path: Path):
    soundfile.write(tmp_path / "cpu.wav", tone(8), RATE, "PCM_16")
    heard = smoke_device.judge_wav(tmp_path / "cpu.wav", 8, bundle, configuration())
    assert heard["rms_dbfs"] == pytest.approx(20 * np.log10(0.1 / np.sqrt(2)), abs=0.1)
    assert heard["clipped_fraction"] == 0


def speech(seconds: float, stop_reason: str = "eos", codes: np.ndarray | None = None) -> Speech:
    frames = np.zeros((1, 16), np.int64) if codes is None else codes
    return Speech(frames, round(seconds * RATE), RATE, stop_reason, 0, Timings(0, 0, {}, {}), np.zeros(1, np.float32))


def missed(spoken: Speech, code_agreement: float, *overrides: str) -> list[str]:
    cfg = configuration(overrides)
    return [str(miss) for miss in smoke_device.judge_quality("CPU", spoken, code_agreement, cfg)]


@pytest.mark.parametrize(
    ("spoken", "message"),
    [
        (speech(2.5, "max_frames"), r"is not measured \(the speech did not end by itself within 96 frames\), bound: 0"),
        (speech(0.4), r"is 0\.\d+, bound: 0\.3 to 2\.0"),
        (speech(7.5), r"is 2\.\d+, bound: 0\.3 to 2\.0"),
    ],
    ids=["endless", "hasty", "slow"],
)
def test_the_length_of_real_speech_is_judged_by_its_text(spoken, message):
    (line,) = missed(spoken, 1.0, "variant=0.6b-base")
    assert re.match(rf"CPU: length {message}", line), line
    assert missed(spoken, 1.0, "variant=tiny-base") == [], "whose weights were not trained to end"


def test_speech_of_a_plausible_length_passes():
    assert missed(speech(2.5), 1.0, "variant=0.6b-base") == []


def test_code_agreement_is_checked_where_conf_sets_a_bound():
    bound = "++smoke.bounds.quality.code_agreement"
    assert missed(speech(2.5), 0.9, "precision=int8", f"{bound}.int8=0.9") == []
    assert missed(speech(2.5), 0.9, "precision=int4", f"{bound}={{int8: 0.95}}") == []
    assert missed(speech(2.5), 0.9, "precision=int8", f"{bound}.int8=0.95") == [
        "CPU: code_agreement is 0.9, bound: at least 0.95"
    ]


SAID = "Had he married a more amiable woman, he might have been made still more respectable than he was."
HEARD = Path(__file__).parents[1] / "data" / "speech-24khz.flac"
NOISE = np.random.default_rng(0).normal(0, 0.05, 3 * RATE).astype(np.float32)


def understood(bundle: Bundle, samples: np.ndarray, *overrides: str) -> dict:
    cfg = configuration(("variant=0.6b-base", f"smoke.text='{SAID}'", *overrides))
    return smoke.words(smoke.material_of(samples, RATE, bundle, cfg), bundle, cfg)


@pytest.mark.skipif(bool(SCORERS["word_error"].lacks()), reason="no recogniser")
def test_speech_of_real_weights_must_be_understood(bundle):
    found = understood(bundle, audio.load(HEARD, RATE))
    assert "more amiable woman" in found["transcript"]
    assert found["word_error"] <= 0.1
    said = r"""'Had he married .*', heard as ['"].*['"]: word_error is .*, bound: at most 0\.5"""
    with pytest.raises(GateError, match=said):
        understood(bundle, NOISE)
    assert understood(bundle, NOISE, "smoke.bounds.correctness.word_error=99")["word_error"] > 0.5


@pytest.mark.skipif(bool(SCORERS["leaked_words"].lacks() or SCORERS["speaker_similarity"].lacks()), reason="no judge")
def test_a_clone_is_compared_with_its_reference(artifact, monkeypatch):
    base = Bundle.load(artifact("bundle", "tiny-base"), verify=False)
    said = audio.load(HEARD, RATE)

    def judged(samples: np.ndarray, *overrides: str) -> tuple[dict, list[dict]]:
        cfg = configuration(("variant=0.6b-base", *overrides))
        return smoke.fidelity("CPU", smoke.material_of(samples, RATE, base, cfg), cfg)

    found, misses = judged(said, f"smoke.text='{SAID}'")
    assert found == {"speaker_similarity": pytest.approx(1, abs=0.01), "leaked_words": 0}
    assert misses == []
    found, misses = judged(said)
    assert found["leaked_words"] == 1, "it says the reference and not the text"
    assert [miss["measure"] for miss in misses] == ["leaked_words"]
    found, misses = judged(NOISE)
    assert found["speaker_similarity"] < 0.6
    assert [miss["measure"] for miss in misses] == ["speaker_similarity"]
    own = f"+variant.recordings=[{{path: {HEARD.with_name('speech-16khz.flac')}}}]"
    found, misses = judged(said, own)
    assert 0.7 < found["speaker_similarity"] < 0.99, "another recording of the same reader"
    assert "no clone has" in found["no_leaked_words"]
    assert misses == []
    assert judged(said, "variant=tiny-base") == ({}, [])
    monkeypatch.setattr(scorers, "find_spec", lambda name: None)
    assert "Resemblyzer" in judged(said)[0]["no_speaker_similarity"]


def test_where_nobody_can_understand_the_reason_is_said(bundle, monkeypatch):
    assert "random weights" in understood(bundle, NOISE, "variant=tiny-base")["no_transcript"]
    assert "does not speak klingon" in understood(bundle, NOISE, "smoke.language=klingon")["no_transcript"]
    if not SCORERS["word_error"].lacks():
        assert "does not know german" in understood(bundle, NOISE, "smoke.language=german")["no_transcript"]
    monkeypatch.setattr(scorers, "find_spec", lambda name: None)
    assert "jiwer" in understood(bundle, NOISE)["no_transcript"]


def test_different_codes_or_samples_for_one_seed_are_incorrect():
    cfg, codes = configuration(), np.arange(32).reshape(2, 16)
    said, other = speech(2.5, codes=codes), speech(2.5, codes=codes + 1)
    assert smoke_device.judge_runs(said, said, said, said.waveform + 1e-5, cfg) == pytest.approx(1e-5, rel=0.01)
    for again, streamed, waveform, message in (
        (other, said, said.waveform, "the same seed gave different codes"),
        (said, other, said.waveform, "the streamed run gave different codes"),
        (said, said, np.zeros(2, np.float32), "the streamed waveform has 2 samples, the whole one 1"),
        (said, said, said.waveform + 0.1, "stream_difference is 0.1, bound: at most 0.0001"),
        (said, said, said.waveform * np.nan, "stream_difference is nan"),
    ):
        with pytest.raises(GateError, match=message):
            smoke_device.judge_runs(said, again, streamed, waveform, cfg)


def test_agreement_is_full_with_itself_and_lower_with_others(artifact, monkeypatch):
    cfg = configuration(("smoke.max_frames=12",))
    bundles = (Bundle.load(artifact("bundle", "tiny-custom-voice", precision)) for precision in ("fp16", "int8"))
    (exact, request), (rough, _) = (smoke_device.start(bundle.model, "CPU", cfg, False) for bundle in bundles)
    made = record(exact, **request)
    np.testing.assert_array_equal(made.codes, exact.speak(**request).codes)
    assert agreement(exact, made, **request) == {"code_agreement": 1, "talker_agreement": 1}
    found = agreement(rough, made, **request)
    assert 0.05 < found["code_agreement"] < 1, "one wrong code must not affect the frames after it"
    free = (rough.speak(**request).codes == made.codes).mean()
    assert found["code_agreement"] > free
    monkeypatch.setitem(exact.model.generation, "max_new_tokens", 2)  # of each piece
    with pytest.raises(PipelineError, match="too long to be spoken in one piece"):
        record(exact, request["text"] * 20)
