"""The talker: a Qwen3 decoder that reads text and predicts the first code of each 80 ms frame.

Official counterpart: `Qwen3TTSTalkerForConditionalGeneration` in qwen_tts/core/models/modeling_qwen3_tts.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TalkerConfig
from .layers import DecoderLayer, Embedding, KeyValue, Linear, RMSNorm, causal_mask, rotary


class TextEmbedding(nn.Module):
    """Text ids [batch, tokens] to talker inputs [batch, tokens, hidden]: a table, then a two-layer projection."""

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        self.table = Embedding(config.text_vocab_size, config.text_hidden_size)
        self.linear_fc1 = Linear(config.text_hidden_size, config.text_hidden_size)
        self.linear_fc2 = Linear(config.text_hidden_size, config.hidden_size)

    def project(self, rows: Tensor) -> Tensor:
        """Table rows [..., text_hidden] to talker width [..., hidden]."""
        return self.linear_fc2(F.silu(self.linear_fc1(rows)))

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.project(self.table(token_ids))


class Talker(nn.Module):
    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            DecoderLayer(
                config.hidden_size,
                config.intermediate_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.head_dim,
                config.rms_norm_eps,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.codec_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def place(self, position_ids: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The rotary cosines and sines and the causal mask of positions [batch, positions], as `decode` takes them."""
        mask = causal_mask(position_ids, torch.arange(position_ids[0, -1] + 1))
        return rotary(position_ids, self.config.head_dim, self.config.rope_theta), mask

    def decode(
        self, inputs_embeds: Tensor, positions: tuple[Tensor, Tensor], mask: Tensor, past: list[KeyValue] | None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Hidden states before the last norm [batch, positions, hidden], and the grown cache."""
        hidden, present = inputs_embeds, []
        for index, layer in enumerate(self.layers):
            hidden, cache = layer(hidden, positions, mask, None if past is None else past[index])
            present.append(cache)
        return hidden, present

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, past: list[KeyValue] | None = None
    ) -> tuple[Tensor, Tensor, list[KeyValue]]:
        """Run over inputs [batch, positions, hidden] that follow `past`.

        `position_ids` [batch, positions] continue those of the past. Returns logits [batch, positions, vocabulary], the
        normalised hidden states [batch, positions, hidden] that the code predictor starts from, and the grown cache.
        """
        hidden, present = self.decode(inputs_embeds, *self.place(position_ids), past)
        hidden = self.norm(hidden)
        return self.codec_head(hidden), hidden, present

    def last(
        self, inputs_embeds: Tensor, position_ids: Tensor, past: list[KeyValue] | None = None
    ) -> tuple[Tensor, Tensor, list[KeyValue]]:
        """As `forward`, but with only the last position's logits and hidden state, all that generation needs."""
        hidden, present = self.decode(inputs_embeds, *self.place(position_ids), past)
        hidden = self.norm(hidden[:, -1:])
        return self.codec_head(hidden), hidden, present
