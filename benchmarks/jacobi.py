"""Whether a frame's codes could be found in parallel: how many passes Jacobi iteration takes for the fifteen of them.

    python -m benchmarks.jacobi artifacts/mini-custom-voice

With the noise given, each code is a function of those before it. So all can be guessed, computed in one pass of sixteen
rows, and replaced until nothing changes; the result is that of one after another. It pays if the passes, times what
such a pass costs more than one row, are fewer than fifteen. Prints one JSON object: the mean passes over the frames
that `rollout` recorded for the first two held-out texts, greedy and sampled, by what is guessed first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from model_src.checkpoint import Checkpoint
from model_src.code_predictor import CodePredictor
from model_src.sampling import draw

Frame = tuple[Tensor, Tensor]  # the talker's hidden state [1, 1, width], and the codes [16]


def frames(rollout: Path) -> list[list[Frame]]:
    """The frames of each held-out text."""
    arrays = load_file(rollout / "held_out.safetensors")
    texts = sorted({name.partition(".")[0] for name in arrays})
    return [list(zip(arrays[f"{text}.hidden"][:, None, None], arrays[f"{text}.codes"], strict=True)) for text in texts]


class Jacobi:
    """Finds the codes of frames in parallel; `temperature` 0 takes the likeliest."""

    def __init__(self, network: CodePredictor, first: torch.nn.Module, temperature: float) -> None:
        self.network, self.first, self.temperature = network, first, temperature
        self.groups, self.codes = len(network.heads), network.config.vocab_size
        self.random = torch.Generator().manual_seed(0)

    def passes(self, hidden: Tensor, first_code: Tensor, guess: Tensor) -> tuple[int, Tensor]:
        """The passes until no code [15] changes, from a guess [15], and the codes."""
        noise = torch.ones(self.groups, self.codes)
        if self.temperature:
            noise.exponential_(generator=self.random)
        for count in range(1, self.groups + 1):
            found = self._all(hidden, first_code, guess, noise)
            wrong = (found != guess).nonzero()
            if not len(wrong) or wrong[0] == self.groups - 1:  # nothing follows the last one
                return count, found
            guess = found
        return self.groups, guess

    def _all(self, hidden: Tensor, first_code: Tensor, guess: Tensor, noise: Tensor) -> Tensor:
        """Every code [15] as it follows from those guessed before it."""
        before = [table(code[None, None]) for table, code in zip(self.network.embeddings, guess[:-1], strict=False)]
        states, _ = self.network.decode(torch.cat([hidden, self.first(first_code[None, None]), *before], dim=1), 0)
        rows = zip(self.network.heads, states[0, 1:], strict=True)
        logits = torch.stack([head(state) for head, state in rows])
        one = torch.ones(1)
        return draw(logits, noise, one * (self.temperature or 1), torch.tensor([50]), one)[:, 0]


def main(artifacts: str) -> None:
    checkpoint = Checkpoint(Path(artifacts, "checkpoint"))
    network, first = checkpoint.load("code_predictor"), checkpoint.load("codec_embedding")
    texts = frames(Path(artifacts, "rollout"))[:2]
    result: dict[str, float] = {}
    for temperature in (0.0, 0.9):
        for guessed in ("zeros", "the frame before"):
            jacobi, counts = Jacobi(network, first, temperature), []
            for text in texts:
                codes = torch.zeros(jacobi.groups, dtype=torch.long)
                for hidden, spoken in text:
                    guess = codes if guessed != "zeros" else torch.zeros_like(codes)
                    count, codes = jacobi.passes(hidden, spoken[0], guess)
                    counts.append(count)
            result[f"temperature {temperature}, {guessed}"] = round(sum(counts) / len(counts), 2)
    print(json.dumps({"frames": sum(map(len, texts)), "mean passes": result}, indent=1))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(*sys.argv[1:])
