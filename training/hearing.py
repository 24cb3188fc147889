"""The encoder hears pitch: a codec of two voices can do without, since their melody follows from what is said.

Comparing spectra does not teach it: as long as the decoder does not place harmonics by the latents, the encoder gets no
gradient for them. So one linear layer reads pitch, which the teacher knows, off the latents, and the encoder learns to
supply it. Meanwhile it goes on telling phones, and its latents stay near what they were.
"""

import math
from copy import deepcopy

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_src.speech_encoder import SpeechEncoder
from training import dataset
from training.codec import listen, load_codec
from training.dataset import Speech
from training.loop import Loop, Recorded, adam, descend
from training.losses import Pitch
from training.step import corpus, on_device, step, work

WARMUP = 100  # steps
PITCH, RECOGNITION, NEAR = 4.0, 0.2, 0.2  # weights: pitch, the first code, and how far the latents have moved


@step
def main(cfg: DictConfig) -> None:
    on_device(cfg)
    if cfg.device == "cuda":
        torch.backends.cudnn.benchmark = True
    encoder, decoder, _ = load_codec(cfg)
    pitch = Pitch(encoder.config.codebook_dim)
    train(cfg, encoder, pitch, dataset.load(cfg, corpus(cfg)["train"]))
    save_file(pitch.state_dict(), work(cfg) / "pitch.safetensors")
    both = nn.ModuleList([encoder, decoder]).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in both.items()}, work(cfg) / "codec.safetensors")


def load_pitch(cfg: DictConfig) -> Pitch:
    """What reads pitch off the latents, as this step left it, or new."""
    pitch = Pitch(cfg.codec.networks.encoder_config.codebook_dim)
    path = work(cfg) / "pitch.safetensors"
    if path.exists():
        pitch.load_state_dict(load_file(path, device=cfg.device))
    return pitch


def train(cfg: DictConfig, encoder: SpeechEncoder, pitch: Pitch, speech: Speech) -> None:
    settings, before = cfg.hearing, deepcopy(encoder).requires_grad_(False)
    both = nn.ModuleList([encoder, pitch])
    optimizer = adam([p for p in both.parameters() if p.requires_grad], settings.rate)

    def learn() -> dict[str, Tensor]:
        frames = speech.crops(settings.batch, settings.frames)
        audio = speech.audio(frames) * 10 ** (torch.randn(settings.batch, 1) * 0.06)
        latents, logits = listen(cfg, encoder, audio)
        with torch.no_grad():
            known, _ = listen(cfg, before, audio)
        loss, octaves = pitch(latents, speech.pitch[frames])
        recognition = F.cross_entropy(logits.flatten(0, 1), speech.first[frames].flatten())
        moved = F.mse_loss(latents, known)
        descend(optimizer, PITCH * loss + RECOGNITION * recognition + NEAR * moved, 20.0)
        return {"pitch": loss, "octaves": octaves, "recognition": recognition, "moved": moved}

    recorded = Recorded(learn, cfg.device)
    loop = Loop("hearing", work(cfg), settings.steps, settings.minutes, [both], [optimizer], 0.998)
    for part in loop:
        loop.rate(min(1, (loop.step + 1) / WARMUP) * (0.525 + 0.475 * math.cos(math.pi * part)))
        loop.log(**recorded())


if __name__ == "__main__":
    main()
