"""The speaker encoder's part of the talker's training: what it hears of each voice to clone, and what it is told of it.

It learns from the talker's own loss. Beside that it has to tell the traits by which the voice was made (voices.py),
with a layer that is not shipped: the shortest way to vectors that say who speaks, whatever is said.
"""

import math

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from model_src.speaker_encoder import SpeakerEncoder
from training.dataset import Speech
from training.speech import FRAME
from training.voices import TRAITS, cast, voice_of

HEARD = (15, 84)  # frames
MEAN_MEL, MEL_DEVIATION = -6.0, 2.5  # of log mel features
SPREAD = 0.4  # deviation of an x-vector's numbers at first: that of the other rows of a prompt
BLUR = 0.08  # of the noise on x-vectors


@torch.no_grad()
def start_encoder(encoder: SpeakerEncoder) -> None:
    """Initial weights for layers that end in ReLU and for features whose mean is far from 0."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (module.in_channels * module.kernel_size[0])))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    first = encoder.blocks[0].conv
    first.weight /= MEL_DEVIATION
    first.bias -= first.weight.sum((1, 2)) * MEAN_MEL
    encoder.fc.weight *= SPREAD


class Ears(nn.Module):
    """Hears the voices of a batch."""

    def __init__(self, cfg: DictConfig, encoder: SpeakerEncoder, speech: Speech) -> None:
        super().__init__()
        self.encoder, self.speech = encoder, speech
        self.lengths = torch.as_tensor(speech.lengths)
        voices = cast(cfg)
        self.traits = torch.tensor([voice_of(int(voice), voices).traits() for voice in speech.voices])
        self.told = nn.Linear(encoder.fc.out_channels, TRAITS)

    def forward(self, cloned: Tensor, noisy: bool) -> tuple[Tensor | None, Tensor | None]:
        """Of utterances [batch], -1 where nothing is cloned: x-vectors [clones, hidden] and their traits' loss."""
        cloned = cloned[cloned >= 0]
        if not len(cloned):
            return None, None
        low, high = HEARD
        audio = self.audio(cloned, int(torch.randint(low, high + 1, ()).item()) if noisy else high)
        if noisy:
            audio = worse(audio)
        vectors = self.encoder(audio)
        traits = F.mse_loss(self.told(vectors), self.traits[cloned])
        if noisy:
            vectors = vectors + BLUR * torch.randn_like(vectors)
        return vectors, traits

    def audio(self, utterances: Tensor, frames: int) -> Tensor:
        """Samples [count, frames * 1920] from anywhere in utterances, which begin anew where they are too short."""
        lengths = self.lengths[utterances][:, None]
        begin = (torch.rand(len(utterances), 1) * (lengths - frames + 1).clamp(min=1)).long()
        chosen = self.speech.starts[utterances][:, None] + (begin + torch.arange(frames)) % lengths
        return self.speech.waveform[chosen[..., None] * FRAME + torch.arange(FRAME)].flatten(1).float() / 32767


def worse(audio: Tensor) -> Tensor:
    """Recordings as people have them: some in a room, some with noise, all of another level. [count, samples]"""
    count, samples = audio.shape
    decay = torch.exp(-torch.arange(12_000) / (24_000 * (0.02 + 0.08 * torch.rand(count, 1))))
    room = torch.randn(count, 12_000) * decay * 0.05 * torch.rand(count, 1) * (torch.rand(count, 1) < 0.25)
    room[:, 0] = 1
    size = samples + 12_000
    audio = torch.fft.irfft(torch.fft.rfft(audio, size) * torch.fft.rfft(room, size), size)[:, :samples]
    level = audio.square().mean(1, keepdim=True).sqrt()
    noise = 10 ** (-(10 + 40 * torch.rand(count, 1)) / 20) * (torch.rand(count, 1) < 0.5)
    return (audio + torch.randn_like(audio) * level * noise) * 10 ** (torch.randn(count, 1) * 0.2)
