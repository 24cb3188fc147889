"""How near decoded speech is to the original: spectra at four resolutions, and discriminators.

Multi-period and STFT discriminators are those of HiFi-GAN (Kong et al. 2020, arXiv 2010.05646) and EnCodec (Défossez et
al. 2022, arXiv 2210.13438), with few channels; they are trained by least squares.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

RESOLUTIONS = ((2048, 512, 128), (1024, 256, 80), (512, 128, 48), (256, 64, 24))  # FFT, hop, mel bands
PERIODS = (2, 3, 5, 7, 11)
JUDGED = 16_384  # samples that the discriminators see
LOUD = 8.0  # times what speech has
MIDDLE = 160.0  # Hz of a pitch that is told as 0 octaves
OCTAVE, VOICED = 8.0, 2.0  # in latents, whose largest deviation in any direction is about 5


def mel_filters(size: int, bands: int, rate: int = 24_000) -> Tensor:
    """[bands, size // 2 + 1], triangles evenly spaced on the mel scale up to half the rate."""
    edges = 700 * (10 ** (torch.linspace(0, 2595 * math.log10(1 + rate / 1400), bands + 2) / 2595) - 1)
    bins = torch.linspace(0, rate / 2, size // 2 + 1)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp(min=0)


class Spectra(nn.Module):
    """Distance of two waveforms [batch, samples]: log mel, log magnitude and spectral convergence."""

    def __init__(self) -> None:
        super().__init__()
        for size, _, bands in RESOLUTIONS:
            self.register_buffer(f"mel{size}", mel_filters(size, bands))
            self.register_buffer(f"window{size}", torch.hann_window(size))

    def magnitudes(self, x: Tensor, size: int, hop: int) -> Tensor:
        window = getattr(self, f"window{size}")
        return torch.stft(x, size, hop, size, window, center=True, return_complex=True).abs()

    def log_mel(self, x: Tensor, size: int = 1024, hop: int = 256) -> Tensor:
        return (getattr(self, f"mel{size}") @ self.magnitudes(x, size, hop)).clamp(min=1e-5).log()

    def forward(self, made: Tensor, wanted: Tensor) -> Tensor:
        total = made.new_zeros(())
        for size, hop, _ in RESOLUTIONS:
            mel = getattr(self, f"mel{size}")
            a, b = self.magnitudes(made, size, hop), self.magnitudes(wanted, size, hop)
            mels = ((mel @ a).clamp(min=1e-5).log10() - (mel @ b).clamp(min=1e-5).log10()).abs().mean()
            logs = (a.clamp(min=1e-4).log() - b.clamp(min=1e-4).log()).abs().mean()
            total = total + 2 * mels + 0.5 * logs + 0.5 * (a - b).norm() / (b.norm() + 1e-5)
        return total / len(RESOLUTIONS)


class PeriodDiscriminator(nn.Module):
    """Sees every `period`-th sample side by side."""

    def __init__(self, period: int, channels: tuple[int, ...] = (1, 32, 64, 128, 256)) -> None:
        super().__init__()
        self.period = period
        self.layers = nn.ModuleList(
            convolution(inputs, outputs, (5, 1), (3, 1), (2, 0)) for inputs, outputs in pairwise(channels)
        )
        self.layers.append(convolution(channels[-1], channels[-1], (5, 1), (1, 1), (2, 0)))
        self.last = convolution(channels[-1], 1, (3, 1), (1, 1), (1, 0), 0.1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.pad(LOUD * x[:, None], (0, -x.shape[-1] % self.period), mode="reflect")
        return judge(x.unflatten(-1, (-1, self.period)), self.layers, self.last)


class SpectrumDiscriminator(nn.Module):
    """Sees the complex spectrum."""

    def __init__(self, size: int, channels: int = 32) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("window", torch.hann_window(size))
        wide = [convolution(channels, channels, (3, 9), (1, 2), (1, 4)) for _ in range(3)]
        first = convolution(2, channels, (3, 9), (1, 1), (1, 4))
        self.layers = nn.ModuleList([first, *wide, convolution(channels, channels, (3, 3), (1, 1), (1, 1))])
        self.last = convolution(channels, 1, (3, 3), (1, 1), (1, 1), 0.1)

    def forward(self, x: Tensor) -> list[Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            z = torch.stft(LOUD * x.float(), self.size, self.size // 4, self.size, self.window, return_complex=True)
            z = z / math.sqrt(self.size / 8)
        return judge(torch.view_as_real(z).permute(0, 3, 2, 1), self.layers, self.last)


class Pitch(nn.Module):
    """Pitch and voicing of a frame's halves, in four directions of the latents [batch, frames, size].

    How far a latent lies along them is given. A layer that learns to read pitch asks for ever larger latents instead,
    in which it is quantised finer, until codes have no room for words.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("directions", torch.eye(4, size))

    @torch.no_grad()
    def choose(self, latents: Tensor) -> None:
        """Takes the directions in which latents [count, size] hold least."""
        self.directions.copy_(torch.linalg.eigh(latents.T.cov())[1][:, :4].T)

    def without(self, latents: Tensor) -> Tensor:
        """Latents with nothing in these directions."""
        return latents - latents @ self.directions.T @ self.directions

    def forward(self, latents: Tensor, hertz: Tensor) -> tuple[Tensor, Tensor]:
        """The loss for a true pitch [batch, frames, 2], 0 where there is none, and the error in octaves."""
        octaves, voicing = (latents @ self.directions.T).split(2, -1)
        octaves = octaves / OCTAVE
        voiced = (hertz > 0).float()
        wanted = (hertz.clamp(min=40) / MIDDLE).log2()
        count = voiced.sum() + 1
        error = ((octaves - wanted).abs() * voiced).sum() / count
        loss = (F.smooth_l1_loss(octaves, wanted, reduction="none", beta=0.05) * voiced).sum() / count
        return loss + 0.1 * F.mse_loss(voicing / VOICED, 2 * voiced - 1), error


def convolution(
    inputs: int,
    outputs: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    gain: float = 1.4,
) -> nn.Module:
    """One that keeps the size of speech through many layers: with PyTorch's own initial weights a discriminator spends
    a short training on making its verdicts differ at all.
    """
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs * kernel[0] * kernel[1]))
    return weight_norm(layer)


def judge(x: Tensor, layers: nn.ModuleList, last: nn.Module) -> list[Tensor]:
    """The features of each layer, and the verdict as the last one."""
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), 0.1)
        features.append(x)
    return [*features, last(x)]


class Discriminators(nn.ModuleList):
    def __init__(self) -> None:
        super().__init__(map(PeriodDiscriminator, PERIODS))
        self.extend(SpectrumDiscriminator(size) for size in (2048, 1024, 512))

    def told_apart(self, made: Tensor, real: Tensor) -> Tensor:
        """The discriminators' loss on waveforms [batch, samples]."""
        loss = made.new_zeros(())
        for discriminator in self:
            loss = loss + discriminator(made)[-1].float().square().mean()
            loss = loss + (discriminator(real)[-1].float() - 1).square().mean()
        return loss

    def fooled(self, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's losses: how far it is from fooling them, and how far their features lie apart, as a share."""
        adversarial, features = made.new_zeros(()), made.new_zeros(())
        for discriminator in self:
            *found, verdict = discriminator(made)
            with torch.no_grad():
                *wanted, _ = discriminator(real)
            adversarial = adversarial + (verdict.float() - 1).square().mean()
            apart = sum(
                (a.float() - b.float()).abs().mean() / (b.float().abs().mean() + 1e-5)
                for a, b in zip(found, wanted, strict=True)
            )
            features = features + apart / len(found)
        return adversarial, features
