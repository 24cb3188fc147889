"""The codec's networks at the size that conf says, with initial weights that keep a signal's size at any depth.

With PyTorch's own initial weights the encoder's latents have a variance of 1e-4, and the quantizer collapses.
"""

import math
import random
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from model_src import speech_decoder, speech_encoder
from model_src.speech_decoder import History, SpeechDecoder
from model_src.speech_encoder import SpeechEncoder
from training.checkpoint import configuration

LAYER_SCALE = 0.2
LEAD = 2  # frames


def codec(cfg: DictConfig) -> tuple[SpeechEncoder, SpeechDecoder]:
    """Encoder and decoder, initialised, on conf's device."""
    config = configuration(cfg).speech_tokenizer
    with torch.device(cfg.device):
        encoder, decoder = SpeechEncoder(config), SpeechDecoder(config.decoder_config)
    for network in (encoder, decoder):
        network.apply(initialise)
    with torch.no_grad():
        encoder.first_conv.conv.weight.mul_(6)  # speech has an rms of about 0.1
        decoder.last_conv.conv.weight.mul_(0.1)
    if cfg.device == "cuda":
        speech_decoder.snake = fused_snake()
    return encoder, decoder


@cache
def fused_snake() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The decoder's activation as one kernel: many small operations on the largest tensors there are."""
    plain = speech_decoder.snake
    return torch.compile(lambda x, alpha, beta: plain(x, alpha, beta).to(x.dtype), dynamic=True)


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.ConvTranspose1d):
        taps = module.kernel_size[0] / module.stride[0]
        nn.init.normal_(module.weight, std=0.8 / math.sqrt(module.in_channels * taps))
    elif isinstance(module, nn.Conv1d):
        fan = module.in_channels // module.groups * module.kernel_size[0]
        nn.init.normal_(module.weight, std=1 / math.sqrt(fan))
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, speech_encoder.ResidualUnit | speech_decoder.ResidualUnit):
        module.conv2.conv.weight.mul_(0.5)  # visited after the convolution itself
    for name, parameter in module.named_parameters(recurse=False):
        if name in ("scale", "gamma"):
            nn.init.constant_(parameter, LAYER_SCALE)
        elif name in ("alpha", "beta"):
            nn.init.zeros_(parameter)
        elif name == "tables":
            nn.init.normal_(parameter, std=0.3)
        elif name == "weight" and parameter.dim() == 1:
            nn.init.ones_(parameter)


def decode(decoder: SpeechDecoder, first: Tensor, acoustics: Tensor, crop: Tensor) -> Tensor:
    """First codes [batch, frames] and summed acoustic rows [batch, frames, size] to samples of the frames `crop`.

    The transformer hears all frames; only the crop's are made audible. [batch, samples], not clamped.
    """
    rows = F.embedding(first, decoder.semantic.tables[0]).transpose(1, 2)
    x = decoder.semantic.output_proj(rows) + decoder.acoustic.output_proj(acoustics.transpose(1, 2))
    latents = decoder.latents(x, History())
    return decoder.waveform(latents.index_select(-1, crop), History())[:, 0]


def random_lead(draw: random.Random) -> int:
    """How many frames of the next crop only lead in: none, now and then, where what is heard begins."""
    return 0 if draw.random() < 0.15 else LEAD


def random_crop(frames: int, length: int, lead: int) -> Tensor:
    """The frames [length] to decode of `frames`, anywhere, but from the first on where nothing leads in."""
    start = torch.randint(1, frames - length + 1, ()) if lead else torch.zeros((), dtype=torch.long)
    return start + torch.arange(length)
