"""Batches for the talker: the runtime's own prompts, and the frames that follow them.

The prompt of an utterance is planned once, by qwen3_tts_ov.prompt: mostly the whole text first, sometimes beside the
audio; the language half of the time named and half of the time left open.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import Qwen2Tokenizer

from qwen3_tts_ov import prompt
from training.dataset import Ints, Speech

TEXT_BESIDE_AUDIO = 0.1  # of the utterances
STEP = 32  # lengths are padded to multiples of it


@dataclass(frozen=True)
class Batch:
    """All are [batch, positions]. A position reads `text` and `control` or one of `frames` and predicts `next`."""

    text: Tensor  # text ids
    control: Tensor  # codec ids of the prompt, or -1
    frames: Tensor  # the frame of the corpus that is read, or -1
    next: Tensor  # the frame that is predicted, or -1
    ends: Tensor  # whether the end is predicted


class Prompts:
    """`held` are the utterances to judge by, as numbers; `end` is the id of the end of speech."""

    def __init__(self, cfg: DictConfig, speech: Speech) -> None:
        tokenizer = Qwen2Tokenizer.from_pretrained(cfg.checkpoint, local_files_only=True).backend_tokenizer
        config = json.loads((Path(cfg.checkpoint) / "config.json").read_text())
        self.end: int = config["talker_config"]["codec_eos_token_id"]
        self.pad: int = config["tts_pad_token_id"]
        self.speech = speech
        self.draw = np.random.default_rng(cfg.seed)
        names = {number: name for name, number in config["talker_config"]["spk_id"].items()}
        text, control = [], []
        for words, voice in zip(speech.texts, speech.voices, strict=True):
            language = "auto" if self.draw.random() < 0.5 else "english"
            planned = prompt.custom_voice(
                config,
                lambda words: tokenizer.encode(words).ids,
                words,
                names[int(voice)],
                language,
                text_first=self.draw.random() > TEXT_BESIDE_AUDIO,
            )
            text.append([*planned.text_ids, *planned.trailing_text_ids])
            control.append(planned.codec_ids)
        self.text_lengths, self.text_starts, self.text = flat(text, cfg.device)
        self.prefills, self.control_starts, self.control = flat(control, cfg.device)
        self.lengths = self.prefills + speech.lengths  # positions
        order = self.draw.permutation(len(self.lengths))
        self.held, self.rest = np.split(order, [min(cfg.talker.held, len(order) // 2)])

    def batches(self, positions: int) -> Iterator[Batch]:
        """Without end: all but the held-out utterances, in batches of one length, each time in another order."""
        while True:
            jitter = self.draw.random(len(self.rest)) * STEP
            order = self.rest[np.argsort(self.lengths[self.rest] + jitter)]
            pieces = self.pieces(order, positions)
            for index in self.draw.permutation(len(pieces)):
                yield self.build(order[pieces[index]], order[pieces[index]])

    def pieces(self, utterances: Ints, positions: int) -> list[Ints]:
        """Places in `utterances`, in pieces of at most so many positions when padded."""
        pieces: list[list[int]] = [[]]
        longest = 0
        for place, length in enumerate(self.lengths[utterances]):
            longest = max(longest, padded(length))
            if pieces[-1] and longest * (len(pieces[-1]) + 1) > positions:
                pieces.append([])
                longest = padded(length)
            pieces[-1].append(place)
        return [np.array(piece) for piece in pieces]

    def build(self, utterances: Ints, texts: Ints) -> Batch:
        """The frames of `utterances` after the prompts of `texts`, which are the same ones but to judge."""
        frames, prefill, words = (
            torch.as_tensor(lengths)[:, None]
            for lengths in (self.speech.lengths[utterances], self.prefills[texts], self.text_lengths[texts])
        )
        place = torch.arange(padded(int((frames + prefill).max())))[None]
        text = self.text[(self.text_starts[texts][:, None] + place).clamp(max=len(self.text) - 1)]
        control = self.control[(self.control_starts[texts][:, None] + place).clamp(max=len(self.control) - 1)]
        frame, starts = place - prefill, self.speech.starts[torch.as_tensor(utterances)][:, None]
        after = frame + 1
        return Batch(
            torch.where(place < words, text, self.pad),
            torch.where(place < prefill, control, -1),
            torch.where((frame >= 0) & (frame < frames), starts + frame, -1),
            torch.where((after >= 0) & (after < frames), starts + after, -1),
            after == frames,
        )


def flat(rows: list, device: str) -> tuple[Ints, Tensor, Tensor]:  # type: ignore[type-arg]
    """Lengths, starts and everything end to end."""
    lengths = np.array([len(row) for row in rows])
    starts = torch.as_tensor(np.cumsum(lengths) - lengths, device=device)
    return lengths, starts, torch.as_tensor(np.concatenate([np.asarray(row) for row in rows]), device=device)


def padded(length: int) -> int:
    return -(-int(length) // STEP) * STEP
