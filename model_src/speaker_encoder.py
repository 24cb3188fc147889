"""The speaker encoder: 24 kHz audio to an x-vector, by way of mel features and an ECAPA-TDNN.

Source: Desplanques et al. 2020, arXiv 2005.07143. Official counterparts: `mel_spectrogram` and
`Qwen3TTSSpeakerEncoder` in qwen_tts/core/models/modeling_qwen3_tts.py.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import SpeakerEncoderConfig
from .layers import Conv1d


def mel_filters(sample_rate: int, fft_size: int, bands: int, low: float, high: float) -> np.ndarray:
    """Triangular filters of equal area on the Slaney mel scale, float32 [bands, fft_size / 2 + 1].

    The scale is linear below 1000 Hz (200 / 3 Hz a mel) and logarithmic above (27 mels for each factor of 6.4), as in
    the Auditory Toolbox (Slaney 1998), librosa's default.
    """
    step, knee, log_step = 200.0 / 3, 1000.0, np.log(6.4) / 27

    def to_mel(hertz: float) -> float:
        return hertz / step if hertz < knee else knee / step + np.log(hertz / knee) / log_step

    mels = np.linspace(to_mel(low), to_mel(high), bands + 2)
    edges = np.where(mels < knee / step, mels * step, knee * np.exp(log_step * (mels - knee / step)))
    bins = np.linspace(0, sample_rate / 2, fft_size // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    area = 2.0 / (edges[2:] - edges[:-2])
    return (np.maximum(0, np.minimum(rising, falling)) * area[:, None]).astype(np.float32)


class MelFeatures(nn.Module):
    """Log mel magnitudes: frames of 1024 samples every 256 (10.7 ms at 24 kHz), Hann window, up to 12 kHz."""

    fft_size, hop = 1024, 256

    def __init__(self, config: SpeakerEncoderConfig) -> None:
        super().__init__()
        filters = mel_filters(config.sample_rate, self.fft_size, config.mel_dim, 0.0, 12_000.0)
        self.register_buffer("filters", torch.from_numpy(filters), persistent=False)
        self.register_buffer("window", torch.hann_window(self.fft_size, device="cpu"), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """Samples [batch, samples] to features [batch, samples // 256, bands]; at least 385 samples."""
        edge = (self.fft_size - self.hop) // 2
        padded = F.pad(audio[:, None], (edge, edge), mode="reflect")[:, 0]
        spectrum = torch.stft(padded, self.fft_size, self.hop, window=self.window, center=False, return_complex=True)
        magnitude = torch.sqrt(torch.view_as_real(spectrum).pow(2).sum(-1) + 1e-9)
        return torch.log((self.filters @ magnitude).clamp(min=1e-5)).transpose(1, 2)


class TimeDelay(nn.Module):
    """Convolution over time, reflected at the edges, then ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = Conv1d(inputs, outputs, kernel, dilation=dilation, padding="same", padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class Res2Net(nn.Module):
    """Channel groups convolved one after another, each fed the one before it (Gao et al. 2019, arXiv 1904.01169)."""

    def __init__(self, channels: int, scale: int, kernel: int, dilation: int) -> None:
        super().__init__()
        width = channels // scale
        self.scale = scale
        self.blocks = nn.ModuleList(TimeDelay(width, width, kernel, dilation) for _ in range(scale - 1))

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = x.chunk(self.scale, dim=1)
        outputs = [first]
        for block, part in zip(self.blocks, rest, strict=True):
            outputs.append(block(part if len(outputs) == 1 else part + outputs[-1]))
        return torch.cat(outputs, dim=1)


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate computed from all channels' means (Hu et al. 2018, arXiv 1709.01507)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1 = Conv1d(channels, inner, 1)
        self.conv2 = Conv1d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv2(F.relu(self.conv1(x.mean(dim=2, keepdim=True))))
        return x * torch.sigmoid(gate)


class SERes2NetBlock(nn.Module):
    def __init__(self, config: SpeakerEncoderConfig, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.tdnn1 = TimeDelay(channels, channels)
        self.res2net_block = Res2Net(channels, config.enc_res2net_scale, kernel, dilation)
        self.tdnn2 = TimeDelay(channels, channels)
        self.se_block = SqueezeExcitation(channels, config.enc_se_channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(x))))


class AttentiveStatistics(nn.Module):
    """Mean and standard deviation over time, each channel weighting the frames by attention."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.tdnn = TimeDelay(3 * channels, inner)
        self.conv = Conv1d(inner, channels, 1)

    @staticmethod
    def statistics(x: Tensor, weights: Tensor | float) -> tuple[Tensor, Tensor]:
        """Weighted mean and deviation of x [batch, channels, frames], each [batch, channels, 1]."""
        mean = (weights * x).sum(2, keepdim=True)
        variance = (weights * (x - mean).pow(2)).sum(2, keepdim=True)
        return mean, torch.sqrt(variance.clamp(min=1e-12))

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = self.statistics(x, torch.ones_like(x[:1, :1]) / x.shape[2])
        context = torch.cat((x, mean.expand_as(x), deviation.expand_as(x)), dim=1)
        attention = torch.softmax(self.conv(torch.tanh(self.tdnn(context))), dim=2)
        return torch.cat(self.statistics(x, attention), dim=1)


class SpeakerEncoder(nn.Module):
    def __init__(self, config: SpeakerEncoderConfig) -> None:
        super().__init__()
        channels, kernels, dilations = config.enc_channels, config.enc_kernel_sizes, config.enc_dilations
        self.mel = MelFeatures(config)
        self.blocks = nn.ModuleList([TimeDelay(config.mel_dim, channels[0], kernels[0], dilations[0])])
        self.blocks.extend(
            SERes2NetBlock(config, channels[index], kernels[index], dilations[index])
            for index in range(1, len(channels) - 1)
        )
        self.mfa = TimeDelay(channels[-1], channels[-1], kernels[-1], dilations[-1])
        self.asp = AttentiveStatistics(channels[-1], config.enc_attention_channels)
        self.fc = Conv1d(2 * channels[-1], config.enc_dim, 1)

    def embed(self, features: Tensor) -> Tensor:
        """Mel features [batch, frames, bands] to x-vectors [batch, enc_dim]."""
        x, outputs = features.transpose(1, 2), []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        x = self.mfa(torch.cat(outputs[1:], dim=1))
        return self.fc(self.asp(x))[..., 0]

    def forward(self, audio: Tensor) -> Tensor:
        """Samples [batch, samples] at 24 kHz to x-vectors [batch, enc_dim]."""
        return self.embed(self.mel(audio))
