"""The speech encoder: 24 kHz audio to 16 codes for every 1920 samples. It is Mimi's encoder.

A SEANet convolutional encoder to 25 Hz, a causal transformer, a convolution to 12.5 Hz, and split residual vector
quantisation of which 16 of 32 codebooks are used. Source: Défossez et al. 2024, arXiv 2410.00037; official
counterpart: `MimiModel.encode` in transformers, as qwen_tts/core/tokenizer_12hz calls it.

The configuration names a sliding window of 250 steps (10 s), but the official code masks only the future (transformers
4.57.3 builds the plain causal mask; only its flash attention, which the package does not use, would apply the window).
So here, too, every step attends to all earlier ones, and the codes of long recordings equal the official ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import SpeechEncoderConfig, SpeechTokenizerConfig
from .layers import Attention, Conv1d, LayerScale, Linear, causal_mask, rotary


class StridedConv(nn.Module):
    """A causal convolution, padded on the right so that no sample is dropped."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        padding: str = "constant",
    ) -> None:
        super().__init__()
        self.conv = Conv1d(inputs, outputs, kernel, stride, dilation=dilation, bias=bias)
        self.stride = stride
        self.left = (kernel - 1) * dilation + 1 - stride
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        right = -x.shape[-1] % self.stride if self.stride > 1 else 0
        return self.conv(F.pad(x, (self.left, right), mode=self.padding))


class ResidualUnit(nn.Module):
    def __init__(self, config: SpeechEncoderConfig, channels: int, dilation: int) -> None:
        super().__init__()
        inner = channels // config.compress
        self.conv1 = StridedConv(channels, inner, config.residual_kernel_size, dilation=dilation)
        self.conv2 = StridedConv(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.elu(self.conv1(F.elu(x))))


class DownsampleBlock(nn.Module):
    """Residual units at one rate, then a strided convolution that doubles the channels."""

    def __init__(self, config: SpeechEncoderConfig, channels: int, stride: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            ResidualUnit(config, channels, config.dilation_growth_rate**index)
            for index in range(config.num_residual_layers)
        )
        self.downsample = StridedConv(channels, 2 * channels, 2 * stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x)
        return self.downsample(F.elu(x))


class EncoderLayer(nn.Module):
    """A transformer layer with LayerNorm, GELU and layer scale on both branches."""

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.input_layernorm = nn.LayerNorm(size, eps=config.norm_eps)
        self.self_attn = Attention(size, config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self.self_attn_layer_scale = LayerScale(size)
        self.post_attention_layernorm = nn.LayerNorm(size, eps=config.norm_eps)
        self.fc1 = Linear(size, config.intermediate_size, bias=False)
        self.fc2 = Linear(config.intermediate_size, size, bias=False)
        self.mlp_layer_scale = LayerScale(size)

    def forward(self, x: Tensor, positions: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        attended, _ = self.self_attn(self.input_layernorm(x), positions, mask)
        x = x + self.self_attn_layer_scale(attended)
        return x + self.mlp_layer_scale(self.fc2(F.gelu(self.fc1(self.post_attention_layernorm(x)))))


class Quantizer(nn.Module):
    """Residual vector quantisation: each codebook encodes the residual of those before it."""

    def __init__(self, config: SpeechEncoderConfig, count: int) -> None:
        super().__init__()
        size = config.vector_quantization_hidden_dimension
        self.input_proj = Conv1d(config.hidden_size, size, 1, bias=False)
        self.tables = nn.Parameter(torch.empty(count, config.codebook_size, config.codebook_dim))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, hidden, frames] to codes [batch, frames, count]."""
        residual, codes = self.input_proj(x).transpose(1, 2), []
        for table in self.tables.unbind():
            # The nearest row: |x - r|² = |x|² - 2 (x·r - |r|²/2), and |x|² is the same for all rows.
            nearness = residual @ table.T - table.pow(2).sum(-1) / 2
            code = nearness.argmax(-1)
            residual = residual - F.embedding(code, table)
            codes.append(code)
        return torch.stack(codes, dim=-1)


class SpeechEncoder(nn.Module):
    def __init__(self, tokenizer: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.config = config = tokenizer.encoder_config
        channels = [config.num_filters * 2**index for index in range(len(config.upsampling_ratios) + 1)]
        self.first_conv = StridedConv(config.audio_channels, channels[0], config.kernel_size)
        self.blocks = nn.ModuleList(
            DownsampleBlock(config, width, stride)
            for width, stride in zip(channels, reversed(config.upsampling_ratios), strict=False)
        )
        self.last_conv = StridedConv(channels[-1], config.hidden_size, config.last_kernel_size)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.downsample = StridedConv(config.hidden_size, config.hidden_size, 4, 2, bias=False, padding="replicate")
        self.semantic = Quantizer(config, config.num_semantic_quantizers)
        self.acoustic = Quantizer(config, tokenizer.encoder_valid_num_quantizers - config.num_semantic_quantizers)

    def features(self, audio: Tensor) -> Tensor:
        """Samples [batch, samples] at 24 kHz to what is quantised, [batch, hidden, ceil(samples / 1920)]."""
        config = self.config
        x = self.first_conv(audio[:, None])
        for block in self.blocks:
            x = block(x)
        x = self.last_conv(F.elu(x)).transpose(1, 2)
        steps = torch.arange(x.shape[1])
        positions = rotary(steps[None], config.head_dim, config.rope_theta)
        mask = causal_mask(steps[None], steps)
        for layer in self.layers:
            x = layer(x, positions, mask)
        return self.downsample(x.transpose(1, 2))

    def forward(self, audio: Tensor) -> Tensor:
        """Samples [batch, samples] at 24 kHz to codes [batch, ceil(samples / 1920), 16]."""
        x = self.features(audio)
        return torch.cat((self.semantic(x), self.acoustic(x)), dim=-1)
