"""Drawing codes inside the network, in operations that a graph can hold.

The rules are the official ones in the official order (transformers' temperature, top-k and top-p warpers). The draw
is an exponential race, as in `qwen3_tts_ov.sampling`: the caller brings the noise, so that a seed fixes the result.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(logits: Tensor, noise: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Draw one code for each row.

    `logits` and `noise` are [batch, codes], noise being Exp(1) draws, or ones for the likeliest code. `temperature`,
    `top_k` and `top_p` have one element; `top_k` = number of codes and `top_p` = 1 switch those rules off. Of codes
    that tie at the top-k boundary the first stay (the official warper keeps all of them). Returns int64 [batch, 1].
    """
    scores, codes = torch.sort(logits / temperature, dim=-1, descending=True, stable=True)
    ranks = torch.arange(scores.shape[-1])
    scores = scores.masked_fill(ranks >= top_k, float("-inf"))
    probabilities = torch.softmax(scores, dim=-1)
    # A code goes when the likelier ones alone reach top_p; the likeliest has none before it and always stays.
    likelier = torch.cumsum(probabilities, dim=-1) - probabilities
    scores = scores.masked_fill((likelier >= top_p) & (top_p < 1) & (ranks > 0), float("-inf"))
    race = scores - torch.log(torch.gather(noise, -1, codes))
    return torch.gather(codes, -1, race.argmax(dim=-1, keepdim=True))
