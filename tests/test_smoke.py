"""The smoke stage: a bundle is heard on every device, and a gate that should fail fails."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline import smoke
from pipeline.stage import PipelineError, configuration
from qwen3_tts_ov import Bundle
from qwen3_tts_ov.engine import devices
from tests.conftest import run_stage

RATE, SAMPLES_PER_FRAME = 24000, 1920


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("variant", ["tiny-custom-voice", "tiny-base", "tiny-voice-design"])
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


def test_a_device_that_this_machine_lacks_is_not_run_and_says_why(artifact):
    report = json.loads((artifact("smoke") / "report.json").read_text())
    present = {name.partition(".")[0] for name in devices()}
    for name in {"GPU", "NPU"} - present:
        assert report["devices"][name]["status"] == "not_run"
        assert "OpenVINO lists no" in report["devices"][name]["reason"]


def test_a_required_device_that_is_missing_fails_the_stage(artifact):
    if any(name.startswith("NPU") for name in devices()):
        pytest.skip("this machine has an NPU")
    folder = artifact("smoke")
    before = (folder / "report.json").read_bytes()
    cell = ("variant=tiny-custom-voice", "precision=int8", f"artifacts={folder.parents[2]}")
    done = run_stage("smoke", *cell, "device.required=[NPU]")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: NPU is required by conf/device and missing")
    assert (folder / "report.json").read_bytes() == before


@pytest.fixture
def bundle(artifact):
    return Bundle.load(artifact("bundle"), verify=False)


def tone(frames: int, level: float = 0.1) -> np.ndarray:
    return (level * np.sin(np.arange(frames * SAMPLES_PER_FRAME) / 20)).astype(np.float32)


@pytest.mark.parametrize(
    ("samples", "rate", "frames", "message"),
    [
        (tone(8, 0.0), RATE, 8, "silence"),
        (tone(8, 0.0002), RATE, 8, "silence"),
        (np.clip(tone(8, 1.5), -1, 1), RATE, 8, "clip"),
        (tone(8), RATE, 9, "samples at"),
        (tone(8), 22050, 8, "22050 Hz"),
        (np.stack([tone(8), tone(8)], axis=1), RATE, 8, "samples at"),
        (tone(2), RATE, 2, "frames"),
    ],
    ids=["zeros", "too quiet", "clipped", "another length", "another rate", "stereo", "too short"],
)
def test_a_wav_that_is_no_speech_fails_its_gate(bundle, tmp_path: Path, samples, rate, frames, message):
    wav = tmp_path / "cpu.wav"
    soundfile.write(wav, samples, rate, "PCM_16")
    with pytest.raises(PipelineError, match=message):
        smoke.judge_wav(wav, frames, bundle, configuration())


def test_a_wav_that_can_be_heard_passes(bundle, tmp_path: Path):
    soundfile.write(tmp_path / "cpu.wav", tone(8), RATE, "PCM_16")
    heard = smoke.judge_wav(tmp_path / "cpu.wav", 8, bundle, configuration())
    assert heard["rms_dbfs"] == pytest.approx(20 * np.log10(0.1 / np.sqrt(2)), abs=0.1)
    assert heard["clipped_fraction"] == 0
