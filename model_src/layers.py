"""Shared by the networks: layers that store 16-bit weights and compute in float32, rotary positions, attention.

Weights keep the dtype that the checkpoint stores. Each layer casts its own to the activations' dtype when it runs, so
a bfloat16 checkpoint costs two bytes per weight in memory, and in a traced graph each cast is the `Constant -> Convert`
pair that OpenVINO's compilers read as compressed weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]  # a layer's cache: keys and values, each [batch, kv_heads, positions, head_dim]


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Conv1d(nn.Conv1d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


class Embedding(nn.Embedding):
    """Rows as float32, whatever the table's dtype."""

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).float()


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.to(x.dtype) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class LayerScale(nn.Module):
    """A learned factor for each feature of a residual branch (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class SwiGLU(nn.Module):
    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(size, inner, bias=False)
        self.up_proj = Linear(size, inner, bias=False)
        self.down_proj = Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (RoFormer, arXiv 2104.09864), each [batch, 1, positions, head_dim].

    `positions` is [batch, positions]. Feature i turns with feature i + head_dim / 2 at theta ** (-2 i / head_dim).
    The talker's multimodal RoPE is this one: its three position streams are always equal.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    angles = positions[:, None, :, None].float() * (1.0 / theta**exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to queries or keys [batch, heads, positions, head_dim]."""
    half = x.shape[-1] // 2
    # `* -1.0`, not `-`: OpenVINO fuses rotary positions into one node only in this spelling.
    turned = torch.cat((x[..., half:] * -1.0, x[..., :half]), dim=-1)
    return x * cos + turned * sin


def causal_mask(queries: Tensor, keys: Tensor, window: int | None = None) -> Tensor:
    """Additive attention mask [batch, 1, queries, keys]: 0 where key <= query (and query - key < window), else -inf.

    `queries` [batch, queries] and `keys` [keys] are positions.
    """
    distance = queries[:, None, :, None] - keys[None, None, None, :]
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return torch.where(seen, 0.0, float("-inf"))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and, for the talker's kind, RMS-normalised queries and keys."""

    def __init__(self, size: int, heads: int, kv_heads: int, head_dim: int, qk_norm_eps: float | None = None) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q_proj = Linear(size, heads * head_dim, bias=False)
        self.k_proj = Linear(size, kv_heads * head_dim, bias=False)
        self.v_proj = Linear(size, kv_heads * head_dim, bias=False)
        self.o_proj = Linear(heads * head_dim, size, bias=False)
        self.q_norm = nn.Identity() if qk_norm_eps is None else RMSNorm(head_dim, qk_norm_eps)
        self.k_norm = nn.Identity() if qk_norm_eps is None else RMSNorm(head_dim, qk_norm_eps)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [batch, heads, positions, head_dim] and keys and values [batch, kv_heads, positions, head_dim]."""
        batch, length, _ = x.shape
        queries = self.q_norm(self.q_proj(x).view(batch, length, self.heads, self.head_dim))
        keys = self.k_norm(self.k_proj(x).view(batch, length, self.kv_heads, self.head_dim))
        values = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim)
        return queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """The attention's output [batch, queries, size]; rotary positions are already in queries and keys.

        Without a mask, queries have one position, which attends to every key.
        """
        if mask is None:  # heads that share keys become queries of one head: nothing to repeat or transpose
            mixed = F.scaled_dot_product_attention(queries.unflatten(1, (self.kv_heads, -1)).squeeze(3), keys, values)
            return self.o_proj(mixed.flatten(1)[:, None])
        keys, values = self._per_query_head(keys), self._per_query_head(values)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _per_query_head(self, x: Tensor) -> Tensor:
        """Repeat each key/value head for the query heads that share it."""
        repeats = self.heads // self.kv_heads
        if repeats == 1:
            return x
        batch, heads, length, size = x.shape
        return x[:, :, None].expand(batch, heads, repeats, length, size).reshape(batch, heads * repeats, length, size)

    def forward(
        self, x: Tensor, positions: tuple[Tensor, Tensor], mask: Tensor | None, past: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        """Attend over the past and x [batch, positions, size]; returns the output and the cache grown by x."""
        queries, keys, values = self.project(x)
        queries, keys = rotate(queries, *positions), rotate(keys, *positions)
        if past is not None:
            keys, values = torch.cat((past[0], keys), dim=2), torch.cat((past[1], values), dim=2)
        return self.attend(queries, keys, values, mask), (keys, values)


class DecoderLayer(nn.Module):
    """A Qwen3 layer, as talker and code predictor have it: pre-norm attention, pre-norm SwiGLU."""

    def __init__(self, size: int, inner: int, heads: int, kv_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(size, eps)
        self.self_attn = Attention(size, heads, kv_heads, head_dim, qk_norm_eps=eps)
        self.post_attention_layernorm = RMSNorm(size, eps)
        self.mlp = SwiGLU(size, inner)

    def forward(
        self, x: Tensor, positions: tuple[Tensor, Tensor], mask: Tensor | None, past: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        attended, present = self.self_attn(self.input_layernorm(x), positions, mask, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), present
