"""The teacher's speech on the device, and the first codes that its phones make.

A first code stands for the pair of phones in a frame's halves: the 2,047 or so commonest pairs and, for each phone, the
pair of it twice, which any rarer pair falls back on. So the code that the talker predicts from text alone says what is
spoken, and nothing of it has to be learnt; without that, a small talker of few hours' speech hardly used its text.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich import print
from torch import Tensor

from training.speech import FRAME, PHONES, SILENCE
from training.step import TrainingError, work

CODES = 2048
Ints = NDArray[np.int64]


class PhonePairs:
    """`table` [2048, 2] holds the phones of each first code."""

    def __init__(self, table: Ints) -> None:
        self.table = table
        self._code = np.full((len(PHONES), len(PHONES)), -1)
        self._code[table[::-1, 0], table[::-1, 1]] = np.arange(len(table))[::-1]
        twice = self._code.diagonal()
        twice = np.where(twice < 0, twice[PHONES[SILENCE]], twice)
        self._code = np.where(self._code < 0, twice[None], self._code)

    @classmethod
    def commonest(cls, phones: Ints) -> "PhonePairs":
        """Those of phones [frames, 2]."""
        counts = np.bincount(phones[:, 0] * len(PHONES) + phones[:, 1], minlength=len(PHONES) ** 2)
        order = np.argsort(-counts, kind="stable")
        twice = np.unique(phones) * (len(PHONES) + 1)
        chosen = np.array(list(dict.fromkeys([*twice, *order[counts[order] > 0]]))[:CODES])
        chosen = np.pad(chosen, (0, CODES - len(chosen)))  # fewer at toy size: the rest say silence
        return cls(np.stack(np.divmod(chosen, len(PHONES)), -1))

    def codes(self, phones: Ints) -> Ints:
        """[frames, 2] to [frames]."""
        return self._code[phones[:, 0], phones[:, 1]]


@dataclass(frozen=True)
class Speech:
    """Utterances end to end."""

    waveform: Tensor  # int16 [frames * 1920]
    first: Tensor  # first codes [frames]
    starts: Tensor  # the first frame of each utterance
    lengths: Ints  # frames of each utterance
    voices: Ints  # id of each utterance
    pitch: Tensor  # Hz [frames, 2], of each half; 0 where there is none
    texts: list[str]
    pairs: PhonePairs

    @property
    def frames(self) -> int:
        return len(self.first)

    def crops(self, count: int, frames: int) -> Tensor:
        """The frames [count, frames] of random crops, half of which begin where an utterance does."""
        begins = self.starts[torch.randint(len(self.starts), (count,))]
        anywhere = torch.randint(self.frames - frames, (count,))
        chosen = torch.where(torch.rand(count) < 0.5, begins, anywhere).clamp(max=self.frames - frames)
        return chosen[:, None] + torch.arange(frames)

    def audio(self, frames: Tensor) -> Tensor:
        """Samples [count, frames * 1920] in [-1, 1] of consecutive frames [count, frames]."""
        samples = frames[:, :1] * FRAME + torch.arange(frames.shape[1] * FRAME)
        return self.waveform[samples].float() / 32767


def load(cfg: DictConfig, texts: list[str], waveform: bool = True) -> Speech:
    """The corpus as spoken; waits for the speech step while that is at work. Raises TrainingError if it never ran."""
    names = ["frames", "phones", "pitch", "voice", "text", *(["waveform"] if waveform else [])]
    with ThreadPoolExecutor(16) as threads:
        shards = list(threads.map(lambda path: read(path, names), shard_paths(cfg)))
    whole = {name: np.concatenate([shard[name] for shard in shards]) for name in names}
    path = work(cfg) / "pairs.npy"
    if not path.exists():
        partial = path.with_name(f"{os.getpid()}.npy")  # steps that run side by side may both get here
        np.save(partial, PhonePairs.commonest(whole["phones"].astype(np.int64)).table)
        partial.rename(path)
    pairs = PhonePairs(np.load(path))
    lengths = whole["frames"].astype(np.int64)
    print(f"{lengths.sum() * 0.08 / 3600:.1f} h of speech, {len(lengths)} utterances")
    return Speech(
        torch.as_tensor(whole["waveform"] if waveform else np.zeros(0, np.int16), device=cfg.device),
        torch.as_tensor(pairs.codes(whole["phones"].astype(np.int64)), device=cfg.device),
        torch.as_tensor(np.cumsum(lengths) - lengths, device=cfg.device),
        lengths,
        whole["voice"].astype(np.int64),
        torch.as_tensor(whole["pitch"].astype(np.float32), device=cfg.device),
        [texts[number] for number in whole["text"]],
        pairs,
    )


def shard_paths(cfg: DictConfig) -> list[Path]:
    folder = work(cfg) / "speech"
    index = folder / "index.json"
    if not folder.exists():
        raise TrainingError(f"{folder} is missing; run python -m training.speech first")
    while not index.exists():
        time.sleep(1)
    return [folder / name for name in json.loads(index.read_text())]


def read(path: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    with np.load(path) as shard:
        return {name: shard[name] for name in names}
