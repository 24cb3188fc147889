"""Drawing codes inside the network, in operations that a graph can hold.

The rules are the official ones in the official order (transformers' temperature, top-k and top-p warpers). The draw
is an exponential race, as in `qwen3_tts_ov.sampling`: the caller supplies the noise, so that a seed fixes the result.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.jit.script_if_tracing
def _likeliest(scores: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The `count` (a scalar) highest scores of each row and their indices, in descending order.

    Scripted, so that a traced graph takes the count at run time. Sorting all 2048 codes instead costs OpenVINO's CPU
    plugin 9.5 ms, the 50 likeliest 0.2 ms.
    """
    return torch.topk(scores, int(count), dim=-1)


def draw(
    logits: Tensor, noise: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, candidates: int | None = None
) -> Tensor:
    """Draw one code for each row.

    `logits` and `noise` are [batch, codes], noise being Exp(1) draws, or ones for the likeliest code. `temperature`,
    `top_k` and `top_p` have one element; `top_k` = number of codes and `top_p` = 1 switch those rules off. Of the codes
    that tie at the top-k boundary only some are kept (the official warper keeps all of them). Returns int64 [batch, 1].

    With `candidates`, only that many of the likeliest codes can be drawn, and every shape is static.
    """
    if candidates is None:
        scores, codes = _likeliest(logits / temperature, top_k[0])
    else:
        scores, codes = torch.topk(logits / temperature, candidates, dim=-1)
        scores = scores.masked_fill(torch.arange(candidates) >= top_k, float("-inf"))
    probabilities = torch.softmax(scores, dim=-1)
    # A code is dropped if the likelier ones alone reach top_p, so the likeliest always stays.
    likelier = torch.cumsum(probabilities, dim=-1) - probabilities
    dropped = (likelier >= top_p) & (likelier > 0) & (top_p < 1)
    # Dropped last: noise may be 0, which makes its race infinite.
    race = (scores - torch.log(torch.gather(noise, -1, codes))).masked_fill(dropped, float("-inf"))
    # The lowest of codes that are equally likely: `topk` orders them by their row's place in the batch.
    behind = race < race.amax(dim=-1, keepdim=True)
    return codes.masked_fill(behind, logits.shape[-1] - 1).amin(dim=-1, keepdim=True)
