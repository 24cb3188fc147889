"""The speech decoder: 16 codes a frame to 1920 samples of 24 kHz audio, causal throughout.

Codebook lookup, a causal convolution, a transformer that sees 72 frames, ConvNeXt upsampling to 50 Hz and a
convolutional decoder of SnakeBeta blocks. Every part has a bounded lookback, so the network can run in chunks: a
`History` keeps what each part needs of the past, and chunks of any length give the same samples as a single pass.
Official counterpart: `Qwen3TTSTokenizerV2Decoder` in qwen_tts/core/tokenizer_12hz/modeling_qwen3_tts_tokenizer_v2.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import SpeechDecoderConfig
from .layers import Attention, Conv1d, LayerScale, Linear, RMSNorm, SwiGLU, causal_mask, rotary, rotate


class History:
    """What the network remembers between chunks, in the order in which its parts ask for it.

    `past` None means silence before. After a pass, `present` is the past of the next one. If the attention's past has a
    fixed length, `seen` [1] is the number of its last frames that were really decoded.
    """

    def __init__(self, past: Sequence[Tensor] | None = None, seen: Tensor | None = None) -> None:
        self.past = past
        self.seen = seen
        self.present: list[Tensor] = []

    def prepend(self, x: Tensor, length: int) -> Tensor:
        """The last `length` steps before x [batch, channels, steps], joined with x; zeros before the start."""
        joined = F.pad(x, (length, 0)) if self.past is None else torch.cat((self.past[len(self.present)], x), dim=-1)
        self.present.append(joined[..., -length:])
        return joined

    def prepend_seen(self, x: Tensor, length: int) -> Tensor:
        """As `prepend`, for x [batch, heads, steps, size] and without padding before the start."""
        joined = x if self.past is None else torch.cat((self.past[len(self.present)], x), dim=2)
        self.present.append(joined[:, :, -length:])
        return joined


class CausalConv(nn.Module):
    """A convolution of stride 1 that only looks back."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = Conv1d(inputs, outputs, kernel, dilation=dilation, groups=groups)
        self.lookback = (kernel - 1) * dilation

    def forward(self, x: Tensor, history: History) -> Tensor:
        return self.conv(history.prepend(x, self.lookback) if self.lookback else x)


class CausalUpsample(nn.Module):
    """A transposed convolution, `stride` times longer, whose outputs reach back over `kernel / stride` inputs."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(inputs, outputs, kernel, stride)
        self.stride = stride
        self.lookback = kernel // stride - 1

    def forward(self, x: Tensor, history: History) -> Tensor:
        """Computed as a convolution that makes all `stride` outputs of a step at once, then interleaves them.

        With transposed convolutions, OpenVINO's CPU plugin takes 7 times as long for a block.
        """
        if self.lookback:
            x = history.prepend(x, self.lookback)
        inputs, outputs, _ = self.conv.weight.shape
        taps = self.conv.weight.view(inputs, outputs, self.lookback + 1, self.stride).flip(2)  # the oldest step first
        weight = taps.permute(1, 3, 0, 2).reshape(outputs * self.stride, inputs, self.lookback + 1)
        steps = F.conv1d(x, weight, self.conv.bias.repeat_interleave(self.stride))
        return steps.unflatten(1, (outputs, self.stride)).transpose(2, 3).flatten(2)


class Codebooks(nn.Module):
    """Residual vector quantisation, looked up: the sum of one row from each codebook, projected to the latent width."""

    def __init__(self, count: int, codes: int, size: int, outputs: int) -> None:
        super().__init__()
        self.tables = nn.Parameter(torch.empty(count, codes, size))
        self.output_proj = Conv1d(size, outputs, 1, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        """[batch, count, frames] to [batch, outputs, frames]."""
        rows = F.embedding(codes[:, 0], self.tables[0])
        for index in range(1, self.tables.shape[0]):
            rows = rows + F.embedding(codes[:, index], self.tables[index])
        return self.output_proj(rows.to(torch.float32).transpose(1, 2))


class WindowedLayer(nn.Module):
    """A transformer layer that attends over the last `window` frames, with layer scale on both branches."""

    def __init__(self, config: SpeechDecoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.window = config.sliding_window
        self.input_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.self_attn = Attention(size, config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self.self_attn_layer_scale = LayerScale(size)
        self.post_attention_layernorm = RMSNorm(size, config.rms_norm_eps)
        self.mlp = SwiGLU(size, config.intermediate_size)
        self.mlp_layer_scale = LayerScale(size)

    def forward(self, x: Tensor, positions: tuple[Tensor, Tensor], mask: Tensor, history: History) -> Tensor:
        queries, keys, values = self.self_attn.project(self.input_layernorm(x))
        # Keys are kept before rotation, so positions can count from the oldest frame kept. To rotary attention that is
        # the same as counting from the start, and it stays exact however long the speech gets.
        keys = history.prepend_seen(keys, self.window - 1)
        values = history.prepend_seen(values, self.window - 1)
        cos, sin = positions
        new = queries.shape[2]
        queries = rotate(queries, cos[:, :, -new:], sin[:, :, -new:])
        attended = self.self_attn.attend(queries, rotate(keys, cos, sin), values, mask)
        x = x + self.self_attn_layer_scale(attended)
        return x + self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x)))


class WindowedTransformer(nn.Module):
    def __init__(self, config: SpeechDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.input_proj = Linear(config.latent_dim, config.hidden_size)
        self.layers = nn.ModuleList(WindowedLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.output_proj = Linear(config.hidden_size, config.latent_dim)

    def forward(self, x: Tensor, history: History) -> Tensor:
        """[batch, frames, latent] to the same."""
        config = self.config
        seen = 0 if history.past is None else history.past[len(history.present)].shape[2]
        keys = torch.arange(seen + x.shape[1])
        mask = causal_mask(keys[None, seen:], keys, config.sliding_window)
        if history.seen is not None:
            mask = mask.masked_fill(keys < seen - history.seen, float("-inf"))
        positions = rotary(keys[None], config.head_dim, config.rope_theta)
        x = self.input_proj(x)
        for layer in self.layers:
            x = layer(x, positions, mask, history)
        return self.output_proj(self.norm(x))


class ConvNeXt(nn.Module):
    """A ConvNeXt block (Liu et al. 2022, arXiv 2201.03545) with a causal depthwise convolution."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dwconv = CausalConv(size, size, 7, groups=size)
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.pwconv1 = Linear(size, 4 * size)
        self.pwconv2 = Linear(4 * size, size)
        self.gamma = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor, history: History) -> Tensor:
        y = self.norm(self.dwconv(x, history).transpose(1, 2))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.transpose(1, 2)


# sin²(πt) = 1 - (c ((t² - a)² + b)² + d)² for t in [-½, ½]: least squares, which leave an error of 2.3e-6 at most.
_SINE = (2.28033068, -1.41531027, 0.14294946, -1.04749199)  # a, b, c, d


class SnakeBeta(nn.Module):
    """x + sin²(a x) / b, with a and b stored as logarithms (Ziyin et al. 2020, arXiv 2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels))
        self.beta = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return snake(x, self.alpha, self.beta)


def snake(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """SnakeBeta of x [batch, channels, steps] with logarithms [channels].

    The sine is a polynomial, because OpenVINO's CPU plugin has no vector code for `Sin`. It is one of squares, each of
    one operand: those the plugin runs as one pass over memory, where it would take one for each product of Horner's.
    """
    half_turns = x * (torch.exp(alpha)[:, None] / torch.pi)
    amplitude = 1.0 / (torch.exp(beta)[:, None] + 1e-9)
    t = torch.remainder(half_turns + 0.5, 1.0) - 0.5
    a, b, c, d = _SINE
    cosine = c * ((t**2 - a) ** 2 + b) ** 2 + d
    return x + amplitude * (1.0 - cosine**2)


class ResidualUnit(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.act1 = SnakeBeta(channels)
        self.conv1 = CausalConv(channels, channels, 7, dilation)
        self.act2 = SnakeBeta(channels)
        self.conv2 = CausalConv(channels, channels, 1)

    def forward(self, x: Tensor, history: History) -> Tensor:
        return x + self.conv2(self.act2(self.conv1(self.act1(x), history)), history)


class UpsampleBlock(nn.Module):
    """Halve the channels and multiply the rate; then three residual units of growing dilation."""

    def __init__(self, inputs: int, rate: int) -> None:
        super().__init__()
        outputs = inputs // 2
        self.act = SnakeBeta(inputs)
        self.upsample = CausalUpsample(inputs, outputs, 2 * rate, rate)
        self.units = nn.ModuleList(ResidualUnit(outputs, dilation) for dilation in (1, 3, 9))

    def forward(self, x: Tensor, history: History) -> Tensor:
        x = self.upsample(self.act(x), history)
        for unit in self.units:
            x = unit(x, history)
        return x


class SpeechDecoder(nn.Module):
    def __init__(self, config: SpeechDecoderConfig) -> None:
        super().__init__()
        self.config = config
        half = config.codebook_dim // 2  # the codebooks' rows are half as wide as what they are projected to
        self.semantic = Codebooks(1, config.codebook_size, half, config.codebook_dim)
        self.acoustic = Codebooks(config.num_quantizers - 1, config.codebook_size, half, config.codebook_dim)
        self.pre_conv = CausalConv(config.codebook_dim, config.latent_dim, 3)
        self.transformer = WindowedTransformer(config)
        self.upsamples = nn.ModuleList(
            CausalUpsample(config.latent_dim, config.latent_dim, factor, factor) for factor in config.upsampling_ratios
        )
        self.convnexts = nn.ModuleList(ConvNeXt(config.latent_dim) for _ in config.upsampling_ratios)
        self.first_conv = CausalConv(config.latent_dim, config.decoder_dim, 7)
        self.blocks = nn.ModuleList(
            UpsampleBlock(config.decoder_dim // 2**index, rate) for index, rate in enumerate(config.upsample_rates)
        )
        last = config.decoder_dim // 2 ** len(config.upsample_rates)
        self.last_act = SnakeBeta(last)
        self.last_conv = CausalConv(last, 1, 7)

    def forward(self, codes: Tensor, past: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Decode codes [batch, 16, frames] that follow `past` (None at the start of an utterance).

        Returns samples [batch, 1, 1920 * frames] in [-1, 1] at 24 kHz, and the past of the next chunk.
        """
        return self.decode(codes, History(past))

    def decode(self, codes: Tensor, history: History) -> tuple[Tensor, list[Tensor]]:
        """As `forward`, with the history given."""
        x = self.semantic(codes[:, :1]) + self.acoustic(codes[:, 1:])
        samples = self.waveform(self.latents(x, history), history)
        return samples.clamp(-1, 1), history.present

    def latents(self, rows: Tensor, history: History) -> Tensor:
        """Looked-up codes [batch, codebook_dim, frames] to what is made audible, [batch, latent, frames]."""
        x = self.pre_conv(rows, history).transpose(1, 2)
        return self.transformer(x, history).transpose(1, 2)

    def waveform(self, x: Tensor, history: History) -> Tensor:
        """Latents [batch, latent, frames] to samples [batch, 1, 1920 * frames], not yet clamped."""
        for upsample, convnext in zip(self.upsamples, self.convnexts, strict=True):
            x = convnext(upsample(x, history), history)
        x = self.first_conv(x, history)
        for block in self.blocks:
            x = block(x, history)
        return self.last_conv(self.last_act(x), history)
