"""Every step of training at toy size, from sentences to a checkpoint that the networks load."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr
import torch
from omegaconf import OmegaConf

from model_src.checkpoint import Checkpoint
from pipeline.checkpoints import packaged
from pipeline.judging.prosody import RATE, median_pitch
from pipeline.stage import ROOT
from training import voices

pytest.importorskip("hibari", reason="training needs the extra train: pip install -c constraints.txt -e '.[train]'")
STEPS = ("corpus", "speech", "codec", "talker", "talker talker.acoustics=true", "respeak", "decoder", "checkpoint")
MANY = ("corpus", "start", "speech", "hearing", "decoder", "codes", "talker", "respeak", "decoder", "checkpoint")


@pytest.fixture
def wordnet(tmp_path):
    """A folder like WordNet's, of sentences that are all alike."""
    gloss = '00001740 03 n 01 entity 0 000 | a plain thing; "the old man told us a story number %d about the war"\n'
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("".join(gloss % number for number in range(20)))
    return tmp_path


def train(steps, config, wordnet, work):
    run(steps, config, work, f"corpus.wordnet={wordnet}")
    last = json.loads((work / "decoder.jsonl").read_text().splitlines()[-1])
    assert last["mel"] > 0


def run(steps, config, work, *settings):
    for step in steps:
        name, *more = step.split()
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                f"training.{name}",
                "--config-name",
                config,
                *more,
                f"work={work}",
                *settings,
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{step}: {done.stderr}"


@pytest.mark.prove
def test_every_step_runs_and_the_last_writes_a_checkpoint(wordnet, tmp_path):
    train(STEPS, "toy", wordnet, tmp_path / "work")
    Checkpoint(tmp_path / "work/checkpoint/custom_voice").verify()


@pytest.mark.prove
def test_the_shipped_voice_goes_on_to_one_that_clones_and_follows_descriptions(wordnet, tmp_path):
    train(MANY, "toy-many", wordnet, tmp_path / "work")
    for kind in ("base", "voice_design"):
        Checkpoint(tmp_path / "work/checkpoint" / kind).verify()
    assert "speaker_encoder" in Checkpoint(tmp_path / "work/checkpoint/base").names


def test_a_run_goes_on_from_a_voice_that_clones(tmp_path):
    run(["start start=voices/mini-base"], "toy-many", tmp_path)
    (tmp_path / "talker.safetensors").rename(tmp_path / "predictor.safetensors")
    run(["checkpoint"], "toy-many", tmp_path)
    (tmp_path / "shipped").mkdir()
    packaged.unpack(ROOT / "voices/mini-base", tmp_path / "shipped")
    shipped, made = Checkpoint(tmp_path / "shipped"), Checkpoint(tmp_path / "checkpoint/base")
    for name in ("talker", "code_predictor", "speaker_encoder", "speech_encoder", "speech_decoder"):
        found, expected = (each.load(name).state_dict() for each in (made, shipped))
        for key, value in expected.items():
            apart = (found[key].float() - value.float()).norm() / (value.float().norm() + 1e-6)
            assert apart < 0.06, f"{name}: {key}"


def test_voices_are_judged_by_what_the_references_step_makes():
    from hydra import compose, initialize_config_dir

    from training import references
    from training.step import CONF

    with initialize_config_dir(CONF, version_base=None):
        cfg = compose("many")
    recording = OmegaConf.load(references.RECORDINGS).recordings[1]
    kept, _ = soundfile.read(ROOT / recording.path, dtype="float32")
    spoken = references.waveform(recording.text, voices.unseen(cfg.seed, 10)[1], cfg, cfg.seed + 1)
    np.testing.assert_allclose(kept, spoken, atol=0.01)  # its noise is drawn, its mathematics the processor's
    described = OmegaConf.load(ROOT / "conf/variant/mini-voice-design.yaml").descriptions
    assert len(described) == references.DESCRIPTIONS
    made = next(references.descriptions(cfg))
    assert made["instruct"] == described[0].instruct
    assert made["pitch"] == pytest.approx(list(described[0].pitch), rel=0.02)
    assert made["pace"] == pytest.approx(list(described[0].pace), rel=0.02)


def test_a_talker_that_goes_on_says_the_codes_of_the_codec_at_hand(tmp_path):
    from hydra import compose, initialize_config_dir

    from training.checkpoint import configuration
    from training.step import CONF
    from training.talker import Language

    with initialize_config_dir(CONF, version_base=None):
        cfg = compose("toy", [f"work={tmp_path}"])
    torch.manual_seed(0)
    before, after = (Language(cfg, configuration(cfg), None) for _ in range(2))
    before.codebooks.normal_()
    after.codebooks = 2 * before.codebooks
    after.take(before.state_dict())
    assert torch.equal(after.codebooks, 2 * before.codebooks)
    codes = torch.randint(cfg.codec.rows, (5, cfg.talker.predicted))
    torch.testing.assert_close(after.said(codes), before.said(codes))
    torch.testing.assert_close(after.group_heads(), before.group_heads())


def test_latents_hold_pitch_where_they_held_least():
    from training.losses import Pitch

    torch.manual_seed(0)
    latents = torch.randn(1000, 8) * torch.tensor([3.0, 0.1, 2.0, 0.1, 1.0, 0.1, 2.0, 0.1])
    pitch = Pitch(8)
    pitch.choose(latents)
    torch.testing.assert_close(pitch.without(latents)[:, ::2], latents[:, ::2], rtol=0, atol=0.1)
    hertz = torch.tensor([[[320.0, 80.0]]])
    right = torch.tensor([[[8.0, -8.0, 2.0, 2.0]]]) @ pitch.directions
    for latent, octaves in ((right, 0.0), (right / 2, 0.5)):
        loss, apart = pitch(latent, hertz)
        assert apart.item() == pytest.approx(octaves * 2 / 3, abs=1e-5)  # of two voiced halves and the one in reserve
        assert (loss < 1e-6).item() == (octaves == 0)


def test_the_pitch_that_is_told_is_heard_in_the_speech():
    from training import speech

    cfg = OmegaConf.create({"speech": {"gain": 1.3, "longest": 200}})
    for factor in (0.6, 1.2):
        said = speech.speak("The old man told us a story about the war.", voices.Voice(pitch=factor), cfg, 0)
        assert said.pitch.shape == (len(said.waveform) // speech.FRAME, 2)
        frames = soxr.resample(said.waveform.astype(np.float32) / 32767, speech.RATE, RATE).reshape(len(said.pitch), -1)
        voiced = [(told, median_pitch(frame)) for told, frame in zip(said.pitch, frames, strict=True) if all(told)]
        apart = [heard / told.mean() for told, heard in voiced if heard]
        assert len(apart) > 5
        assert np.median(apart) == pytest.approx(1, abs=0.02)


def test_a_voice_that_is_described_is_known_by_its_id():
    asked = voices.Design(kind="man", pitch="very low", pace="slow", melody="lively")
    assert voices.design(asked.id) == asked
    assert asked.voice.pitch < voices.Design(kind="man").voice.pitch < 1


def test_words_that_are_kept_out_are_in_no_description_to_train_on():
    rng = np.random.default_rng(0)
    told = " ".join(voices.describe(voices.draw_design(rng), rng) for _ in range(500)).lower()
    for table in voices.TABLES:
        for _, words in table.values():
            if len(words) > 1:
                assert f" {words[-1]} " not in told.replace(",", " ").replace(".", " ")


def test_unseen_voices_are_far_from_one_another_and_from_no_seed_of_training():
    unseen, heard = voices.unseen(0, 10), voices.drawn(0, 400)
    assert not set(unseen) & set(heard)
    traits = np.array([voice.traits() for voice in unseen])
    apart = np.linalg.norm(traits[:, None] - traits[None], axis=-1) + 9 * np.eye(10)
    assert apart.min() > 1.0
