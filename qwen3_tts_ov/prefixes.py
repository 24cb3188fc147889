"""What several prompts begin with, computed once: the keys and values of leading positions of the talker's cache.

Those of a position depend on the prompt up to it and on nothing else, and the CPU plugin computes them alike in every
prefill of two positions or more, whatever ran before or runs beside (docs/many-voices.md). So prompts are compared row
by row, and no one has to say where a voice ends and its text begins.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = tuple[bytes, ...]  # a digest of the embedding at each position

_LEAST = 8  # positions: copying fewer saves next to nothing
_MOST = 512  # positions kept for all prefixes together, a quarter of a slot's: 120 MB for the 0.6B and the 1.7B
_RECENT = 32  # prompts that a new one is compared with
_OWN = 2  # positions that a prompt always computes: one alone would run through another kernel, which rounds otherwise


def digests(embeddings: NDArray[np.float32]) -> Rows:
    """What a prompt's positions [positions, width] are compared by."""
    return tuple(hashlib.blake2b(row, digest_size=16).digest() for row in np.ascontiguousarray(embeddings))


class Prefixes:
    """The prefixes that at least two prompts had; those used last are kept. For one thread at a time.

    `pools` are the caches that all sequences share, each [blocks, heads, positions of a block, head size].
    """

    def __init__(self, pools: Sequence[NDArray[Any]]) -> None:
        self.shared = 0  # positions that were copied instead of computed, so far
        self._pools = pools
        # A prefill reads its own keys as they were computed; from a cache of less precision it would read others.
        self._exact = all(pool.dtype == np.float32 for pool in pools)
        self._recent: deque[Rows] = deque(maxlen=_RECENT)
        self._kept: dict[Rows, list[NDArray[Any]]] = {}  # [heads, positions, head size] for each pool; used last, last

    def fill(self, blocks: Sequence[int], prompt: Rows) -> int:
        """Copies the longest known prefix of a prompt into its blocks; returns how many positions that are."""
        found = max(self._kept, key=lambda each: _common(each, prompt), default=())
        count = min(_common(found, prompt), len(prompt) - _OWN)
        if count < _LEAST:
            return 0
        self._kept[found] = kept = self._kept.pop(found)
        size = self._pools[0].shape[2]
        for pool, values in zip(self._pools, kept, strict=True):
            for block, start in zip(blocks, range(0, count, size), strict=False):
                part = values[:, start : min(start + size, count)]
                pool[block, :, : part.shape[1]] = part
        self.shared += count
        return count

    def learn(self, blocks: Sequence[int], prompt: Rows) -> None:
        """Keeps what a prompt, now in its blocks, has in common with a recent one, if that is more than is known."""
        known = max((_common(each, prompt) for each in self._kept), default=0)
        count = min(max((_common(each, prompt) for each in self._recent), default=0), _MOST)
        if self._exact and count >= known + _LEAST:
            for each in [each for each in self._kept if each == prompt[: len(each)]]:
                del self._kept[each]
            taken = blocks[: -(-count // self._pools[0].shape[2])]
            self._kept[prompt[:count]] = [np.concatenate(pool[taken], axis=1)[:, :count].copy() for pool in self._pools]
            while sum(map(len, self._kept)) > _MOST:
                del self._kept[next(iter(self._kept))]
        self._recent.append(prompt)


def _common(one: Rows, other: Rows) -> int:
    """How many leading positions are equal."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
