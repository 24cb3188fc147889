"""The benchmark: real sides speak in turns on a tiny bundle, and their figures are reported."""

import json
import os
import shutil
import sys

import numpy as np
import psutil
import pytest

from benchmarks import cloning, compare, growth, many_voices, sweep, table
from benchmarks.other_engine import read_times
from benchmarks.side import SideError
from benchmarks.stepwise import Stepwise
from pipeline.stage import configuration
from qwen3_tts_ov import Bundle, Synthesizer, prompt
from qwen3_tts_ov.voice import VoicePrompt
from tests.doubles.bundle import sign, write_manifest

PYTHON = [sys.executable, "-m"]
# The C engine's log of an utterance, recorded at its commit 328ab9c.
PRINTED = """Speaker: 3061, Language: 2050
  Prefill: 21 tokens, hidden=1024
  Prefill complete (21 tokens in KV cache)
  Prefill: 349 ms
\r  Frame 24/25 (1.9s audio)...
  Generated 25 frames (2.0s audio)
  Talker step: 403 ms (16.1 ms/f), Code Predictor: 976 ms (39.1 ms/f)
  Embed: 1 ms, Codec head+sampling: 4 ms
  Speech decoder: 1224 ms total (1224 ms drain after gen)
Audio: 2.0s generated in 3.0s (RTF 1.51)
"""


def test_sides_speak_in_turns_and_one_that_cannot_start_is_reported(artifact):
    bundle = str(artifact("bundle"))
    wanted = {
        "ours-int8": [*PYTHON, "benchmarks.ours", bundle],
        "read-int8": [*PYTHON, "benchmarks.bandwidth", bundle],
        "engine-int8": [*PYTHON, "benchmarks.other_engine", "/nowhere", bundle, "int8"],
        "official-float32": ["/nowhere/python"],
    }
    with compare.started(wanted) as (sides, skipped):
        pids = [side.pid for side in sides.values()]
        figures = compare.alternate(sides, rounds=2, frames=4)
        about = {name: side.about for name, side in sides.items()}
    assert not any(map(psutil.pid_exists, pids))
    assert skipped.keys() == {"engine-int8", "official-float32"}
    assert "/nowhere/qwen_tts: there is no such program" in skipped["engine-int8"]
    ours, reading = figures["ours-int8"], figures["read-int8"]
    assert ours["frames"] == [4, 4]
    assert all(map(float.__lt__, ours["three_parts_ms_a_frame"], ours["whole_ms_a_frame"]))
    assert min(reading["gigabytes_a_second"]) > 0
    assert about["ours-int8"]["weight_bytes_a_frame"] == about["read-int8"]["weight_bytes_a_frame"]
    run = {"machine": compare.machine(), "rounds": 2, "frames": 4, "skipped": skipped}
    run["sides"] = {name: {"figures": found} for name, found in figures.items()}
    told = "\n".join([*table.rows(run), *table.ratios(run)])
    assert "not run" in told
    assert "ours-int8: first audio takes" in told
    assert "speech decoder" in table.picture(run)


def test_the_log_of_the_other_engine_is_parsed():
    assert read_times(PRINTED) == {
        "seconds": 2.957,
        "frames": 25,
        "prefill_ms": 349,
        "talker_ms_a_frame": 408 / 25,
        "code_predictor_ms_a_frame": 976 / 25,
        "speech_decoder_ms_a_frame": 1224 / 25,
    }
    with pytest.raises(SideError, match="reports no speech_decoder"):
        read_times(PRINTED.replace("Speech decoder", "Decoder"))


def test_ratios_compare_best_values_and_take_the_median_over_rounds():
    assert table.ratio([1.0, 4.0, 2.0], [4.0, 8.0, 2.0]) == "0.50 (median 0.50)"
    assert table.ratio([3.0, 1.0, 2.0], [2.0, 4.0, 2.0]) == "0.50 (median 1.00)"


def test_single_steps_give_the_codes_of_two_calls_a_frame(bundle_of, artifact, model_cache):
    """So the comparison is fair: both do the same work. In int8 a near-tie may later be resolved differently."""
    greedy = {"do_sample": False, "subtalker_dosample": False}
    native = Synthesizer(Bundle.load(artifact("bundle", "tiny-base")), cache_dir=model_cache)
    nobody = VoicePrompt(np.zeros(native.model.config["talker_config"]["hidden_size"], np.float32))
    ours = native.speak(
        "Nobody knew.", nobody, language="english", seed=1, text_first=True, max_frames=4, **greedy
    ).codes
    steps = Stepwise(bundle_of("openarc"), {"INFERENCE_PRECISION_HINT": "f32"})
    plan = prompt.clone_x_vector(steps.config, steps.tokenize, "Nobody knew.", "english", text_first=True)
    theirs = steps.generate(plan, steps.generation | greedy, seed=1, frames=4)
    assert theirs.shape == ours.shape
    assert theirs[0, :8].tolist() == ours[0, :8].tolist()


def test_a_sweep_measures_and_hears_each_policy_once(artifact, tmp_path, monkeypatch):
    artifacts = artifact("rollout").parents[1]
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(sweep, "HERE", tmp_path)
    int8 = {"int8": {"mode": "int8_sym"}}
    policies = {"codec_embedding": int8, "residual_code_embedding": int8, "talker": int8}  # the second is of base only
    monkeypatch.setattr(sweep, "POLICIES", policies)
    heard = {"word_error_english": 0.5, "speaker_similarity": 0.9, "ended": 1.0}
    for name in ("word_error", "speaker_similarity", "ended"):  # random weights speak no words
        figures = {key: value for key, value in heard.items() if key.startswith(name)}
        monkeypatch.setattr(sweep, name, lambda material, figures=figures: figures)
    cfg = configuration(["variant=tiny-custom-voice", "score.speaker=ryan", f"artifacts={artifacts}"])
    cfg.score.texts = {"english": ["Hi."]}  # Hydra would add it to the other languages
    rows = sweep.run(cfg)
    assert [(row["component"], row["policy"]) for row in rows] == [
        ("", "16 bits"), ("codec_embedding", "int8"), ("talker", "int8")
    ]  # fmt: skip
    assert 20 < rows[1]["measures"]["snr_db"] < 60
    assert 0 < rows[2]["measures"]["top1"] <= 1
    assert 0 < rows[2]["megabytes"] < 10
    assert sweep.table(rows).splitlines()[-1].endswith("| 50.0% | 0.900 | 100% |")
    assert sweep.picture(rows).startswith("<svg")
    monkeypatch.setattr(sweep, "measure", None)
    assert sweep.run(cfg) == rows, "what is there already is not measured again"


def test_growth_is_measured_in_separate_processes(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(growth, "CONTEXTS", (100, 200))
    bundle = shutil.copytree(artifact("bundle"), tmp_path / "bundle", copy_function=os.link)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["generation"]["max_new_tokens"] = 8192  # that of tests would end the pieces of a long text too soon
    (bundle / "manifest.json").unlink()
    write_manifest(bundle, sign(manifest))
    growth.main(str(bundle), seconds=12)
    found = json.loads((tmp_path / "growth-tiny-custom-voice-int8.json").read_text())
    assert len(found["streamed"]) == 2, "at every ten seconds of speech"
    assert found["memory"]["added_mb"]["anonymous"] > 0
    assert found["memory"]["ratio"] > 0.5
    assert all(start["ready"] < start["first_audio"] for start in found["start_seconds"])


def test_many_voices_are_measured_and_told_in_a_table_and_a_picture(artifact):
    run = many_voices.measure(str(artifact("bundle")), rounds=1, frames=3, slots=2)
    assert list(run["frames_a_second"]) == ["today", "1", "2"]
    assert all(value > 0 for found in run["frames_a_second"].values() for value in found)
    told = many_voices.table(run)
    assert "| 2 |" in told
    assert "A text of 20 pieces takes" in told
    assert many_voices.picture(run).startswith("<svg")


def test_what_recordings_do_to_clones_is_told_in_a_table(artifact, monkeypatch, capsys):
    cases = [cloning.Case("as it is"), cloning.Case("cut", cloning.first(1), cloning.nothing)]
    monkeypatch.setattr(cloning, "CASES", [*cases, cloning.Case("noisy", cloning.noisy(10), cloning.words(0.5))])
    texts = "score.texts={english: ['Hi.']}"
    cloning.main(artifact("bundle", "tiny-base"), "variant=tiny-base", texts, "score.sentences=1")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = [line.strip("| ").split(" | ") for line in told[2:]]
    assert [row[0] for row in rows] == ["as it is", "cut", "noisy"]
    assert [len([cell for cell in row[1:] if "." in cell or "%" in cell]) for row in rows] == [5, 2, 5]


def test_a_room_and_noise_keep_length_and_loudest_sample():
    tone = np.sin(np.arange(48_000) * 0.1).astype(np.float32)
    for change in (cloning.in_a_room(0.2), cloning.noisy(20)):
        changed = change(tone)
        assert changed.shape == tone.shape
        assert changed.dtype == np.float32
        assert np.abs(changed).max() == pytest.approx(1, abs=0.5)
    assert np.sqrt(np.mean((cloning.noisy(20)(tone) - tone) ** 2)) == pytest.approx(0.1 * 0.5**0.5, rel=0.05)
