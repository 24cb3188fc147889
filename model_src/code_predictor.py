"""The code predictor: given the talker's hidden state and a frame's first code, the other fifteen.

A small Qwen3 decoder runs once for each code group. Its inputs are at talker width: the hidden state, then the
embedding of each code as it is chosen, each group with a table and a head of its own.
Official counterpart: `Qwen3TTSTalkerCodePredictorModelForConditionalGeneration`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import TalkerConfig
from .layers import DecoderLayer, Embedding, KeyValue, Linear, RMSNorm, causal_mask, rotary
from .sampling import draw


class CodePredictor(nn.Module):
    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        self.config = predictor = config.code_predictor_config
        groups = predictor.num_code_groups - 1
        same_width = predictor.hidden_size == config.hidden_size
        self.projection = nn.Identity() if same_width else Linear(config.hidden_size, predictor.hidden_size)
        self.embeddings = nn.ModuleList(Embedding(predictor.vocab_size, config.hidden_size) for _ in range(groups))
        self.layers = nn.ModuleList(
            DecoderLayer(
                predictor.hidden_size,
                predictor.intermediate_size,
                predictor.num_attention_heads,
                predictor.num_key_value_heads,
                predictor.head_dim,
                predictor.rms_norm_eps,
            )
            for _ in range(predictor.num_hidden_layers)
        )
        self.norm = RMSNorm(predictor.hidden_size, predictor.rms_norm_eps)
        self.heads = nn.ModuleList(
            Linear(predictor.hidden_size, predictor.vocab_size, bias=False) for _ in range(groups)
        )

    def decode(self, inputs: Tensor, start: int, past: list[KeyValue] | None = None) -> tuple[Tensor, list[KeyValue]]:
        """Hidden states [batch, positions, predictor hidden] of inputs [batch, positions, talker hidden]."""
        queries = torch.arange(start, start + inputs.shape[1])[None]
        mask = causal_mask(queries, queries[0]) if start == 0 else None  # later positions come one at a time
        return self.run(inputs, rotary(queries, self.config.head_dim, self.config.rope_theta), mask, past)

    def run(
        self, inputs: Tensor, positions: tuple[Tensor, Tensor], mask: Tensor | None, past: list[KeyValue] | None
    ) -> tuple[Tensor, list[KeyValue]]:
        """As `decode`, with the rotary cosines and sines and the mask given."""
        hidden, present = self.projection(inputs), []
        for index, layer in enumerate(self.layers):
            hidden, cache = layer(hidden, positions, mask, None if past is None else past[index])
            present.append(cache)
        return self.norm(hidden), present

    def frame(
        self,
        talker_hidden: Tensor,
        first_code: Tensor,
        first_embedding: Tensor,
        noise: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        candidates: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A whole frame from its first code.

        `talker_hidden` and `first_embedding` are [batch, 1, talker hidden], `first_code` [batch, 1], `noise`
        [batch, groups - 1, codes] Exp(1) draws (ones for the likeliest codes); `temperature`, `top_k` and `top_p` have
        one element, `candidates` is for `draw`. Returns the codes [batch, groups] and the sum of their embeddings
        [batch, 1, talker hidden].
        """
        codes, summed = [first_code], first_embedding
        inputs, start, past = torch.cat((talker_hidden, first_embedding), dim=1), 0, None
        for group, (head, embedding) in enumerate(zip(self.heads, self.embeddings, strict=True)):
            hidden, past = self.decode(inputs, start, past)
            start += inputs.shape[1]
            code = draw(head(hidden[:, -1]), noise[:, group], temperature, top_k, top_p, candidates)
            inputs = embedding(code)
            codes.append(code)
            summed = summed + inputs
        return torch.cat(codes, dim=1), summed
