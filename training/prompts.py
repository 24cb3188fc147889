"""Batches for the talker: the runtime's own prompts, and the frames that follow them.

The prompt of an utterance is planned once, by qwen3_tts_ov.prompt: mostly the whole text first, sometimes beside the
audio; the language half of the time named and half of the time left open. A described voice is asked for in words.
Every other one is called by its name or, where a base checkpoint is made, cloned from another utterance in that voice,
by its x-vector alone or in context.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import Qwen2Tokenizer

from qwen3_tts_ov import prompt
from qwen3_tts_ov.prompt import REFERENCE, Prompt
from training.checkpoint import folder
from training.dataset import Ints, Speech
from training.voices import DESCRIBED, describe, design

TEXT_BESIDE_AUDIO = 0.1  # of the utterances
IN_CONTEXT = 0.35  # of the clones
LONGEST_REFERENCE = 88  # frames
STEP = 32  # lengths are padded to multiples of it


@dataclass(frozen=True)
class Batch:
    """All but `cloned` are [batch, positions]. A position reads `text` and `control` or one of `frames`, of the past or
    of a reference, and predicts `next`.
    """

    text: Tensor  # text ids
    control: Tensor  # codec ids of the prompt, or -1
    frames: Tensor  # the frame of the corpus that is read, or -1
    next: Tensor  # the frame that is predicted, or -1
    ends: Tensor  # whether the end is predicted
    cloned: Tensor  # [batch]: an utterance in the voice to clone, or -1


class Prompts:
    """`asked` are the utterances, as numbers, whose voice the kinds of checkpoint have; `held` those to judge by, and
    `rest` all others of them. `end` is the id of the end of speech.
    """

    def __init__(self, cfg: DictConfig, speech: Speech) -> None:
        self.speech = speech
        self.draw = np.random.default_rng(cfg.seed)
        folders = {kind: folder(cfg, kind) for kind in cfg.kinds}
        self.configs = {kind: json.loads((path / "config.json").read_text()) for kind, path in folders.items()}
        config = self.configs[cfg.kinds[0]]
        tokenizer = Qwen2Tokenizer.from_pretrained(folders[cfg.kinds[0]], local_files_only=True).backend_tokenizer
        self.tokenize = lambda words: tokenizer.encode(words).ids
        self.end: int = config["talker_config"]["codec_eos_token_id"]
        self.pad: int = config["tts_pad_token_id"]
        self.names = {voice.id: name for name, voice in cfg.speech.voices.items()}
        self.same_voice = short_ones(speech)
        text, control, references = [], [], []
        for utterance in range(len(speech.texts)):
            planned, reference = self.plan(utterance)
            text.append([*planned.text_ids, *planned.trailing_text_ids] if planned else [])
            control.append(planned.codec_ids if planned else [])
            references.append(reference)
        self.references = np.array(references)
        self.text_lengths, self.text_starts, self.text = flat(text, cfg.device)
        self.prefills, self.control_starts, self.control = flat(control, cfg.device)
        self.lengths = self.prefills + speech.lengths  # positions
        self.asked = np.flatnonzero(self.prefills)
        order = self.draw.permutation(self.asked)
        self.held, self.rest = np.split(order, [min(cfg.talker.held, len(order) // 2)])

    def plan(self, utterance: int) -> tuple[Prompt | None, int]:
        """The prompt of an utterance, None if no kind has its voice, and the one that it is cloned from, or -1."""
        words, voice = self.speech.texts[utterance], int(self.speech.voices[utterance])
        options = {
            "language": "auto" if self.draw.random() < 0.5 else "english",
            "text_first": bool(self.draw.random() > TEXT_BESIDE_AUDIO),
        }
        if voice >= DESCRIBED and "voice_design" in self.configs:
            asked = describe(design(voice), self.draw)
            return prompt.voice_design(self.configs["voice_design"], self.tokenize, words, asked, **options), -1
        if "custom_voice" in self.configs and (name := self.names.get(voice)):
            return prompt.custom_voice(self.configs["custom_voice"], self.tokenize, words, name, **options), -1
        if "base" not in self.configs:
            return None, -1
        reference = self.other(utterance)
        if self.draw.random() > IN_CONTEXT or reference == utterance:
            return prompt.clone_x_vector(self.configs["base"], self.tokenize, words, **options), reference
        said, frames = self.speech.texts[reference], int(self.speech.lengths[reference])
        return prompt.clone_icl(self.configs["base"], self.tokenize, words, said, frames, **options), reference

    def other(self, utterance: int) -> int:
        """A short utterance in the same voice, another one if there is one."""
        choices = self.same_voice[int(self.speech.voices[utterance])]
        choices = choices[choices != utterance]
        return int(self.draw.choice(choices)) if len(choices) else utterance

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
        speech, cloned = self.speech, self.references[texts]
        frames, prefill, words, heard = (
            torch.as_tensor(lengths)[:, None]
            for lengths in (
                speech.lengths[utterances],
                self.prefills[texts],
                self.text_lengths[texts],
                speech.lengths[cloned],
            )
        )
        place = torch.arange(padded(int((frames + prefill).max())))[None]
        text = self.text[(self.text_starts[texts][:, None] + place).clamp(max=len(self.text) - 1)]
        control = self.control[(self.control_starts[texts][:, None] + place).clamp(max=len(self.control) - 1)]
        control = torch.where(place < prefill, control, -1)
        frame, starts = place - prefill, speech.starts[torch.as_tensor(utterances)][:, None]
        after = frame + 1
        # A reference's frames are the last of a prefill.
        reference = speech.starts[torch.as_tensor(cloned)][:, None] + frame + heard
        past = torch.where((frame >= 0) & (frame < frames), starts + frame, -1)
        return Batch(
            torch.where(place < words, text, self.pad),
            control,
            torch.where(control == REFERENCE, reference, past),
            torch.where((after >= 0) & (after < frames), starts + after, -1),
            after == frames,
            torch.as_tensor(cloned),
        )


def short_ones(speech: Speech) -> dict[int, Ints]:
    """The utterances of each voice that are short enough for a reference."""
    found = defaultdict(list)
    for utterance, (voice, length) in enumerate(zip(speech.voices, speech.lengths, strict=True)):
        if length <= LONGEST_REFERENCE:
            found[int(voice)].append(utterance)
    return defaultdict(lambda: np.zeros(0, np.int64), {voice: np.array(each) for voice, each in found.items()})


def flat(rows: list, device: str) -> tuple[Ints, Tensor, Tensor]:  # type: ignore[type-arg]
    """Lengths, starts and everything end to end."""
    lengths = np.array([len(row) for row in rows])
    starts = torch.as_tensor(np.cumsum(lengths) - lengths, device=device)
    return lengths, starts, torch.as_tensor(np.concatenate([np.asarray(row, np.int64) for row in rows]), device=device)


def padded(length: int) -> int:
    return -(-int(length) // STEP) * STEP
