"""The codec once more, against discriminators: spectra alone leave speech muffled.

The codebooks stay, so that codes keep their meaning, unless `decoder.codebooks` lets them follow voices that they do
not know. The decoder learns from what the encoder hears and, when the talker's codes are there (respeak.py), from those
as well: what a talker says is smoother than what an encoder hears, and a decoder that knows both speaks clearly from
both. The encoder learns which codes the decoder speaks best.
"""

import math
import random
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from rich import print
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_src.speech_encoder import SpeechEncoder
from training import dataset
from training.codec import autocast, compared, listen, load_codec, write_tables
from training.dataset import Speech
from training.hearing import load_pitch
from training.loop import Loop, Recorded, adam, descend
from training.losses import JUDGED, Discriminators, Pitch, Spectra
from training.networks import LEAD, decode, random_crop, random_lead
from training.quantizer import ResidualQuantizer
from training.step import corpus, on_device, step, work

WARMUP = 50  # steps
ADVERSARIAL_FROM = 300  # steps over which the discriminators gain their full weight
ADVERSARIAL = 0.5  # weights: what the discriminators say,
PITCH = 4.0  # where latents hold it,
VARIANCE = 0.3  # and how far the latents' size is from what it was; without this, they grow until words are lost
MISTAKEN = 0.2  # of the utterances begin from the first codes that the encoder heard


class Codes:
    """What is decoded: what the encoder hears and, once written, what the talker says."""

    def __init__(
        self, cfg: DictConfig, encoder: SpeechEncoder, quantizer: ResidualQuantizer, pitch: Pitch | None, speech: Speech
    ) -> None:
        self.cfg, self.encoder, self.quantizer, self.pitch = cfg, encoder, quantizer, pitch
        self.first, self.hertz = speech.first, speech.pitch
        self.heard = torch.tensor(list(cfg.decoder.heard))
        self.said_path = work(cfg) / "said.npz"
        self.said: Tensor | None = None
        with torch.no_grad():
            latents, _ = listen(cfg, encoder, speech.audio(speech.crops(cfg.decoder.batch, cfg.decoder.frames)))
            self.variance = latents.flatten(0, 1).var(0).mean()

    def look(self) -> bool:
        """Takes up the talker's codes if they have been written meanwhile; whether they have."""
        if self.said is not None or not self.said_path.exists():
            return False
        with np.load(self.said_path) as stored:
            self.said = torch.as_tensor(stored["codes"], device=self.cfg.device)
        print("decoder: hears the talker's codes from here on", flush=True)
        return True

    def draw(self, frames: Tensor, audio: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of frames [batch, frames] and their samples: first codes [batch, frames], summed acoustic rows
        [batch, frames, size], the encoder's loss, and by how many octaves its pitch is wrong. Half of the utterances
        are in the talker's words, if known.
        """
        latents, logits = listen(self.cfg, self.encoder, audio)
        acoustics, commitment = self.quantizer(latents, self.heard[torch.randint(len(self.heard), (len(latents),))])
        first = self.first[frames]
        recognition = F.cross_entropy(logits.flatten(0, 1), first.flatten())
        loss = 0.75 * commitment + 0.2 * recognition
        loss = loss + VARIANCE * (latents.flatten(0, 1).var(0).mean() / self.variance).log().square()
        octaves = loss.new_zeros(())
        if self.pitch:
            loss = loss + PITCH * self.pitch(latents, self.hertz[frames])[0]
            octaves = self.pitch(acoustics, self.hertz[frames])[1]
        spoken = torch.zeros(len(frames), 1, dtype=torch.bool)
        if self.said is not None:
            said = self.said[frames].long()
            spoken = (said >= 0).all(-1).all(-1, keepdim=True) & (torch.rand(len(frames), 1) < 0.5)
            acoustics = torch.where(spoken[..., None], self.quantizer.sum(said.clamp(min=0)), acoustics)
        mistaken = ~spoken & (torch.rand(len(frames), 1) < MISTAKEN)
        return torch.where(mistaken, logits.argmax(-1), first), acoustics, loss, octaves


@step
def main(cfg: DictConfig) -> None:
    on_device(cfg)
    if cfg.device == "cuda":
        torch.backends.cudnn.benchmark = True
    encoder, decoder, quantizer = load_codec(cfg)
    if not cfg.decoder.encoder:
        encoder.requires_grad_(False)
    quantizer.train(cfg.decoder.codebooks)
    speech = dataset.load(cfg, corpus(cfg)["train"])
    pitch = load_pitch(cfg)
    train(Refinement(cfg, nn.ModuleList([encoder, decoder]), Codes(cfg, encoder, quantizer, pitch, speech), speech))


class Refinement:
    """One step of codec and discriminators."""

    def __init__(self, cfg: DictConfig, both: nn.ModuleList, codes: Codes, speech: Speech) -> None:
        self.cfg, self.both, self.codes, self.speech = cfg, both, codes, speech
        self.discriminators, self.spectra = Discriminators(), Spectra()
        known = work(cfg) / "discriminators.safetensors"  # of a run before, on the same codec
        if known.exists():
            self.discriminators.load_state_dict(load_file(known, device=cfg.device))
        trained = [p for p in both.parameters() if p.requires_grad]
        self.ours = adam(trained, cfg.decoder.rate)
        self.rival = adam(list(self.discriminators.parameters()), cfg.decoder.rival)
        self.weight = torch.zeros(())  # of what the discriminators say

    def __call__(self, lead: int) -> dict[str, Tensor]:
        settings, discriminators = self.cfg.decoder, self.discriminators
        frames = self.speech.crops(settings.batch, settings.frames)
        audio = self.speech.audio(frames)
        first, acoustics, heard, octaves = self.codes.draw(frames, audio)
        crop = random_crop(settings.frames, settings.crop, lead)
        with autocast(self.cfg):
            made = decode(self.both[1], first, acoustics, crop)
        made, wanted = compared(made.float(), audio, crop, lead)
        judged = torch.randint(made.shape[-1] - JUDGED + 1, ()) + torch.arange(JUDGED)
        short, real = made.index_select(1, judged), wanted.index_select(1, judged)
        with autocast(self.cfg):
            told_apart = discriminators.told_apart(short.detach(), real)
        descend(self.rival, told_apart, 50.0)
        discriminators.requires_grad_(False)
        with autocast(self.cfg):
            adversarial, features = discriminators.fooled(short, real)
        discriminators.requires_grad_(True)
        distance = self.spectra(made, wanted)
        descend(self.ours, 5 * distance + heard + self.weight * (adversarial + features), 20.0)
        with torch.no_grad():
            mel = (self.spectra.log_mel(made) - self.spectra.log_mel(wanted)).abs().mean()
        return {
            "distance": distance,
            "heard": heard,
            "octaves": octaves,
            "told_apart": told_apart,
            "adversarial": adversarial,
            "features": features,
            "mel": mel,
        }


def train(task: Refinement) -> None:
    cfg, draw = task.cfg, random.Random(task.cfg.seed)
    modules = [task.both, task.discriminators, task.codes.quantizer]
    settings = cfg.decoder
    loop = Loop("decoder", work(cfg), settings.steps, settings.minutes, modules, [task.ours, task.rival], 0.998)
    task.codes.look()
    steps = {lead: Recorded(partial(task, lead), cfg.device) for lead in (0, LEAD)}
    for part in loop:
        loop.rate(min(1, (loop.step + 1) / WARMUP) * (0.525 + 0.475 * math.cos(math.pi * part)))
        task.weight.fill_(ADVERSARIAL * min(1, loop.step / ADVERSARIAL_FROM))
        if loop.step % 200 == 199:
            with loop.averaged():
                write(task)
            if task.codes.look():
                steps = {lead: Recorded(partial(task, lead), cfg.device) for lead in (0, LEAD)}
        loop.log(**steps[random_lead(draw)]())
    write(task)


def write(task: Refinement) -> None:
    """Writes refined.safetensors, which load_codec prefers to what the codec step made."""
    if task.cfg.decoder.codebooks:
        write_tables(task.both, task.codes.quantizer)
    path = work(task.cfg) / "refined.safetensors"
    partly = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in task.both.state_dict().items()}, partly)
    partly.rename(path)
    save_file(task.discriminators.state_dict(), work(task.cfg) / "discriminators.safetensors")


if __name__ == "__main__":
    main()
