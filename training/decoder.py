"""The codec once more, against discriminators: spectra alone leave speech muffled.

The codebooks stay, so that codes keep their meaning. The decoder learns from what the encoder hears and, when the
talker's codes are there (respeak.py), from those as well: what a talker says is smoother than what an encoder hears,
and a decoder that knows both speaks clearly from both. The encoder learns which codes the decoder speaks best.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from rich import print
from safetensors.torch import save_file
from torch import Tensor, nn

from model_src.speech_encoder import SpeechEncoder
from training import dataset
from training.codec import autocast, compared, listen, load_codec
from training.dataset import Speech
from training.loop import Loop, descend
from training.losses import JUDGED, Discriminators, Spectra
from training.networks import decode, random_crop
from training.quantizer import ResidualQuantizer
from training.step import corpus, on_device, step, work

WARMUP = 50  # steps
ADVERSARIAL_FROM = 300  # steps over which the discriminators gain their full weight
MISTAKEN = 0.2  # of the utterances begin from the first codes that the encoder heard


class Codes:
    """What is decoded: what the encoder hears and, once written, what the talker says."""

    def __init__(self, cfg: DictConfig, encoder: SpeechEncoder, quantizer: ResidualQuantizer, first: Tensor) -> None:
        self.cfg, self.encoder, self.quantizer, self.first = cfg, encoder, quantizer.eval(), first
        self.heard = torch.tensor(list(cfg.decoder.heard))
        self.said_path = work(cfg) / "said.npz"
        self.said: Tensor | None = None

    def look(self) -> None:
        """Takes up the talker's codes if they have been written meanwhile."""
        if self.said is None and self.said_path.exists():
            with np.load(self.said_path) as stored:
                self.said = torch.as_tensor(stored["codes"], device=self.cfg.device)
            print("decoder: hears the talker's codes from here on", flush=True)

    def draw(self, frames: Tensor, audio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of frames [batch, frames] and their samples: first codes [batch, frames], summed acoustic rows
        [batch, frames, size], and the encoder's loss. Half of the utterances are in the talker's words, if known.
        """
        latents, logits = listen(self.cfg, self.encoder, audio)
        acoustics, commitment = self.quantizer(latents, self.heard[torch.randint(len(self.heard), (len(latents),))])
        first = self.first[frames]
        recognition = F.cross_entropy(logits.flatten(0, 1), first.flatten())
        spoken = torch.zeros(len(frames), 1, dtype=torch.bool)
        if self.said is not None:
            said = self.said[frames].long()
            spoken = (said >= 0).all(-1).all(-1, keepdim=True) & (torch.rand(len(frames), 1) < 0.5)
            acoustics = torch.where(spoken[..., None], self.quantizer.sum(said.clamp(min=0)), acoustics)
        mistaken = ~spoken & (torch.rand(len(frames), 1) < MISTAKEN)
        return torch.where(mistaken, logits.argmax(-1), first), acoustics, 0.75 * commitment + 0.2 * recognition


@step
def main(cfg: DictConfig) -> None:
    on_device(cfg)
    if cfg.device == "cuda":
        torch.backends.cudnn.benchmark = True
    encoder, decoder, quantizer = load_codec(cfg)
    encoder.requires_grad_(cfg.decoder.encoder)
    for network in (encoder, decoder):
        network.semantic.tables.requires_grad_(False)
        network.acoustic.tables.requires_grad_(False)
    speech = dataset.load(cfg, corpus(cfg)["train"])
    train(cfg, nn.ModuleList([encoder, decoder]), Codes(cfg, encoder, quantizer, speech.first), speech)


def train(cfg: DictConfig, both: nn.ModuleList, codes: Codes, speech: Speech) -> None:
    settings = cfg.decoder
    discriminators, spectra = Discriminators(), Spectra()
    trained = [p for p in both.parameters() if p.requires_grad]
    theirs = list(discriminators.parameters())
    ours, rival = (
        torch.optim.AdamW(parameters, settings.rate, (0.8, 0.99), weight_decay=1e-3) for parameters in (trained, theirs)
    )
    loop = Loop("decoder", work(cfg), settings.steps, settings.minutes, [both, discriminators], [ours, rival], 0.996)
    for part in loop:
        loop.rate(min(1, (loop.step + 1) / WARMUP) * (0.525 + 0.475 * math.cos(math.pi * part)))
        if loop.step % 20 == 0:
            codes.look()
        frames = speech.crops(settings.batch, settings.frames)
        audio = speech.audio(frames)
        first, acoustics, heard = codes.draw(frames, audio)
        crop, lead = random_crop(settings.frames, settings.crop)
        with autocast(cfg):
            made = decode(both[1], first, acoustics, crop)
        made, wanted = compared(made.float(), audio, crop, lead)
        begin = int(torch.randint(made.shape[-1] - JUDGED + 1, ()).item())
        short, real = made[:, begin : begin + JUDGED], wanted[:, begin : begin + JUDGED]
        with autocast(cfg):
            told_apart = discriminators.told_apart(short.detach(), real)
        descend(rival, told_apart, 50.0)
        discriminators.requires_grad_(False)
        with autocast(cfg):
            adversarial, features = discriminators.fooled(short, real)
        discriminators.requires_grad_(True)
        distance = spectra(made, wanted)
        loss = 5 * distance + heard + min(1, loop.step / ADVERSARIAL_FROM) * (0.25 * adversarial + features)
        descend(ours, loss, 20.0)
        loop.log(distance=distance, heard=heard, told_apart=told_apart, adversarial=adversarial, features=features)
        if loop.step % 20 == 0:
            loop.log(mel=(spectra.log_mel(made) - spectra.log_mel(wanted)).abs().mean())
        if loop.step % 200 == 0:
            with loop.averaged():
                write(cfg, both)
    write(cfg, both)


def write(cfg: DictConfig, both: nn.ModuleList) -> None:
    """Writes refined.safetensors, which load_codec prefers to what the codec step made."""
    path = work(cfg) / "refined.safetensors"
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in both.state_dict().items()}, partial)
    partial.rename(path)


if __name__ == "__main__":
    main()
