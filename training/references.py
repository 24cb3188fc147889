"""What mini-base and mini-voice-design are judged by, both by voices and words that training never has.

Writes the recordings to clone, one sentence of the teacher each, and prints descriptions, with the teacher's own pitch
and pace in such a voice, a fifth either way.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import soxr
import yaml
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from pipeline.judging import prosody
from pipeline.stage import CONF, ROOT
from qwen3_tts_ov import audio
from training.speech import RATE, speak
from training.step import TrainingError, step
from training.voices import KINDS, Design, Voice, describe, draw_design, unseen

RECORDINGS = CONF / "variant" / "mini-base.yaml"  # says which sentence goes where
TEXTS = CONF / "score" / "default.yaml"
DESCRIPTIONS, SEED = 20, 2026
SENTENCES = 4  # from which pitch and pace are taken
EITHER_WAY = 1.2


@step
def main(cfg: DictConfig) -> None:
    recordings = OmegaConf.load(RECORDINGS).recordings
    for number, (voice, entry) in enumerate(zip(unseen(cfg.seed, len(recordings)), recordings, strict=True)):
        path = ROOT / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, waveform(entry.text, voice, cfg, cfg.seed + number), RATE)
    for entry in descriptions(cfg):
        print("- " + yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=1000).strip())


def descriptions(cfg: DictConfig) -> Iterator[dict[str, Any]]:
    """As conf/variant has them: `instruct`, and the least and most of `pitch` and `pace` that follow it."""
    texts, rng = OmegaConf.load(TEXTS).texts.english[:SENTENCES], np.random.default_rng(SEED)
    for wanted in designs(rng):
        waves = [waveform(text, wanted.voice, cfg, number) for number, text in enumerate(texts)]
        spoken = [soxr.resample(wave, RATE, prosody.RATE) for wave in waves]
        pitches = [pitch for each in spoken if (pitch := prosody.median_pitch(each))]
        paces = [pace for text, each in zip(texts, spoken, strict=True) if (pace := prosody.pace(text, each))]
        yield {"instruct": describe(wanted, rng, kept_out=True), "pitch": around(pitches), "pace": around(paces)}


def designs(rng: np.random.Generator) -> list[Design]:
    """Different ones of every kind, each with a pitch and a pace of its own."""
    found: list[Design] = []
    while len(found) < DESCRIPTIONS:
        drawn = draw_design(rng)
        wanted = drawn.kind == list(KINDS)[len(found) % len(KINDS)]
        if wanted and drawn not in found and (drawn.pitch or drawn.kind) and drawn.pace:
            found.append(drawn)
    return found


def around(values: list[float]) -> list[float]:
    """The least and the most that follow a description whose speaker has these."""
    middle = float(np.median(values))
    return [round(middle / EITHER_WAY, 1), round(middle * EITHER_WAY, 1)]


def waveform(text: str, voice: Voice, cfg: DictConfig, seed: int) -> NDArray[np.float32]:
    """The teacher's sentence in a voice, [samples] at 24 kHz."""
    utterance = speak(text, voice, cfg, seed)
    if utterance is None:
        raise TrainingError(f"the teacher makes no sound of {text!r}, or one that is too long; choose another sentence")
    return utterance.waveform.astype(np.float32) / 32767


if __name__ == "__main__":
    main()
