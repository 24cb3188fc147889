"""Every step of training at toy size, from sentences to a checkpoint that the networks load."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soxr
from omegaconf import OmegaConf

from model_src.checkpoint import Checkpoint
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
                f"corpus.wordnet={wordnet}",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{step}: {done.stderr}"
    last = json.loads((work / "decoder.jsonl").read_text().splitlines()[-1])
    assert last["mel"] > 0


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
