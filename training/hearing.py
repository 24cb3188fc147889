"""The encoder hears pitch: a codec of two voices can do without, since their melody follows from what is said.

Comparing spectra does not teach it: as long as the decoder does not place harmonics by the latents, the encoder gets no
gradient for them. So pitch, which the teacher knows, gets directions of its own among the latents (losses.py), and the
encoder learns to supply it. Meanwhile it goes on telling phones, and otherwise its latents stay what they were. The
codebooks start again from the new ones.
"""

import math
from copy import deepcopy

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_src.speech_decoder import SpeechDecoder
from model_src.speech_encoder import SpeechEncoder
from training import dataset
from training.codec import listen, load_codec, start_quantizer, write_tables
from training.dataset import Speech
from training.loop import Loop, Recorded, adam, descend
from training.losses import Pitch
from training.step import corpus, on_device, step, work

WARMUP = 100  # steps
PITCH, RECOGNITION, NEAR = 4.0, 0.2, 1.0  # weights: pitch, the first code, and how far the latents have moved


@step
def main(cfg: DictConfig) -> None:
    on_device(cfg)
    if cfg.device == "cuda":
        torch.backends.cudnn.benchmark = True
    encoder, decoder, quantizer = load_codec(cfg)
    speech = dataset.load(cfg, corpus(cfg)["train"])
    pitch = load_pitch(cfg) or place_pitch(cfg, encoder, speech)
    make_room(pitch, encoder, decoder)
    train(cfg, encoder, pitch, speech)
    start_quantizer(cfg, encoder, quantizer, speech)
    both = nn.ModuleList([encoder, decoder])
    write_tables(both, quantizer)
    learnt = {name: tensor.contiguous() for name, tensor in both.state_dict().items()}
    save_file(learnt, work(cfg) / "codec.safetensors")


def load_pitch(cfg: DictConfig) -> Pitch | None:
    """Where latents hold pitch, if this step has begun."""
    path = work(cfg) / "pitch.safetensors"
    if not path.exists():
        return None
    pitch = Pitch(cfg.codec.networks.encoder_config.codebook_dim)
    pitch.load_state_dict(load_file(path, device=cfg.device))
    return pitch


@torch.no_grad()
def place_pitch(cfg: DictConfig, encoder: SpeechEncoder, speech: Speech) -> Pitch:
    """Chooses where latents hold it: pitch.safetensors."""
    latents = [listen(cfg, encoder, speech.audio(speech.crops(cfg.codec.batch, cfg.codec.frames)))[0] for _ in range(8)]
    pitch = Pitch(encoder.config.codebook_dim)
    pitch.choose(torch.cat(latents).flatten(0, 1))
    save_file(pitch.state_dict(), work(cfg) / "pitch.safetensors")
    return pitch


@torch.no_grad()
def make_room(pitch: Pitch, encoder: SpeechEncoder, decoder: SpeechDecoder) -> None:
    """Where pitch goes, the encoder says nothing and the decoder hears nothing at first."""
    said, heard = encoder.acoustic.input_proj.weight, decoder.acoustic.output_proj.weight
    said[..., 0] = pitch.without(said[..., 0].T).T
    heard[..., 0] = pitch.without(heard[..., 0])


def train(cfg: DictConfig, encoder: SpeechEncoder, pitch: Pitch, speech: Speech) -> None:
    settings, before = cfg.hearing, deepcopy(encoder).requires_grad_(False)
    optimizer = adam([p for p in encoder.parameters() if p.requires_grad], settings.rate)

    def learn() -> dict[str, Tensor]:
        frames = speech.crops(settings.batch, settings.frames)
        audio = speech.audio(frames) * 10 ** (torch.randn(settings.batch, 1) * 0.06)
        latents, logits = listen(cfg, encoder, audio)
        with torch.no_grad():
            known = pitch.without(listen(cfg, before, audio)[0])
        loss, octaves = pitch(latents, speech.pitch[frames])
        recognition = F.cross_entropy(logits.flatten(0, 1), speech.first[frames].flatten())
        moved = F.mse_loss(pitch.without(latents), known)
        descend(optimizer, PITCH * loss + RECOGNITION * recognition + NEAR * moved, 20.0)
        return {"pitch": loss, "octaves": octaves, "recognition": recognition, "moved": moved}

    recorded = Recorded(learn, cfg.device)
    loop = Loop("hearing", work(cfg), settings.steps, settings.minutes, [encoder], [optimizer], 0.998)
    for part in loop:
        loop.rate(min(1, (loop.step + 1) / WARMUP) * (0.525 + 0.475 * math.cos(math.pi * part)))
        loop.log(**recorded())


if __name__ == "__main__":
    main()
