"""Sampling of the talker's next first code from its logits, in the official order.

Order, as `transformers.generate` applies it in the official package: repetition penalty over the codes so far, the
end token held back for the first `min_new_tokens`, suppressed ids, then (when sampling) temperature, top-k, top-p.
The draw is an exponential race: `argmax(log p - log e)` with e ~ Exp(1) is distributed as p (the Gumbel-max
construction), so the random numbers are data that a seed fixes. Ones instead of draws give the greedy choice; the
code predictor's graph is fed the same kind of noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Ids at the end of the talker's vocabulary that are control tokens, never codes (official `suppress_tokens`).
_CONTROL_IDS = 1024
_MIN_NEW_TOKENS = 2
# Of a temperature and a penalty: float32 logits divided by them stay finite.
_LEAST, _MOST = 0.001, 1000


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. `top_k` 0 and `top_p` 1.0 switch that rule off. Raises ValueError when out of range."""

    do_sample: bool = True
    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "repetition_penalty"):
            if not _LEAST <= _number(name, getattr(self, name)) <= _MOST:
                fault = f"{name} must be above 0 and finite, {_LEAST} to {_MOST}"
                raise ValueError(f"{fault}, not {getattr(self, name)}")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, (int, np.integer)) or self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, a whole number, not {self.top_k!r}")
        if not 0 < _number("top_p", self.top_p) <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")

    @classmethod
    def talker(cls, generation: Mapping[str, Any]) -> Sampling:
        """The talker's defaults from generation_config.json, missing keys filled as the official package does."""
        official = {"repetition_penalty": 1.05}
        keys = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
        return cls(**official | {key: generation[key] for key in keys if key in generation})

    @classmethod
    def code_predictor(cls, generation: Mapping[str, Any]) -> Sampling:
        """The code predictor's defaults: the `subtalker_*` keys of generation_config.json."""
        keys = {"do_sample": "dosample", "temperature": "temperature", "top_k": "top_k", "top_p": "top_p"}
        named = {ours: f"subtalker_{theirs}" for ours, theirs in keys.items()}
        return cls(**{ours: generation[key] for ours, key in named.items() if key in generation})


def suppressed(config: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Mask of the talker ids that are never generated, bool [vocabulary]: the control ids except the end token."""
    talker = config["talker_config"]
    mask = np.zeros(talker["vocab_size"], dtype=bool)
    mask[-_CONTROL_IDS:] = True
    mask[talker["codec_eos_token_id"]] = False
    return mask


def warp(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float32]:
    """Temperature, top-k and top-p over logits [vocabulary]; ids that cannot be drawn become -inf."""
    scores = logits / np.float32(sampling.temperature)
    if 0 < sampling.top_k < scores.size:
        scores[scores < np.partition(scores, -sampling.top_k)[-sampling.top_k]] = -np.inf
    if sampling.top_p < 1:
        ascending = np.argsort(scores, kind="stable")
        probabilities = np.exp(scores[ascending] - scores.max())
        below = np.cumsum(probabilities / probabilities.sum()) <= 1 - sampling.top_p
        below[-1] = False  # the likeliest id always stays
        scores[ascending[below]] = -np.inf
    return scores


def exponential(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Exp(1) draws, never 0: in float32 numpy draws a 0 once in ten million, and log 0 would let any id win."""
    return np.maximum(rng.standard_exponential(shape, dtype=np.float32), np.finfo(np.float32).tiny)


class TalkerSampler:
    """Chooses first codes one after another; holds the history that the repetition penalty needs.

    One sampler serves one utterance. `rng` is unused when `sampling.do_sample` is False.
    """

    def __init__(self, config: Mapping[str, Any], sampling: Sampling, rng: np.random.Generator) -> None:
        self.sampling = sampling
        self.rng = rng
        self.end_id: int = config["talker_config"]["codec_eos_token_id"]
        self._suppressed = suppressed(config)
        self._seen = np.zeros_like(self._suppressed)
        self._count = 0

    def process(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores that the next id is drawn from, float32 [vocabulary], from the talker's logits [vocabulary]."""
        scores = logits.astype(np.float32, copy=True)
        seen = scores[self._seen]
        penalty = np.float32(self.sampling.repetition_penalty)
        scores[self._seen] = np.where(seen < 0, seen * penalty, seen / penalty)
        if self._count < _MIN_NEW_TOKENS:
            scores[self.end_id] = -np.inf
        scores[self._suppressed] = -np.inf
        return warp(scores, self.sampling) if self.sampling.do_sample else scores

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """The next first code (or the end token's id) from logits [vocabulary]; remembers it."""
        scores = self.process(logits)
        if self.sampling.do_sample:
            scores = scores - np.log(exponential(self.rng, scores.shape))
        code = int(np.argmax(scores))
        self._seen[code] = True
        self._count += 1
        return code


def _number(name: str, value: Any) -> Any:
    """Raises ValueError for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise ValueError(f"{name} must be a number, not {value!r}")
    return value
